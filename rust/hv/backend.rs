// SPDX-License-Identifier: GPL-2.0
//! The boundary between the hypervisor and a vendor: one static generic, chosen once at load.
//!
//! A backend's hardware state comes in two halves that never overlap: [`Backend::Hw`] belongs to the thread that has the
//! vCPU loaded (it is inside of [`VcpuState`](super::vcpu::VcpuState), which only
//! [`Vcpu::with_loaded`](super::vcpu::Vcpu::with_loaded) lends out), [`Backend::Resident`] is what the scheduler's callbacks
//! touch *while* that thread holds the first half exclusively: atomics and values that never change.

use kernel::prelude::*;

use crate::hv::guest_mem::MAX_INSN;
use crate::hv::vcpu::Loaded;
use crate::mmu::pte::PteFormat;
use crate::mmu::vm_ledger::VcpuLedger;
use crate::mmu::vm_mmu::MmuConfig;
use crate::model::event::{Exception, Interrupt, Vectoring};
use crate::model::features::Caps;
use crate::model::msr::{HwMsr, Passed};
use crate::model::regs::{Seg, Segment, TableReg};
use crate::sys::cpu::{IrqOff, PreemptOff};
use crate::sys::params::InUse;
use crate::sys::switch::Switch;
use crate::sys::trace;
use crate::sys::virt::CpuVirt;

/// How an exit was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Flow {
    /// Enter the guest again.
    Resume,
    /// Return to user space; the run page says why.
    User,
}

/// The two system segment registers and the two table registers, beside the six of [`Seg`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SysSeg {
    /// Task register.
    Tr,
    /// Local descriptor table register.
    Ldtr,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Global descriptor table.
    Gdt,
    /// Interrupt descriptor table.
    Idt,
}

/// What the next entry delivers to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inject {
    /// An exception; its payload has been applied.
    Exception(Exception),
    /// An interrupt, from outside or by an INT n that was cut short.
    Interrupt(Interrupt),
    /// A non-maskable interrupt.
    Nmi,
}

/// Why nothing can be injected for one more instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shadow {
    /// After STI.
    pub(crate) sti: bool,
    /// After MOV SS or POP SS.
    pub(crate) mov_ss: bool,
}

