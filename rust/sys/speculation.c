// SPDX-License-Identifier: GPL-2.0
/* Speculation: what the kernel knows of the CPU and uses itself, and the MSRs that guests write through us. */
#include <linux/irqflags.h>
#include <linux/kvm_host.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>
#include <asm/vmx.h>

#include "shim.h"

/* Bits of `weak` in rust/model/speculation.rs: a set bit is the worse. */
u32 lodge_cpu_weak(void)
{
	u32 weak = 0;

	if (boot_cpu_has_bug(X86_BUG_CPU_MELTDOWN))
		weak |= BIT(0);
	if (boot_cpu_has_bug(X86_BUG_SPEC_STORE_BYPASS))
		weak |= BIT(1);
	if (boot_cpu_has_bug(X86_BUG_MDS))
		weak |= BIT(2);
	if (boot_cpu_has_bug(X86_BUG_RFDS))
		weak |= BIT(3);
	if (boot_cpu_has_bug(X86_BUG_ITS))
		weak |= BIT(4);
	if (boot_cpu_has_bug(X86_BUG_TAA))
		weak |= BIT(5);
	if (boot_cpu_has_bug(X86_BUG_GDS) && !gds_ucode_mitigated())
		weak |= BIT(6);
	if (boot_cpu_has_bug(X86_BUG_EIBRS_PBRSB))
		weak |= BIT(7);
	if (l1tf_vmx_mitigation == VMENTER_L1D_FLUSH_NEVER)
		weak |= BIT(8);
	if (!boot_cpu_has(X86_FEATURE_TSA_SQ_NO))
		weak |= BIT(9);
	if (!boot_cpu_has(X86_FEATURE_TSA_L1_NO))
		weak |= BIT(10);
#ifdef X86_FEATURE_TSA_FILL_NO
	if (!boot_cpu_has(X86_FEATURE_TSA_FILL_NO))
		weak |= BIT(11);
#else
	weak |= BIT(11);
#endif
	return weak;
}

/* Bits of `uses` in rust/model/speculation.rs. */
u32 lodge_cpu_controls(void)
{
	return (boot_cpu_has(X86_FEATURE_IBRS) ? BIT(0) : 0) |
	       (boot_cpu_has(X86_FEATURE_IBPB) ? BIT(1) : 0) |
	       (boot_cpu_has(X86_FEATURE_STIBP) ? BIT(2) : 0) |
	       (boot_cpu_has(X86_FEATURE_MSR_SPEC_CTRL) ? BIT(3) : 0);
}

u64 lodge_arch_capabilities(void)
{
	return boot_cpu_has(X86_FEATURE_ARCH_CAPABILITIES) ? lodge_rdmsr(MSR_IA32_ARCH_CAPABILITIES) : 0;
}

/* The VMCB holds the guest's SPEC_CTRL; the assembly asks the same. */
bool lodge_virtual_spec_ctrl(void) { return boot_cpu_has(X86_FEATURE_V_SPEC_CTRL); }

/* Whether the CPU takes this value for SPEC_CTRL, which only trying tells: which bits there are depends on the model. */
bool lodge_spec_ctrl_takes(u64 value)
{
	unsigned long flags;
	bool takes = false;
	u64 host;

	local_irq_save(flags);
	if (!rdmsrq_safe(MSR_IA32_SPEC_CTRL, &host) && !wrmsrq_safe(MSR_IA32_SPEC_CTRL, value)) {
		wrmsrq(MSR_IA32_SPEC_CTRL, host);
		takes = true;
	}
	local_irq_restore(flags);
	return takes;
}

/* Commands to the CPU that the caller is on, as far as somebody can tell; false if it refuses. They only make it slower. */
bool lodge_pred_cmd(u64 value) { return !wrmsrq_safe(MSR_IA32_PRED_CMD, value); }
bool lodge_flush_l1d(void) { return !wrmsrq_safe(MSR_IA32_FLUSH_CMD, L1D_FLUSH); }
