// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters, under the names of the in-tree modules. The kernel crate's parameters have no file in sysfs, and
 * tools and tests read these.
 */
#include <linux/module.h>
#include <linux/moduleparam.h>

#include "params.h"

static struct lodge_params params = {
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

/* Tests read whether the prefix works: it must not say yes as long as it does not. */
static int prefix_set(const char *text, const struct kernel_param *kp)
{
	int value, r = kstrtoint(text, 0, &value);

	if (r)
		return r;
	return value ? -EOPNOTSUPP : 0;
}

static const struct kernel_param_ops prefix_ops = { .set = prefix_set, .get = param_get_int };
module_param_cb(force_emulation_prefix, &prefix_ops, &params.force_emulation_prefix, 0444);
MODULE_PARM_DESC(force_emulation_prefix, "UD2 followed by \"kvm\" forces emulation of the next instruction: not there yet, only 0 is taken");
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
MODULE_PARM_DESC(unrestricted_guest, "Run real mode directly (Intel); Lodge refuses to load without it");

const struct lodge_params *lodge_params(void) { return &params; }

static struct kobject vendor_kobj;
static bool vendor_shown;

static ssize_t flag_show(bool v, char *buf) { return sysfs_emit(buf, "%c\n", v ? 'Y' : 'N'); }

#define FLAG(_name, _field)									\
	static ssize_t _name##_show(struct kobject *k, struct kobj_attribute *a, char *buf)	\
	{											\
		return flag_show(_field, buf);							\
	}											\
	static struct kobj_attribute _name##_attr = __ATTR_RO(_name)

FLAG(npt, params.second_stage);
FLAG(nrips, params.nrips);
FLAG(avic, false);
FLAG(lbrv, false);
FLAG(ept, params.second_stage);
FLAG(eptad, params.access_dirty);
FLAG(vpid, params.vpid);
FLAG(unrestricted_guest, params.unrestricted_guest);
FLAG(nested, false);

static struct attribute *amd_attrs[] = {
	&npt_attr.attr, &nrips_attr.attr, &avic_attr.attr, &lbrv_attr.attr, &nested_attr.attr, NULL,
};
static struct attribute *intel_attrs[] = {
	&ept_attr.attr, &eptad_attr.attr, &vpid_attr.attr, &unrestricted_guest_attr.attr, &nested_attr.attr, NULL,
};
static const struct attribute_group amd_group = { .name = "parameters", .attrs = amd_attrs };
static const struct attribute_group intel_group = { .name = "parameters", .attrs = intel_attrs };

static void vendor_release(struct kobject *k) {}
static const struct kobj_type vendor_type = { .release = vendor_release, .sysfs_ops = &kobj_sysfs_ops };

/* Shows /sys/module/kvm_intel/parameters or /sys/module/kvm_amd/parameters. Task context. */
int lodge_params_show_vendor(bool intel)
{
	int r;

	vendor_kobj.kset = THIS_MODULE->mkobj.kobj.kset;
	r = kobject_init_and_add(&vendor_kobj, &vendor_type, NULL, intel ? "kvm_intel" : "kvm_amd");
	if (!r)
		r = sysfs_create_group(&vendor_kobj, intel ? &intel_group : &amd_group);
	if (r) {
		kobject_put(&vendor_kobj);
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
	kobject_put(&vendor_kobj);
}
