/* SPDX-License-Identifier: GPL-2.0 */
/*
 * An option ROM that does what firmware does which has virtualization switched off: it writes VALUE to the model-specific register
 * MSR and so locks it, before any operating system runs. The firmware calls it in real mode, three bytes behind its signature. What is still
 * missing, a byte that makes the sum of all bytes 0, is added by tools/env/rom.sh.
 */
	.code16
	.text
	.byte	0x55, 0xaa, 1			/* the signature, and the size in units of 512 bytes */
	pushal
	movl	$MSR, %ecx
	/* The firmware may call twice, and a locked register refuses a second write. */
	rdmsr
	cmpl	$VALUE, %eax
	je	1f
	movl	$VALUE, %eax
	xorl	%edx, %edx
	wrmsr
1:	popal
	lret
	.org	511