/// What a vendor provides. Unless stated otherwise methods run in task context with the vCPU loaded, and may be preempted.
pub(crate) trait Backend: CpuVirt + Send + Sync + Sized + 'static {
    /// For messages.
    const VENDOR: &'static str;
    /// The instruction by which a guest calls the hypervisor.
    const HYPERCALL: [u8; 3];
    /// Hardware loads the guest's PDPTEs from the VMCS rather than from memory, so they have to be written there.
    const PDPTRS_IN_CONTROL_BLOCK: bool;
    /// The second-stage page-table format.
    type Pte: PteFormat;
    /// A vCPU's hardware state, see the head of this file.
    type Hw: Send;
    /// A vCPU's state that context switches touch, see the head of this file.
    type Resident: Send + Sync;
    /// An exit as the hardware reports it.
    type Exit: Copy;

    /// Checks what the CPU can do and prepares what all CPUs share; called once, before any other method.
    /// Refuses with one `pr_err!` line.
    fn setup() -> Result;
    /// Features that the host has and this backend cannot give to a guest, added to `none`.
    fn withheld(none: Caps) -> Caps;
    /// What it uses of the features that a parameter can switch off.
    fn in_use() -> InUse;
    /// Gives back what [`Backend::setup`] took.
    fn teardown();
    /// The second-stage tables' format and limits.
    fn mmu_config() -> MmuConfig<<Self::Pte as PteFormat>::Config>;

    /// The hardware state of a new vCPU. Not loaded.
    fn new_vcpu() -> Result<(Self::Hw, Self::Resident)>;
    /// Sets what the hardware state holds besides registers (controls, intercepts), once, before the registers
    /// are given their reset values. `root` is the second-stage root's physical address, `off` are the exits that the VM does without
    /// ([`crate::hv::exits`]).
    fn init(hw: &mut Self::Hw, resident: &Self::Resident, root: u64, off: u32) -> Result;

    /// The hardware runs guests that have paging off over page tables at a guest-physical address, which hold each address at itself.
    fn needs_identity_map() -> bool {
        false
    }
    /// Tells where they are; once, before [`Backend::set_modes`].
    fn set_identity_map(_hw: &mut Self::Hw, _gpa: u64) {}
    /// The hardware cannot run the guest in the state that it is in: the emulator has to.
    #[inline]
    fn emulates(_hw: &mut Self::Hw, _switch: &Switch) -> bool {
        false
    }

    /// The thread got a CPU. Preemption off.
    fn sched_in(resident: &Self::Resident, preempt: &PreemptOff);
    /// The thread loses its CPU. Preemption off.
    fn sched_out(resident: &Self::Resident, preempt: &PreemptOff);

    /// Runs the guest until its next exit; general registers, RIP and RFLAGS go in and out through `switch`.
    /// Exceptions, interrupts and NMIs of the host that ended the run are taken, or are pending, at return.
    fn enter(
        hw: &mut Self::Hw,
        resident: &Self::Resident,
        switch: &mut Switch,
        irq: &IrqOff,
    ) -> Self::Exit;
    /// Takes the interrupt of the host that ended the run, where the hardware acknowledged it rather than left it pending.
    /// Called after [`Backend::enter`], as soon as all of the host's state is back.
    fn take_interrupt(hw: &mut Self::Hw, irq: &IrqOff);
    /// What the next entry injects, and its error code, in the hardware's form: for tracing.
    fn entry_info(hw: &mut Self::Hw) -> (u32, u32);
    /// An exit in the hardware's form, right after it: for tracing.
    fn exit_info(hw: &mut Self::Hw, exit: &Self::Exit) -> trace::Exit;
    /// Deals with an exit.
    fn handle(cx: &mut Loaded<'_, Self>, exit: Self::Exit) -> Result<Flow>;
    /// The guest was entered: what the entry injected is gone, but for [`Backend::vectoring`].
    fn entered(_exit: &Self::Exit) -> bool {
        true
    }
    /// What the CPU was delivering when it exited (EXITINTINFO, IDT-vectoring information). Called right after each exit;
    /// also brings [`Backend::nmi_masked`] up to date.
    fn vectoring(hw: &mut Self::Hw, switch: &mut Switch, exit: &Self::Exit) -> Option<Vectoring>;
    /// The bytes of the instruction that accessed memory when the guest exited by a second-stage fault, and how many there are,
    /// where the CPU tells (AMD's decode assists).
    fn fetched_insn(hw: &mut Self::Hw) -> Option<([u8; MAX_INSN], usize)>;
    /// The guest's translations in the TLB are stale, on whatever CPU it runs next.
    fn flush_tlb(hw: &mut Self::Hw);
    /// What tests note of the entries.
    fn ledger(hw: &mut Self::Hw) -> &mut VcpuLedger;

    /// A segment register.
    fn segment(hw: &mut Self::Hw, seg: Seg) -> Segment;
    /// Sets a segment register.
    fn set_segment(hw: &mut Self::Hw, seg: Seg, value: Segment);
    /// TR or LDTR.
    fn sys_segment(hw: &mut Self::Hw, seg: SysSeg) -> Segment;
    /// Sets TR or LDTR.
    fn set_sys_segment(hw: &mut Self::Hw, seg: SysSeg, value: Segment);
    /// GDTR or IDTR.
    fn table(hw: &mut Self::Hw, table: Table) -> TableReg;
    /// Sets GDTR or IDTR.
    fn set_table(hw: &mut Self::Hw, table: Table, value: TableReg);
    /// CS.L: in long mode, the code is 64-bit code.
    fn cs_l(hw: &mut Self::Hw) -> bool;
    /// Current privilege level.
    fn cpl(hw: &mut Self::Hw) -> u8;
    /// CR3; the guest changes it without an exit.
    fn cr3(hw: &mut Self::Hw) -> u64;
    /// Sets CR3.
    fn set_cr3(hw: &mut Self::Hw, value: u64);
    /// CR8, where the guest reads it without an exit. Writes exit.
    fn set_cr8(hw: &mut Self::Hw, value: u64);
    /// Puts CR0, CR4 and EFER (all checked; LMA included) into effect together.
    fn set_modes(hw: &mut Self::Hw, cr0: u64, cr4: u64, efer: u64);
    /// The four PDPTEs of PAE paging; called only where [`Backend::PDPTRS_IN_CONTROL_BLOCK`].
    fn set_pdptrs(hw: &mut Self::Hw, pdptrs: [u64; 4]);
    /// The PDPTEs that the hardware uses; called only where [`Backend::PDPTRS_IN_CONTROL_BLOCK`].
    fn pdptrs(hw: &mut Self::Hw) -> [u64; 4];
    /// DR7, and DR6 where the hardware switches it.
    fn set_debug(hw: &mut Self::Hw, resident: &Self::Resident, dr6: u64, dr7: u64);
    /// INT3 exits (or no longer).
    fn set_breakpoint_exits(hw: &mut Self::Hw, on: bool);
    /// An MSR that hardware holds for the guest.
    fn hw_msr(hw: &mut Self::Hw, resident: &Self::Resident, msr: HwMsr) -> u64;
    /// Sets it; the value is checked.
    fn set_hw_msr(hw: &mut Self::Hw, resident: &Self::Resident, msr: HwMsr, value: u64);
    /// Whether the guest has RDTSCP (or RDPID) and INVPCID: an instruction that its CPUID lacks is undefined, though the CPU has it.
    fn set_instructions(hw: &mut Self::Hw, rdtscp: bool, invpcid: bool);
    /// Every access to a model-specific register exits (or no longer). Interrupts may be off.
    fn set_msr_exits(hw: &mut Self::Hw, all: bool);
    /// Which of these MSRs accesses do not exit for, as long as not all do.
    fn pass_msrs(hw: &mut Self::Hw, passed: Passed);
    /// The hardware switches SPEC_CTRL itself, so that the guest's is in [`Backend::hw_msr`]; else it is in the [`Switch`].
    fn holds_spec_ctrl(_hw: &Self::Hw) -> bool {
        false
    }
    /// Guest TSC = host TSC + offset.
    fn set_tsc_offset(hw: &mut Self::Hw, offset: u64);

    /// Binary places of the ratio by which the hardware scales the time-stamp counter; None: it does not.
    fn tsc_scale_places() -> Option<u8>;
    /// Guest TSC = host TSC times this ratio, plus the offset; 0: as it is. Called with others only where there are
    /// [`Backend::tsc_scale_places`].
    fn set_tsc_ratio(hw: &mut Self::Hw, ratio: u64);

    /// The interrupt shadow.
    fn shadow(hw: &mut Self::Hw) -> Shadow;
    /// Sets it.
    fn set_shadow(hw: &mut Self::Hw, shadow: Shadow);
    /// TF is set, and the trap that it caused is held back by the shadow of MOV SS: it comes behind the next instruction.
    fn hold_step(hw: &mut Self::Hw);
    /// Ends a halt that the hardware keeps over exits and entries, of a guest whose HLT does not exit.
    fn wake(hw: &mut Self::Hw);
    /// Makes the next entry deliver an event, which wakes the guest. `switch` holds the registers that it is entered with; RIP is at
    /// the instruction that raised the event, if one did. It is again after [`Backend::vectoring`] and [`Backend::cancel_injection`].
    fn inject(hw: &mut Self::Hw, switch: &mut Switch, event: Inject);
    /// Takes back what [`Backend::inject`] asked for: the entry did not happen.
    fn cancel_injection(hw: &mut Self::Hw, switch: &mut Switch);
    /// NMIs are blocked until the guest's next IRET.
    fn nmi_masked(hw: &mut Self::Hw) -> bool;
    /// Blocks or unblocks NMIs.
    fn set_nmi_masked(hw: &mut Self::Hw, masked: bool);
    /// Exit as soon as the guest can take an interrupt (or no longer).
    fn set_irq_window(hw: &mut Self::Hw, on: bool);
    /// Exit as soon as the guest can take an NMI (or no longer).
    fn set_nmi_window(hw: &mut Self::Hw, on: bool);
}
