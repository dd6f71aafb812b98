// SPDX-License-Identifier: GPL-2.0
//! Micro-guests: a VM with some memory, one vCPU in a chosen mode, descriptor tables, page tables and assembled code.
//!
//! A guest talks to its test by port writes: `out PORT_VALUE, eax` reports a number, `hlt` ends. Every exception and
//! interrupt arrives at a stub that pushes (an error code of 0 where the CPU pushes none and) the vector and writes
//! PORT_TRAP; `trap()` then reads the frame from the guest's stack.

use crate::kvm::{Exit, Kvm, Vcpu, Vm};
use crate::record;
use crate::sys::{self, Map};
use iced_x86::code_asm::*;
use kvm_bindings::*;

/// Bytes of guest memory of an ordinary micro-guest: slot 0 at address 0.
pub const MEM: usize = 4 << 20;
/// Where the GDT lies.
pub const GDT: u64 = 0x1000;
/// Where the IDT lies (in real mode the vectors are at 0).
pub const IDT: u64 = 0x2000;
/// The task-state segment.
pub const TSS: u64 = 0x3000;
/// The exception stubs, 16 bytes each.
pub const STUBS: u64 = 0x4000;
/// Top of the stack.
pub const STACK: u64 = 0x7f00;
/// Where code is loaded.
pub const CODE: u64 = 0x8000;
/// Page tables: PML4, PDPT, four PDs (an identity map of 4 GiB).
pub const PML4: u64 = 0x1_0000;
/// Page-directory-pointer table.
pub const PDPT: u64 = 0x1_1000;
/// First page directory.
pub const PD: u64 = 0x1_2000;
/// Free memory for a test's data.
pub const DATA: u64 = 0x2_0000;
/// An address without memory, in reach of 32-bit code.
pub const MMIO: u64 = 0xd000_0000;
/// Port by which a guest reports a value.
pub const PORT_VALUE: u8 = 0xf0;
/// Port by which a stub reports a trap.
pub const PORT_TRAP: u8 = 0xee;

/// Selectors in the GDT.
pub const CODE_SEL: u16 = 0x08;
/// Flat data.
pub const DATA_SEL: u16 = 0x10;
/// 64-bit code.
pub const CODE64_SEL: u16 = 0x18;
/// The TSS.
pub const TSS_SEL: u16 = 0x20;
/// 16-bit code and data, base 0, limit 64 KiB.
pub const CODE16_SEL: u16 = 0x30;
/// 16-bit data.
pub const DATA16_SEL: u16 = 0x38;

/// The mode in which a micro-guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode.
    Real,
    /// 32-bit protected mode without paging.
    Prot,
    /// 32-bit with two-level paging and 4 MiB pages.
    Paged,
    /// 32-bit with PAE paging.
    Pae,
    /// 64-bit.
    Long,
}

impl Mode {
    /// All modes.
    pub const ALL: [Mode; 5] = [Mode::Real, Mode::Prot, Mode::Paged, Mode::Pae, Mode::Long];
    /// Bits of its code.
    pub fn bits(self) -> u32 {
        match self {
            Mode::Real => 16,
            Mode::Long => 64,
            _ => 32,
        }
    }
}

/// An exception or interrupt that arrived at a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Vector.
    pub vector: u8,
    /// Error code, 0 if there is none.
    pub error: u32,
    /// The saved instruction pointer.
    pub ip: u64,
    /// The saved flags.
    pub flags: u64,
}

/// A micro-guest.
pub struct Guest {
    /// The vCPU. Declared first: it is closed first.
    pub cpu: Vcpu,
    /// The VM.
    pub vm: Vm,
    /// The system descriptor.
    pub kvm: Kvm,
    /// The memory at address 0.
    pub mem: Map,
    /// The mode it was started in.
    pub mode: Mode,
}

