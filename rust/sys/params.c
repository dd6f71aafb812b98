// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters, under the names of the in-tree modules. The kernel crate's parameters have no file in sysfs, and
 * tools and tests read these.
 */
#include <linux/cpu.h>
#include <linux/kvm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>
#include <asm/cpufeature.h>
#include <asm/spec-ctrl.h>

#include "params.h"

static struct lodge_params params = {
	.nx_huge_pages = -1,
#ifdef LODGE_LEDGER
	.ledger = true,
#endif
	.second_stage = true,
	.access_dirty = true,
	.vpid = true,
	.nrips = true,
	.flush_by_asid = true,
	.large_pages = true,
	.unrestricted_guest = true,
};

module_param_named(ignore_msrs, params.ignore_msrs, bool, 0644);
MODULE_PARM_DESC(ignore_msrs, "Unknown MSRs read as 0 and swallow writes, instead of #GP");

module_param_named(force_emulation_prefix, params.force_emulation_prefix, int, 0644);
MODULE_PARM_DESC(force_emulation_prefix, "UD2 followed by \"kvm\" makes the guest's next instruction an emulated one; 2 clears RFLAGS.RF too");
/* The in-tree module's words, but at load only. What it shows is what came of it. */
static int nx_huge_pages_set(const char *text, const struct kernel_param *kp)
{
	bool value;
	int r;

	if (sysfs_streq(text, "auto")) {
		params.nx_huge_pages = -1;
		return 0;
	}
	if (sysfs_streq(text, "off") || sysfs_streq(text, "never") || sysfs_streq(text, "force")) {
		params.nx_huge_pages = text[0] == 'f';
		return 0;
	}
	r = kstrtobool(text, &value);
	if (!r)
		params.nx_huge_pages = value;
	return r;
}

static int nx_huge_pages_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%c\n", itlb_multihit_kvm_mitigation ? 'Y' : 'N');
}

static const struct kernel_param_ops nx_huge_pages_ops = { .set = nx_huge_pages_set, .get = nx_huge_pages_get };
module_param_cb(nx_huge_pages, &nx_huge_pages_ops, NULL, 0444);
MODULE_PARM_DESC(nx_huge_pages, "Let guests execute from 4 KiB pages only: auto (if the CPU needs it), off, force");
module_param_named(npt, params.second_stage, bool, 0444);
MODULE_PARM_DESC(npt, "Nested paging (AMD); Lodge refuses to load without it");
module_param_named(ept, params.second_stage, bool, 0444);
MODULE_PARM_DESC(ept, "Extended page tables (Intel); Lodge refuses to load without them");
module_param_named(eptad, params.access_dirty, bool, 0444);
MODULE_PARM_DESC(eptad, "Accessed and dirty bits in extended page tables");
module_param_named(vpid, params.vpid, bool, 0444);
MODULE_PARM_DESC(vpid, "Tag TLB entries with a virtual processor identifier (Intel)");
module_param_named(nrips, params.nrips, bool, 0444);
MODULE_PARM_DESC(nrips, "Take the next RIP from the VMCB instead of decoding (AMD)");
module_param_named(flush_by_asid, params.flush_by_asid, bool, 0444);
MODULE_PARM_DESC(flush_by_asid, "Flush single address-space identifiers (AMD)");
module_param_named(large_pages, params.large_pages, bool, 0444);
MODULE_PARM_DESC(large_pages, "Map guest memory with 2 MiB and 1 GiB pages where the host does");
module_param_named(unrestricted_guest, params.unrestricted_guest, bool, 0444);
MODULE_PARM_DESC(unrestricted_guest, "Run real mode and unpaged modes directly (Intel); without it, real mode is emulated");

#ifdef LODGE_LEDGER
module_param_named(break_flush, params.break_flush, int, 0644);
MODULE_PARM_DESC(break_flush, "For tests: leave out a step of the TLB flushes, by its number in mmu/step.rs; 0: none");
module_param_named(ledger, params.ledger, bool, 0644);
MODULE_PARM_DESC(ledger, "For tests: stop a VM for which a TLB flush is missing");
#endif

