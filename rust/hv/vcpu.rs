// SPDX-License-Identifier: GPL-2.0
//! A virtual CPU: its state, and lending it to one thread at a time.

use kernel::prelude::*;
use kernel::sync::Arc;

use crate::hv::backend::{Backend, Shadow};
use crate::hv::clock::VcpuClock;
use crate::hv::data_walk::Walks;
use crate::hv::debug::GuestDebug;
use crate::hv::fetch::Fetches;
use crate::hv::host;
use crate::hv::host_tsc::HostTsc;
use crate::hv::io::Pending;
use crate::hv::stats::Stat;
use crate::hv::tsc::{self, Tsc};
use crate::hv::user_run::UserRun;
use crate::hv::vm::{VcpuShared, Vm};
use crate::mmu::pages::TableCache;
use crate::model::cpuid::Entry;
use crate::model::cr::{dr6, dr7, efer, Mode};
use crate::model::emu::job::Job;
use crate::model::event::{vector, EventQueue, Exception};
use crate::model::features;
use crate::model::guest::GuestFeatures;
use crate::model::msr::{self, slot};
use crate::model::regs::{rflags, Context, Seg, Segments};
use crate::sys::cpu::{self, PreemptOff};
use crate::sys::fpu::GuestFpu;
use crate::sys::lock::KillableMutex;
use crate::sys::run_page::RunPages;
use crate::sys::sched::{Hooks, Notifier};
use crate::sys::switch::{self, Switch};

/// Control and debug registers as the guest sees them. CR3 is the hardware's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Controls {
    pub(crate) cr0: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
    pub(crate) xcr0: u64,
    pub(crate) dr: [u64; 4],
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
}

/// What belongs to the thread that has the vCPU loaded.
pub(crate) struct VcpuState<B: Backend> {
    /// General registers, RIP, RFLAGS, CR2 and what else software switches.
    pub(crate) switch: Switch,
    pub(crate) controls: Controls,
    pub(crate) cpuid: KVec<Entry>,
    pub(crate) features: GuestFeatures,
    /// Bits of the CPUID that follow registers are out of date.
    pub(crate) cpuid_dirty: bool,
    /// The MSRs that live in software, see `model::msr`.
    pub(crate) msrs: KBox<[u64; slot::COUNT]>,
    pub(crate) events: EventQueue,
    /// The hardware was asked to exit as soon as an interrupt or an NMI can be taken.
    pub(crate) windows: bool,
    pub(crate) fpu: GuestFpu,
    /// What the next KVM_RUN finishes before it enters the guest.
    pub(crate) pending: Pending,
    /// The instruction that is being emulated.
    pub(crate) job: KBox<Job>,
    /// What fetches found, for exits whose instruction the CPU does not describe.
    pub(crate) fetches: Fetches,
    /// What walks to data of emulated accesses found.
    pub(crate) walks: Walks,
    /// How user space debugs the guest.
    pub(crate) debug: GuestDebug,
    pub(crate) mp_state: u32,
    /// The signals blocked during KVM_RUN, if they are not the thread's own.
    pub(crate) signal_mask: Option<u64>,
    pub(crate) tsc: Tsc,
    pub(crate) clock: VcpuClock,
    /// The changes of the VM's MSR filter that are in effect.
    pub(crate) filters_seen: u64,
    pub(crate) cache: TableCache,
    /// The emulator ran the guest.
    pub(crate) was_emulated: bool,
    /// The hardware's part, last.
    pub(crate) hw: B::Hw,
}

/// The shared pages, which the descriptor's mapping needs too.
pub(crate) type UserRunRef = Arc<UserRun>;

/// A virtual CPU.
#[pin_data]
pub(crate) struct Vcpu<B: Backend> {
    pub(crate) shared: Arc<VcpuShared>,
    pub(crate) run: UserRunRef,
    residency: Residency<B>,
    #[pin]
    notifier: Notifier,
    #[pin]
    state: KillableMutex<KBox<VcpuState<B>>>,
}

/// What the scheduler's callbacks see.
struct Residency<B: Backend> {
    hw: B::Resident,
    host_tsc: HostTsc,
}

impl<B: Backend> Hooks for Residency<B> {
    fn sched_in(&self, preempt: &PreemptOff) {
        self.host_tsc.arrive();
        B::sched_in(&self.hw, preempt);
    }
    fn sched_out(&self, preempt: &PreemptOff) {
        B::sched_out(&self.hw, preempt);
        self.host_tsc.leave();
    }
}

/// A vCPU whose state this thread holds and whose hardware state is loaded on the CPU it runs on, whichever that is.
pub(crate) struct Loaded<'a, B: Backend> {
    pub(crate) vm: &'a Vm<B>,
    pub(crate) shared: &'a VcpuShared,
    pub(crate) resident: &'a B::Resident,
    pub(crate) host_tsc: &'a HostTsc,
    pub(crate) run: &'a UserRun,
    pub(crate) state: &'a mut VcpuState<B>,
}

