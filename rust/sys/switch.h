/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The state that software switches around a world switch: offsets for assembly, the same struct for C.
 * rust/sys/switch.rs mirrors it and asserts each offset.
 */
#ifndef LODGE_SWITCH_H
#define LODGE_SWITCH_H

#define SWITCH_GPR		0
#define SWITCH_CR2		144
#define SWITCH_SPEC_CTRL	152
#define SWITCH_SPEC_PASSED	244

/* The guest's XCR0 differs from the host's and CR4.OSXSAVE is set. */
#define SWITCH_XCR0		1
/* The guest's PKRU is live: CR4.PKE or XCR0.PKRU is set. */
#define SWITCH_PKRU		2
/* The guest has breakpoints on: load DR0 to DR3 and DR6. */
#define SWITCH_DR		4
/* The guest has XSAVES and the host's IA32_XSS is not 0: the guest's is. */
#define SWITCH_XSS		8

#ifndef __ASSEMBLER__
#include <linux/types.h>
#include <linux/build_bug.h>

struct lodge_switch {
	u64 gpr[16];		/* RAX RCX RDX RBX RSP RBP RSI RDI R8 ... R15 */
	u64 rip;
	u64 rflags;
	u64 cr2;
	u64 spec_ctrl;
	u64 xcr0;
	u64 host_xcr0;
	u64 dr[4];
	u64 dr6;
	u64 host_debugctl;
	u64 host_xss;
	u32 pkru;
	u32 host_pkru;
	u32 flags;
	u32 spec_passed;	/* the guest writes SPEC_CTRL without an exit: it is read after each */
};
static_assert(offsetof(struct lodge_switch, gpr) == SWITCH_GPR);
static_assert(offsetof(struct lodge_switch, cr2) == SWITCH_CR2);
static_assert(offsetof(struct lodge_switch, spec_ctrl) == SWITCH_SPEC_CTRL);
static_assert(offsetof(struct lodge_switch, spec_passed) == SWITCH_SPEC_PASSED);
static_assert(sizeof(struct lodge_switch) == 248);
#endif
#endif