const struct lodge_params *lodge_params(void) { return &params; }

/*
 * What an in-tree module tells of things that are not here: fixed values, which a load may repeat but not change.
 */
static int fixed_set(const char *text, const struct kernel_param *kp)
{
	bool value;
	int r = kstrtobool(text, &value);

	if (r)
		return r;
	return value == *(const bool *)kp->arg ? 0 : -EOPNOTSUPP;
}

static const struct kernel_param_ops fixed_ops = { .set = fixed_set, .get = param_get_bool };
static bool no;

module_param_cb(enable_pmu, &fixed_ops, &no, 0444);
MODULE_PARM_DESC(enable_pmu, "Virtual performance counters: not there");
module_param_cb(enable_vmware_backdoor, &fixed_ops, &no, 0444);
MODULE_PARM_DESC(enable_vmware_backdoor, "VMware's backdoor port: not there");
module_param_cb(eager_page_split, &fixed_ops, &no, 0444);
MODULE_PARM_DESC(eager_page_split, "Split large pages when dirty logging begins: not there, they are split when written");

/* On CPUs with that bug, a thread that idles leaves its return predictions to its sibling. */
static bool mitigate_smt_rsb;

static bool smt_rsb_leaks(void)
{
	return boot_cpu_has_bug(X86_BUG_SMT_RSB) && cpu_smt_possible();
}

static int mitigate_smt_rsb_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%c\n", mitigate_smt_rsb && smt_rsb_leaks() ? 'Y' : 'N');
}

static const struct kernel_param_ops mitigate_smt_rsb_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG, .set = param_set_bool, .get = mitigate_smt_rsb_get,
};
module_param_cb(mitigate_smt_rsb, &mitigate_smt_rsb_ops, &mitigate_smt_rsb, 0444);
MODULE_PARM_DESC(mitigate_smt_rsb, "Guests do not idle without exits on CPUs whose return predictions leak to the sibling thread");

/* The exits that a VM may do without: the value of KVM_CAP_X86_DISABLE_EXITS. */
u32 lodge_exits_optional(void)
{
	u32 exits = KVM_X86_DISABLE_EXITS_PAUSE;

	if (boot_cpu_has(X86_FEATURE_APERFMPERF))
		exits |= KVM_X86_DISABLE_EXITS_APERFMPERF;
	if (mitigate_smt_rsb && smt_rsb_leaks())
		return exits;
	exits |= KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_CSTATE;
	/* A guest that waits in MWAIT has to be woken by its host's timer. */
	if (boot_cpu_has(X86_FEATURE_MWAIT) && !boot_cpu_has_bug(X86_BUG_MONITOR) && boot_cpu_has(X86_FEATURE_ARAT))
		exits |= KVM_X86_DISABLE_EXITS_MWAIT;
	return exits;
}

/* Guests are going to idle without exits. */
void lodge_idle_in_guest(void)
{
	if (smt_rsb_leaks())
		pr_warn_once("this CPU's threads leak return predictions when one idles: let trusted guests only do so, or turn SMT off\n");
}

static struct kobject vendor_kobj;
static bool vendor_shown;
static struct lodge_in_use in_use;

/* A file of a vendor's module, in the format that the in-tree module has for it: tests parse it. */
#define SHOWN(_id, _name, _format, _value)							\
	static ssize_t _id##_show(struct kobject *k, struct kobj_attribute *a, char *buf)	\
	{											\
		return sysfs_emit(buf, _format "\n", _value);					\
	}											\
	static struct kobj_attribute _id##_attr = __ATTR(_name, 0444, _id##_show, NULL)
#define FLAG(_vendor, _name, _value) SHOWN(_vendor##_##_name, _name, "%c", (_value) ? 'Y' : 'N')
#define NUMBER(_vendor, _name, _value) SHOWN(_vendor##_##_name, _name, "%d", _value)