/// Room for instructions to be emulated. (Not inlined: its stack frame is large.)
#[inline(never)]
fn idle_job() -> Result<KBox<Job>> {
    Ok(KBox::new(Job::idle(), GFP_KERNEL_ACCOUNT)?)
}

impl<B: Backend> VcpuState<B> {
    /// The state of a new vCPU, before its registers are reset. (Not inlined: its stack frame is large.)
    #[inline(never)]
    fn new(hw: B::Hw, id: u32) -> Result<KBox<Self>> {
        let caps = host::caps()?;
        let mut msrs = KBox::new([0; slot::COUNT], GFP_KERNEL_ACCOUNT)?;
        msr::reset(&mut *msrs, caps, id == 0);
        KBox::try_init::<Error>(
            try_init!(Self {
                switch: Switch::default(),
                controls: Controls {
                    cr0: 0,
                    cr4: 0,
                    cr8: 0,
                    efer: 0,
                    xcr0: 1,
                    dr: [0; 4],
                    dr6: dr6::RESET,
                    dr7: dr7::RESET,
                },
                cpuid: KVec::new(),
                features: GuestFeatures::derive(&[], caps),
                cpuid_dirty: true,
                msrs,
                events: EventQueue::new(),
                windows: false,
                fpu: GuestFpu::new()?,
                pending: Pending::None,
                job: idle_job()?,
                fetches: Fetches::new(),
                walks: Walks::new(),
                signal_mask: None,
                debug: GuestDebug::default(),
                mp_state: crate::uapi::KVM_MP_STATE_RUNNABLE,
                tsc: Tsc::new(),
                clock: VcpuClock::default(),
                filters_seen: 0,
                cache: TableCache::new(),
                was_emulated: false,
                hw,
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

impl<B: Backend> Vcpu<B> {
    /// A vCPU in its state after reset.
    /// `identity` is where the page tables of guests without paging are, if the hardware needs them.
    /// (Not inlined: its stack frame is large.)
    #[inline(never)]
    pub(crate) fn new(
        vm: &Vm<B>,
        id: u32,
        shared: Arc<VcpuShared>,
        identity: Option<u64>,
    ) -> Result<Arc<Self>> {
        let (hw, resident) = B::new_vcpu()?;
        let run = Arc::new(
            UserRun {
                pages: RunPages::new()?,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        let state = VcpuState::new(hw, id)?;
        let vcpu = Arc::pin_init(
            pin_init!(Self {
                shared,
                run,
                residency: Residency { hw: resident, host_tsc: HostTsc::new() },
                notifier <- Notifier::new(),
                state <- KillableMutex::new(state, c"lodge_vcpu", kernel::static_lock_class!()),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        vcpu.with_loaded(vm, |cx| {
            let off = vm.policy.disabled_exits();
            B::init(&mut cx.state.hw, cx.resident, vm.mmu.root(), off)?;
            if let Some(gpa) = identity {
                B::set_identity_map(&mut cx.state.hw, gpa);
            }
            cx.update_instructions();
            cx.reset();
            // A rate that cannot be made is not followed, as in KVM.
            let _refused = cx.set_tsc_rate(tsc::default_khz(vm));
            cx.synchronize_tsc(None);
            Ok(())
        })?;
        Ok(vcpu)
    }

    /// Runs `body` with the vCPU locked, which is enough for what is in memory. EINTR when the task is killed while another holds it.
    pub(crate) fn with_locked<R>(
        &self,
        body: impl FnOnce(&mut VcpuState<B>) -> Result<R>,
    ) -> Result<R> {
        body(&mut *self.state.lock()?)
    }

    /// Runs `body` with the vCPU locked and loaded. EINTR when the task is killed while another holds it.
    #[inline]
    pub(crate) fn with_loaded<R>(
        &self,
        vm: &Vm<B>,
        body: impl FnOnce(&mut Loaded<'_, B>) -> Result<R>,
    ) -> Result<R> {
        let mut state = self.state.lock()?;
        let mut cx = Loaded {
            vm,
            shared: &self.shared,
            resident: &self.residency.hw,
            host_tsc: &self.residency.host_tsc,
            run: &self.run,
            state: &mut state,
        };
        self.notifier.run(&self.residency, &mut cx, |cx| {
            if cx.host_tsc.changed() {
                cx.follow_host_tsc();
            }
            body(cx)
        })
    }
}

impl<B: Backend> Loaded<'_, B> {
    /// The registers that decide what a control-register write may do.
    pub(crate) fn mode(&mut self) -> Mode {
        let c = self.state.controls;
        Mode {
            cr0: c.cr0,
            cr3: B::cr3(&mut self.state.hw),
            cr4: c.cr4,
            efer: c.efer,
            cs_l: B::cs_l(&mut self.state.hw),
        }
    }

    /// The guest executes 64-bit code.
    #[inline]
    pub(crate) fn is_64bit(&mut self) -> bool {
        self.state.controls.efer & efer::LMA != 0 && B::cs_l(&mut self.state.hw)
    }

    /// Everything besides the registers that decides what an instruction does.
    pub(crate) fn context(&mut self) -> Context {
        let hw = &mut self.state.hw;
        Context {
            segs: Segments::each(|seg| B::segment(hw, seg)),
            cr0: self.state.controls.cr0,
            cr4: self.state.controls.cr4,
            efer: self.state.controls.efer,
            cpl: B::cpl(hw),
            cpu: self.state.features.instructions(),
        }
    }

    /// Moves RIP over an instruction of `len` bytes that was emulated, and ends the interrupt shadow and RFLAGS.RF. A guest that
    /// single-steps gets its #DB.
    #[inline]
    pub(crate) fn skip(&mut self, len: u8) {
        if self.state.switch.regs.rflags & rflags::TF != 0 {
            self.raise(Exception::debug(dr6::BS));
        }
        let rip = self.state.switch.regs.rip.wrapping_add(u64::from(len));
        self.state.switch.regs.rip = if self.is_64bit() {
            rip
        } else {
            rip & 0xffff_ffff
        };
        // It is for one instruction, and where that exits a CPU may leave it.
        self.state.switch.regs.rflags &= !rflags::RF;
        B::set_shadow(&mut self.state.hw, Shadow::default());
    }

    /// RIP as a linear address.
    #[inline]
    pub(crate) fn linear_rip(&mut self) -> u64 {
        let rip = self.state.switch.regs.rip;
        if self.is_64bit() {
            rip
        } else {
            B::segment(&mut self.state.hw, Seg::Cs)
                .base
                .wrapping_add(rip)
                & 0xffff_ffff
        }
    }

    /// Runs `body` with the guest's FPU registers loaded in place of the thread's.
    pub(crate) fn with_guest_fpu<R>(&mut self, body: impl FnOnce(&mut Self) -> R) -> R {
        self.count(Stat::FpuReload);
        self.state.fpu.load();
        let result = body(self);
        self.state.fpu.unload();
        result
    }

    /// Raises an exception in the guest; a #DB may be for who debugs it.
    pub(crate) fn raise(&mut self, e: Exception) {
        if let (vector::DB, Some(payload)) = (e.vector, e.payload) {
            if self.stop_for_debugger(payload) {
                return;
            }
        }
        self.state.events.raise(e);
    }

    /// Raises #GP(0).
    pub(crate) fn raise_gp(&mut self) {
        self.raise(Exception::protection(0));
    }

    /// Takes instructions and MSRs that the guest's CPUID lacks away. Call after a change of CPUID.
    pub(crate) fn update_instructions(&mut self) {
        let f = &self.state.features;
        let (tsc_aux, invpcid) = (
            f.has(features::RDTSCP) || f.has(features::RDPID),
            f.has(features::INVPCID),
        );
        B::set_instructions(&mut self.state.hw, tsc_aux, invpcid);
        self.pass_msrs();
    }

    /// Brings what depends on several registers up to date: call after a change of CR0, CR4, EFER, XCR0, DR7 or CPUID.
    pub(crate) fn update_switch(&mut self) {
        use crate::model::cr::{cr4, xcr0};
        let c = &self.state.controls;
        let sw = &mut self.state.switch;
        let mut flags = 0;
        // What the host has is asked for only where it matters: each answer is a call.
        if c.cr4 & cr4::OSXSAVE != 0 {
            sw.host_xcr0 = cpu::host_xcr0();
            if c.xcr0 != sw.host_xcr0 {
                flags |= switch::XCR0;
            }
            if self.state.features.reaches_host_xss() {
                sw.host_xss = cpu::host_xss();
                if sw.host_xss != 0 {
                    flags |= switch::XSS;
                }
            }
        }
        if (c.cr4 & cr4::PKE != 0 || c.xcr0 & xcr0::PKRU != 0) && cpu::has_pku() {
            flags |= switch::PKRU;
        }
        let (dr, d7) = self.state.debug.breakpoints().unwrap_or((c.dr, c.dr7));
        if d7 & dr7::ENABLES != 0 {
            flags |= switch::DR;
        }
        sw.flags = flags;
        sw.xcr0 = c.xcr0;
        sw.dr = dr;
        // What the hardware tells of a #DB that is for the debugger is to be of that #DB alone.
        let d6 = if self.state.debug.on() {
            dr6::RESET
        } else {
            c.dr6
        };
        B::set_debug(&mut self.state.hw, self.resident, d6, d7);
    }
}