fn seg(selector: u16, type_: u8, s: u8, db: u8, l: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s,
        l,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// A code segment of 32 or 64 bits.
pub fn code_seg(long: bool) -> kvm_segment {
    let (sel, db, l) = if long {
        (CODE64_SEL, 0, 1)
    } else {
        (CODE_SEL, 1, 0)
    };
    seg(sel, 11, 1, db, l)
}

/// The flat data segment.
pub fn data_seg() -> kvm_segment {
    seg(DATA_SEL, 3, 1, 1, 0)
}

fn pushes_error(vector: u32) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

impl Guest {
    /// A guest in `mode` with the usual memory, the supported CPUID and tables set up.
    pub fn new(mode: Mode) -> Self {
        let kvm = Kvm::open();
        let vm = kvm.vm();
        Self::with_vm(kvm, vm, mode)
    }

    /// The same on a VM of the caller's, whose slot 0 is taken for the memory.
    pub fn with_vm(kvm: Kvm, vm: Vm, mode: Mode) -> Self {
        let mem = Map::anon(MEM);
        crate::must!(vm.region(0, 0, 0, MEM as u64, mem.addr()));
        // Intel without unrestricted guest support needs these; the others ignore them.
        let _ = sys::ioctl(
            vm.fd.0.raw(),
            crate::kvm::SET_TSS_ADDR,
            sys::Arg::Num(0xfffb_d000),
        );
        let cpu = vm.vcpu(0);
        cpu.use_supported_cpuid(&kvm);
        let g = Self {
            cpu,
            vm,
            kvm,
            mem,
            mode,
        };
        g.tables();
        record::muted(|| g.enter_mode(&g.cpu));
        g
    }

    /// Another vCPU of this VM, in the same mode at the same entry.
    pub fn second_vcpu(&self, id: u64) -> Vcpu {
        let cpu = self.vm.vcpu(id);
        cpu.use_supported_cpuid(&self.kvm);
        record::muted(|| self.enter_mode(&cpu));
        cpu
    }

    fn tables(&self) {
        let m = &self.mem;
        let gdt = [
            0,
            0x00cf_9b00_0000_ffffu64,
            0x00cf_9300_0000_ffff,
            0x00af_9b00_0000_ffff,
            0x0000_8b00_3000_0067,
            0,
            0x0000_9b00_0000_ffff,
            0x0000_9300_0000_ffff,
        ];
        for (i, d) in gdt.iter().enumerate() {
            m.wr(GDT as usize + 8 * i, *d);
        }
        for v in 0..256u32 {
            self.stub(v);
            self.gate(v, STUBS + 16 * u64::from(v));
        }
        match self.mode {
            Mode::Long => {
                m.wr(PML4 as usize, PDPT | 7);
                for i in 0..4 {
                    m.wr((PDPT + 8 * i) as usize, (PD + 4096 * i) | 7);
                }
            }
            Mode::Pae => {
                for i in 0..4 {
                    m.wr((PDPT + 8 * i) as usize, (PD + 4096 * i) | 1);
                }
            }
            Mode::Paged => {
                for i in 0..1024u64 {
                    m.wr((PML4 + 4 * i) as usize, ((i << 22) | 0x87) as u32);
                }
            }
            _ => {}
        }
        if matches!(self.mode, Mode::Long | Mode::Pae) {
            for i in 0..2048u64 {
                m.wr((PD + 8 * i) as usize, (i << 21) | 0x87);
            }
        }
    }

    fn stub(&self, v: u32) {
        let mut code = Vec::new();
        if !pushes_error(v) || self.mode == Mode::Real {
            code.extend([0x6a, 0]);
        }
        if self.mode == Mode::Real {
            code.extend([0x68, v as u8, 0]);
        } else {
            code.extend([0x68, v as u8, 0, 0, 0]);
        }
        code.extend([0xe6, PORT_TRAP, 0xf4]);
        self.mem.write((STUBS + 16 * u64::from(v)) as usize, &code);
    }

    /// Points vector `v` at `target`.
    pub fn gate(&self, v: u32, target: u64) {
        let (lo, hi) = (target & 0xffff, (target >> 16) & 0xffff);
        let v = v as usize;
        match self.mode {
            Mode::Real => self.mem.wr(4 * v, target as u32 & 0xffff),
            Mode::Long => {
                self.mem.wr(
                    IDT as usize + 16 * v,
                    lo | (u64::from(CODE64_SEL) << 16) | (0x8e00 << 32) | (hi << 48),
                );
                self.mem.wr(IDT as usize + 16 * v + 8, target >> 32);
            }
            _ => self.mem.wr(
                IDT as usize + 8 * v,
                lo | (u64::from(CODE_SEL) << 16) | (0x8e00 << 32) | (hi << 48),
            ),
        }
    }

    /// Puts `cpu` in the mode of this guest, at CODE with the stack at STACK.
    pub fn enter_mode(&self, cpu: &Vcpu) {
        let mut s = cpu.sregs();
        if self.mode == Mode::Real {
            s.cs.base = 0;
            s.cs.selector = 0;
        } else {
            let (code, data) = (code_seg(self.mode == Mode::Long), data_seg());
            s.cs = code;
            (s.ds, s.es, s.fs, s.gs, s.ss) = (data, data, data, data, data);
            s.gdt = kvm_dtable {
                base: GDT,
                limit: 0x3f,
                padding: [0; 3],
            };
            let idt = if self.mode == Mode::Long {
                0xfff
            } else {
                0x7ff
            };
            s.idt = kvm_dtable {
                base: IDT,
                limit: idt,
                padding: [0; 3],
            };
            s.tr = kvm_segment {
                base: TSS,
                limit: 0x67,
                g: 0,
                ..seg(TSS_SEL, 11, 0, 0, 0)
            };
            s.cr0 = 0x11;
        }
        match self.mode {
            Mode::Paged => (s.cr3, s.cr4, s.cr0) = (PML4, 0x10, 0x8000_0011),
            Mode::Pae => (s.cr3, s.cr4, s.cr0) = (PDPT, 0x20, 0x8000_0011),
            Mode::Long => (s.cr3, s.cr4, s.cr0, s.efer) = (PML4, 0x20, 0x8000_0011, 0x500),
            _ => {}
        }
        cpu.set_sregs(&s);
        let r = kvm_regs {
            rip: CODE,
            rsp: STACK,
            rflags: 2,
            ..Default::default()
        };
        cpu.set_regs(&r);
    }

    /// Puts the vCPU of a 64-bit guest at privilege level 3, with segments of that in the GDT and a stack for level 0.
    pub fn to_user(&self) {
        const CODE_DESCRIPTOR: u64 = 0x00af_fb00_0000_ffff;
        const DATA_DESCRIPTOR: u64 = 0x00cf_f300_0000_ffff;
        let mut s = self.cpu.sregs();
        s.cs.dpl = 3;
        s.cs.selector = 0x4b;
        for d in [&mut s.ss, &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs] {
            d.dpl = 3;
            d.selector = 0x53;
        }
        s.gdt.limit = 0x5f;
        self.cpu.set_sregs(&s);
        self.mem.wr(GDT as usize + 0x48, CODE_DESCRIPTOR);
        self.mem.wr(GDT as usize + 0x50, DATA_DESCRIPTOR);
        self.mem.wr(TSS as usize + 4, 0x7000u64);
        // The map of the TSS is beyond its limit.
        self.mem.wr(TSS as usize + 0x66, 0x68u16);
    }

    /// Assembles and loads code at `at`.
    pub fn load_at(&self, at: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let code = assemble(self.mode.bits(), at, f);
        self.mem.write(at as usize, &code);
    }

    /// Assembles and loads the code that the guest starts with.
    pub fn load(&self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.load_at(CODE, f);
    }

    /// KVM_RUN until something else than a reported value; the values are appended to `vals`.
    pub fn run_values(&self, vals: &mut Vec<u32>) -> Exit {
        loop {
            match self.cpu.run() {
                Exit::Io {
                    out: true,
                    size,
                    port,
                    count: 1,
                    data,
                } if port == u16::from(PORT_VALUE) => {
                    let mut v = [0u8; 4];
                    v[..usize::from(size)].copy_from_slice(&data);
                    vals.push(u32::from_le_bytes(v));
                }
                e => return e,
            }
        }
    }

    /// Runs to the final HLT and gives the values that were reported; any other exit ends the test.
    pub fn values(&self) -> Vec<u32> {
        let mut v = Vec::new();
        match self.run_values(&mut v) {
            Exit::Hlt => v,
            e => panic!(
                "{:?} guest stopped with {e:x?} after {v:x?}{}",
                self.mode,
                self.describe()
            ),
        }
    }

    /// Where it stands, for messages.
    pub fn describe(&self) -> String {
        let r = self.cpu.regs();
        let at = r.rip as usize;
        let code = if at + 8 <= MEM {
            self.mem.read(at, 8)
        } else {
            Vec::new()
        };
        let trap = if at >= STUBS as usize && at < STUBS as usize + 4096 {
            format!(" {:x?}", self.trap())
        } else {
            String::new()
        };
        format!(
            " at {:#x} ({code:02x?}), rflags {:#x}, rsp {:#x}{trap}",
            r.rip, r.rflags, r.rsp
        )
    }

    /// The trap frame at the top of the guest's stack.
    pub fn trap(&self) -> Trap {
        let top = self.cpu.regs().rsp as usize;
        let m = &self.mem;
        match self.mode {
            Mode::Real => Trap {
                vector: m.rd::<u16>(top) as u8,
                error: 0,
                ip: m.rd::<u16>(top + 4).into(),
                flags: m.rd::<u16>(top + 8).into(),
            },
            Mode::Long => Trap {
                vector: m.rd::<u64>(top) as u8,
                error: m.rd(top + 8),
                ip: m.rd(top + 16),
                flags: m.rd(top + 32),
            },
            _ => Trap {
                vector: m.rd::<u32>(top) as u8,
                error: m.rd(top + 4),
                ip: m.rd::<u32>(top + 8).into(),
                flags: m.rd::<u32>(top + 16).into(),
            },
        }
    }

    /// Runs and expects a trap.
    pub fn run_to_trap(&self) -> Trap {
        match self.cpu.run() {
            Exit::Io {
                out: true, port, ..
            } if port == u16::from(PORT_TRAP) => self.trap(),
            e => panic!("expected a trap, got {e:x?}{}", self.describe()),
        }
    }

    /// Runs and expects `want`.
    pub fn expect(&self, want: &Exit) {
        let got = self.cpu.run();
        crate::eq!(&got, want, "{}", self.describe());
    }
}

/// Prepares a vCPU to run for long without exits. Bochs 3.0 keeps the host's interrupts pending for as long as a
/// guest runs with IF clear, so it is set wherever this is not TCG.
pub fn will_spin(cpu: &Vcpu) {
    if !sys::on_tcg() {
        let mut r = cpu.regs();
        r.rflags |= 0x200;
        cpu.set_regs(&r);
    }
}

/// A one-byte or larger port write.
pub fn out(port: u16, data: &[u8]) -> Exit {
    Exit::Io {
        out: true,
        size: data.len() as u8,
        port,
        count: 1,
        data: data.to_vec(),
    }
}

/// A port read.
pub fn inp(port: u16, size: u8) -> Exit {
    Exit::Io {
        out: false,
        size,
        port,
        count: 1,
        data: Vec::new(),
    }
}

/// Assembles a piece of code.
pub fn assemble(
    bits: u32,
    at: u64,
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("a bitness of 16, 32 or 64");
    f(&mut a).expect("an instruction that exists in this mode");
    a.assemble(at).expect("labels in reach")
}