FLAG(amd, npt, in_use.second_stage);
NUMBER(amd, nrips, in_use.nrips);
FLAG(amd, intercept_smi, true);
FLAG(amd, avic, false);
NUMBER(amd, lbrv, 0);
NUMBER(amd, nested, 0);
NUMBER(amd, vgif, 0);
NUMBER(amd, vls, 0);
FLAG(amd, vnmi, false);
NUMBER(amd, tsc_scaling, 0);
FLAG(amd, sev, false);
FLAG(amd, sev_es, false);
FLAG(amd, sev_snp, false);
FLAG(amd, enable_mediated_pmu, false);

FLAG(intel, ept, in_use.second_stage);
FLAG(intel, eptad, in_use.access_dirty);
FLAG(intel, vpid, in_use.vpid);
FLAG(intel, unrestricted_guest, in_use.unrestricted_guest);
FLAG(intel, vnmi, true);
FLAG(intel, enable_apicv, false);
FLAG(intel, flexpriority, false);
FLAG(intel, emulate_invalid_guest_state, true);
FLAG(intel, nested, false);
FLAG(intel, enable_shadow_vmcs, false);
FLAG(intel, pml, false);
FLAG(intel, preemption_timer, false);
FLAG(intel, sgx, false);
FLAG(intel, enable_mediated_pmu, false);
FLAG(intel, allow_smaller_maxphyaddr, false);

static struct attribute *amd_attrs[] = {
	&amd_npt_attr.attr, &amd_nrips_attr.attr, &amd_intercept_smi_attr.attr, &amd_avic_attr.attr, &amd_lbrv_attr.attr,
	&amd_nested_attr.attr, &amd_vgif_attr.attr, &amd_vls_attr.attr, &amd_vnmi_attr.attr, &amd_tsc_scaling_attr.attr,
	&amd_sev_attr.attr, &amd_sev_es_attr.attr, &amd_sev_snp_attr.attr, &amd_enable_mediated_pmu_attr.attr, NULL,
};
static struct attribute *intel_attrs[] = {
	&intel_ept_attr.attr, &intel_eptad_attr.attr, &intel_vpid_attr.attr, &intel_unrestricted_guest_attr.attr,
	&intel_vnmi_attr.attr, &intel_enable_apicv_attr.attr, &intel_flexpriority_attr.attr,
	&intel_emulate_invalid_guest_state_attr.attr, &intel_nested_attr.attr, &intel_enable_shadow_vmcs_attr.attr,
	&intel_pml_attr.attr, &intel_preemption_timer_attr.attr, &intel_sgx_attr.attr,
	&intel_enable_mediated_pmu_attr.attr, &intel_allow_smaller_maxphyaddr_attr.attr, NULL,
};
static const struct attribute_group amd_group = { .name = "parameters", .attrs = amd_attrs };
static const struct attribute_group intel_group = { .name = "parameters", .attrs = intel_attrs };

/* Whoever had the object has let go of it: it, and what it points to, is the module's. */
static DECLARE_COMPLETION(vendor_released);

static void vendor_release(struct kobject *k)
{
	complete(&vendor_released);
}

/* Gives up our reference, and waits for the others. */
static void vendor_put(void)
{
	kobject_put(&vendor_kobj);
	wait_for_completion(&vendor_released);
}

static const struct kobj_type vendor_type = { .release = vendor_release, .sysfs_ops = &kobj_sysfs_ops };

/* Shows /sys/module/kvm_intel/parameters or /sys/module/kvm_amd/parameters. Task context. */
int lodge_params_show_vendor(bool intel, const struct lodge_in_use *now)
{
	int r;

	in_use = *now;
	vendor_kobj.kset = THIS_MODULE->mkobj.kobj.kset;
	r = kobject_init_and_add(&vendor_kobj, &vendor_type, NULL, intel ? "kvm_intel" : "kvm_amd");
	if (!r)
		r = sysfs_create_group(&vendor_kobj, intel ? &intel_group : &amd_group);
	if (r) {
		vendor_put();
		return r;
	}
	vendor_shown = true;
	return 0;
}

void lodge_params_hide_vendor(void)
{
	if (!vendor_shown)
		return;
	vendor_shown = false;
	kobject_del(&vendor_kobj);
	vendor_put();
}
