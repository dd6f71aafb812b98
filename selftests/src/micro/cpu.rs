// SPDX-License-Identifier: GPL-2.0
//! CPUID and MSRs as the guest sees them, XSETBV, the time-stamp counter, and instructions that KVM must answer.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, zeroed};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/hidden_instructions", hidden_instructions),
    Test::new("micro/cpuid_as_set", cpuid_as_set).secs(40),
    Test::new("micro/cpuid_odd_leaves", cpuid_odd_leaves),
    Test::new("micro/cpuid_dynamic_bits", cpuid_dynamic),
    Test::new("micro/msr_unknown", msr_unknown),
    Test::new("micro/msr_round_trip", msr_round_trip),
    Test::new("micro/msr_not_canonical", msr_not_canonical),
    Test::new("micro/msr_efer", msr_efer),
    Test::new("micro/syscall", syscall),
    Test::new("micro/swapgs", swapgs),
    Test::new("micro/xsetbv", xsetbv),
    Test::new("micro/tsc_monotonic", tsc_monotonic).no_ab(),
    Test::new("micro/tsc_written", tsc_written).no_ab(),
    Test::new("micro/vmx_svm_instructions", virtualization),
    Test::new("micro/hypercall", hypercall),
    Test::new("micro/hypercall_of_other_vendor", hypercall_foreign),
    Test::new("micro/invlpg_wbinvd_pause", harmless),
];

/// The guest executes CPUID for each pair it is given in a table, and stores what it gets.
fn ask(g: &Guest, leaves: &[(u32, u32)]) -> Vec<[u32; 4]> {
    let (table, result) = (DATA, DATA + 0x1_0000);
    for (i, (f, x)) in leaves.iter().enumerate() {
        g.mem.wr(table as usize + 8 * i, *f);
        g.mem.wr(table as usize + 8 * i + 4, *x);
    }
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(esi, table as u32)?;
        a.mov(edi, result as u32)?;
        a.mov(ebp, leaves.len() as u32)?;
        a.set_label(&mut top)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(ecx, dword_ptr(rsi + 4))?;
        a.cpuid()?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(dword_ptr(rdi + 4), ebx)?;
        a.mov(dword_ptr(rdi + 8), ecx)?;
        a.mov(dword_ptr(rdi + 12), edx)?;
        a.add(rsi, 8)?;
        a.add(rdi, 16)?;
        a.dec(ebp)?;
        a.jne(top)?;
        a.hlt()
    });
    eq!(g.values(), vec![]);
    (0..leaves.len())
        .map(|i| g.mem.rd(result as usize + 16 * i))
        .collect()
}

fn cpuid_as_set() {
    let g = Guest::new(Mode::Long);
    let mut set: Box<CpuidBuf> = Box::new(zeroed());
    set.nent = MAX_ENTRIES as u32;
    crate::must!(crate::sys::ioctl_with(
        g.cpu.fd.0.raw(),
        GET_CPUID2,
        &mut *set
    ));
    let entries = &set.entries[..set.nent as usize];
    let leaves: Vec<(u32, u32)> = entries.iter().map(|e| (e.function, e.index)).collect();
    for (e, r) in entries.iter().zip(ask(&g, &leaves)) {
        eq!(
            r,
            [e.eax, e.ebx, e.ecx, e.edx],
            "leaf {:x}.{:x}",
            e.function,
            e.index
        );
    }
}

fn cpuid_odd_leaves() {
    let g = Guest::new(Mode::Long);
    let c = g.second_vcpu(1);
    drop(c);
    let mut set = g.kvm.cpuid();
    let n = set.nent as usize;
    set.entries[n] = kvm_cpuid_entry2 {
        function: 0x4000_0f01,
        eax: 1,
        ebx: 2,
        ecx: 3,
        edx: 4,
        ..zeroed()
    };
    // A leaf of which only some indices are there.
    set.entries[n + 1] = kvm_cpuid_entry2 {
        function: 0x4000_0f02,
        index: 3,
        flags: 1,
        eax: 5,
        ebx: 6,
        ecx: 7,
        edx: 8,
        ..zeroed()
    };
    set.nent += 2;
    let g = Guest::new(Mode::Long);
    crate::must!(g.cpu.fd.give(SET_CPUID2, &*set));
    let r = ask(
        &g,
        &[
            (0x4000_0f01, 0),
            (0x4000_0f01, 9),
            (0x4000_0f02, 3),
            (0x4000_0f02, 2),
            (0x1234_5678, 0),
        ],
    );
    eq!(r[0], [1, 2, 3, 4]);
    eq!(r[1], [1, 2, 3, 4], "the index does not matter");
    eq!(r[2], [5, 6, 7, 8]);
    // Beyond the last leaf an AMD guest gets 0, an Intel guest the last basic leaf.
    let amd = set.entries[0].ebx == u32::from_le_bytes(*b"Auth");
    if amd {
        eq!(r[3], [0; 4], "an index that is not there");
        eq!(r[4], [0; 4]);
    }
    crate::record::line("leaf beyond the last", "", &format!("{:x?}", r[4]), "");
    // No CPUID at all.
    let g = Guest::new(Mode::Long);
    set.nent = 0;
    crate::must!(g.cpu.fd.give(SET_CPUID2, &*set));
    eq!(
        ask(&g, &[(0, 0), (1, 0), (0x8000_0000, 0)]),
        vec![[0; 4]; 3]
    );
}

fn cpuid_dynamic() {
    let g = Guest::new(Mode::Long);
    let probe = ask(&g, &[(1, 0)]);
    if (probe[0][2] >> 26) & 1 == 0 {
        harness::skip("no XSAVE on this CPU");
    }
    eq!((probe[0][2] >> 27) & 1, 0, "OSXSAVE before");
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(rax, cr4)?;
        a.or(rax, 1 << 18)?;
        a.mov(cr4, rax)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.shr(ecx, 27)?;
        a.and(ecx, 1)?;
        a.mov(eax, ecx)?;
        a.out(0xf0, eax)?;
        a.mov(rax, cr4)?;
        a.and(rax, !(1 << 18))?;
        a.mov(cr4, rax)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.shr(ecx, 27)?;
        a.and(ecx, 1)?;
        a.mov(eax, ecx)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    eq!(g.values(), vec![1, 0], "OSXSAVE follows CR4");
}

fn msr_unknown() {
    for mode in [Mode::Real, Mode::Prot, Mode::Long] {
        for write in [false, true] {
            let g = Guest::new(mode);
            g.load(|a| {
                a.mov(ecx, 0x1234_5678)?;
                if write {
                    a.wrmsr()
                } else {
                    a.rdmsr()
                }
            });
            let t = g.run_to_trap();
            eq!(
                (t.vector, t.error, t.ip),
                (13, 0, CODE + if mode == Mode::Real { 6 } else { 5 }),
                "{mode:?} write {write}"
            );
        }
    }
}

fn msr_round_trip() {
    let g = Guest::new(Mode::Long);
    let list: [(u32, u64); 9] = [
        (0xc000_0081, 0x0023_0010_0000_0000),
        (0xc000_0082, 0xffff_ffff_8123_4567),
        (0xc000_0083, 0xffff_ffff_8123_0000),
        (0xc000_0084, 0x4_7700),
        (0xc000_0100, 0x7fff_0000_1000),
        (0xc000_0102, 0xffff_8880_0000_1000),
        (0x174, 0x10),
        (0x175, 0xfe00_1000),
        (0x176, 0x8100_1000),
    ];
    for (i, (m, v)) in list.iter().enumerate() {
        g.mem.wr(DATA as usize + 16 * i, *m);
        g.mem.wr(DATA as usize + 16 * i + 8, *v);
    }
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(esi, DATA as u32)?;
        a.mov(ebp, list.len() as u32)?;
        a.set_label(&mut top)?;
        a.mov(ecx, dword_ptr(rsi))?;
        a.mov(eax, dword_ptr(rsi + 8))?;
        a.mov(edx, dword_ptr(rsi + 12))?;
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.rdmsr()?;
        a.mov(dword_ptr(rsi + 0x1000), eax)?;
        a.mov(dword_ptr(rsi + 0x1004), edx)?;
        a.add(rsi, 16)?;
        a.dec(ebp)?;
        a.jne(top)?;
        a.hlt()
    });
    eq!(g.values(), vec![]);
    for (i, (m, v)) in list.iter().enumerate() {
        eq!(
            g.mem.rd::<u64>(DATA as usize + 0x1000 + 16 * i),
            *v,
            "MSR {m:x} as the guest reads it"
        );
        eq!(g.cpu.msr(*m), Some(*v), "MSR {m:x} as the host reads it");
    }
    eq!(
        g.cpu.sregs().fs.base,
        0x7fff_0000_1000,
        "FS_BASE is the segment's base"
    );
    // The other way: set by the host, read by the guest.
    check!(g.cpu.set_msr(0xc000_0082, 0x1234_5678), "LSTAR");
    g.load(|a| {
        a.mov(ecx, 0xc000_0082u32)?;
        a.rdmsr()?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    let mut r = g.cpu.regs();
    r.rip = CODE;
    g.cpu.set_regs(&r);
    eq!(g.values(), vec![0x1234_5678]);
}

fn msr_not_canonical() {
    for msr in [
        0xc000_0082u32,
        0xc000_0083,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
    ] {
        let g = Guest::new(Mode::Long);
        g.load(|a| {
            a.mov(ecx, msr)?;
            a.mov(edx, 0x8000)?;
            a.wrmsr()?;
            a.hlt()
        });
        match g.cpu.run() {
            Exit::Io { port: 0xee, .. } => {
                eq!((g.trap().vector, g.trap().error), (13, 0), "MSR {msr:x}")
            }
            // TCG does not check those that pass through to it.
            e => check!(
                e == Exit::Hlt && crate::sys::on_tcg(),
                "MSR {msr:x}: {e:x?}"
            ),
        }
    }
}

fn msr_efer() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.out(0xf0, eax)?;
        a.or(eax, 0x801)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.out(0xf0, eax)?;
        // LME cannot be cleared while paging is on.
        a.and(eax, !0x100)?;
        a.wrmsr()
    });
    let mut v = Vec::new();
    let e = g.run_values(&mut v);
    eq!(v, vec![0x500, 0xd01]);
    check!(matches!(e, Exit::Io { port: 0xee, .. }), "{e:x?}");
    eq!((g.trap().vector, g.trap().error), (13, 0));
    eq!(g.cpu.sregs().efer, 0xd01);
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, 0x700)?;
        a.xor(edx, edx)?;
        a.wrmsr()
    });
    eq!(g.run_to_trap().vector, 13, "a reserved bit");
}

fn syscall() {
    // The SYSCALL MSRs of the guest are in force in the guest, and the host's in the host.
    let g = Guest::new(Mode::Long);
    let mut s = g.cpu.sregs();
    s.efer |= 1;
    g.cpu.set_sregs(&s);
    check!(g.cpu.set_msr(0xc000_0081, 0x0018_0018_0000_0000), "STAR");
    check!(g.cpu.set_msr(0xc000_0082, 0xa000), "LSTAR");
    check!(g.cpu.set_msr(0xc000_0084, 0x200), "FMASK");
    g.load(|a| {
        a.out(0x10, al)?;
        a.syscall()?;
        a.ud2()
    });
    g.load_at(0xa000, |a| {
        a.mov(eax, ecx)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    for _ in 0..5 {
        g.expect(&out(0x10, &[g.cpu.regs().rax as u8]));
        eq!(g.values(), vec![CODE as u32 + 4]);
        let _ = std::fs::read("/proc/self/stat");
        let mut r = g.cpu.regs();
        r.rip = CODE;
        g.cpu.set_regs(&r);
    }
}

fn swapgs() {
    let g = Guest::new(Mode::Long);
    let mut s = g.cpu.sregs();
    s.gs.base = 0x1111_0000;
    g.cpu.set_sregs(&s);
    check!(g.cpu.set_msr(0xc000_0102, 0x2222_0000), "KERNEL_GS_BASE");
    g.load(|a| {
        a.swapgs()?;
        a.hlt()?;
        a.swapgs()?;
        a.hlt()
    });
    for (now, kernel) in [(0x2222_0000, 0x1111_0000), (0x1111_0000, 0x2222_0000)] {
        eq!(g.cpu.run(), Exit::Hlt);
        eq!(
            (g.cpu.sregs().gs.base, g.cpu.msr(0xc000_0102)),
            (now, Some(kernel))
        );
        eq!(g.cpu.msr(0xc000_0101), Some(now), "GS_BASE as an MSR");
    }
}

fn xsetbv() {
    let g = Guest::new(Mode::Long);
    if (ask(&g, &[(1, 0)])[0][2] >> 26) & 1 == 0 {
        harness::skip("no XSAVE on this CPU");
    }
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(rax, cr4)?;
        a.or(rax, 1 << 18)?;
        a.mov(cr4, rax)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.xgetbv()?;
        a.out(0xf0, eax)?;
        a.mov(eax, 7)?;
        a.xsetbv()?;
        a.xgetbv()?;
        a.out(0xf0, eax)?;
        a.hlt()?;
        // Without SSE, AVX cannot be.
        a.mov(eax, 5)?;
        a.xsetbv()
    });
    eq!(g.values(), vec![1, 7]);
    let x: kvm_xcrs = crate::must!(g.cpu.fd.take(GET_XCRS));
    eq!(x.xcrs[0].value, 7);
    let t = g.run_to_trap();
    eq!((t.vector, t.error), (13, 0));
    // Without CR4.OSXSAVE it does not exist.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.xor(ecx, ecx)?;
        a.xsetbv()
    });
    let v = g.run_to_trap().vector;
    // TCG asks the hypervisor before it looks at CR4.
    check!(v == 6 || (v == 13 && crate::sys::on_tcg()), "vector {v}");
}

fn tsc_monotonic() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rbx, rax)?;
        a.out(0x10, al)?;
        a.jmp(top)
    });
    let mut last = 0;
    for i in 0..500 {
        let e = g.cpu.run();
        check!(matches!(e, Exit::Io { port: 0x10, .. }), "{e:x?}");
        let t = g.cpu.regs().rbx;
        check!(t > last, "round {i}: {t:x} after {last:x}");
        last = t;
        if i == 0 {
            let host = crate::sys::rdtsc();
            check!(
                t < host,
                "a VM's clock starts with the VM: {t:x}, the host's is {host:x}"
            );
        }
    }
}

fn tsc_written() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(ecx, 0x10)?;
        a.mov(edx, 0x100)?;
        a.xor(eax, eax)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.mov(eax, edx)?;
        a.out(0xf0, eax)?;
        a.rdmsr()?;
        a.mov(eax, edx)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    eq!(g.values(), vec![0x100, 0x100]);
}

fn virtualization() {
    // Instructions of a hypervisor are not for this guest: it has neither VMX nor SVM switched on.
    for (what, code) in [
        ("VMRUN", [0x0f, 0x01, 0xd8]),
        ("VMLOAD", [0x0f, 0x01, 0xda]),
        ("VMSAVE", [0x0f, 0x01, 0xdb]),
        ("STGI", [0x0f, 0x01, 0xdc]),
        ("CLGI", [0x0f, 0x01, 0xdd]),
        ("INVLPGA", [0x0f, 0x01, 0xdf]),
        ("VMLAUNCH", [0x0f, 0x01, 0xc2]),
        ("VMRESUME", [0x0f, 0x01, 0xc3]),
        ("VMXOFF", [0x0f, 0x01, 0xc4]),
        ("VMREAD", [0x0f, 0x78, 0xc0]),
    ] {
        let g = Guest::new(Mode::Long);
        g.mem.write(CODE as usize, &code);
        g.mem.wr(CODE as usize + 3, 0xf4u8);
        let t = g.run_to_trap();
        eq!((t.vector, t.ip), (6, CODE), "{what}");
    }
}

/// KVM's hypercalls VAPIC_POLL_IRQ, KICK_CPU and SCHED_YIELD, of which a VM without local APICs does nothing, and unknown ones:
/// -KVM_ENOSYS.
const CALLS: [(u64, i64); 7] = [
    (1, 0),
    (5, 0),
    (11, 0),
    (0x1234, -1000),
    (0, -1000),
    (2, -1000),
    (1 << 32 | 5, -1000),
];

/// Each of them with one of the two instructions.
fn call(what: &str, code: [u8; 3]) {
    let g = Guest::new(Mode::Long);
    for (number, answer) in CALLS {
        g.mem.write(CODE as usize, &code);
        g.mem.wr(CODE as usize + 3, 0xf4u8);
        let mut r = g.cpu.regs();
        (r.rip, r.rax) = (CODE, number);
        g.cpu.set_regs(&r);
        match g.cpu.run() {
            Exit::Hlt => eq!(g.cpu.regs().rax as i64, answer, "{what} {number:x}"),
            e => check!(false, "{what} {number:x}: {e:x?}{}", g.describe()),
        }
    }
}

const VMCALL: (&str, [u8; 3]) = ("VMCALL", [0x0f, 0x01, 0xc1]);
const VMMCALL: (&str, [u8; 3]) = ("VMMCALL", [0x0f, 0x01, 0xd9]);

fn amd() -> bool {
    crate::sys::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Auth")
}

fn hypercall() {
    let (what, code) = if amd() { VMMCALL } else { VMCALL };
    call(what, code);
}

/// The other vendor's instruction is patched, which is a quirk of KVM's that is on unless user space turns it off.
fn hypercall_foreign() {
    let (what, code) = if amd() { VMCALL } else { VMMCALL };
    call(what, code);
}

fn harmless() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.invlpg(byte_ptr(DATA))?;
        a.wbinvd()?;
        // On a CPU without it the same as WBINVD.
        a.wbnoinvd()?;
        a.invd()?;
        a.pause()?;
        a.mov(ecx, 100)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.pause()?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    eq!(g.values(), vec![]);
}

/// An instruction that CPUID does not show is undefined, though the CPU has it.
fn hidden_instructions() {
    if sys::on_tcg() {
        harness::skip("QEMU's TCG intercepts neither RDTSCP nor INVPCID");
    }
    // RDTSCP: leaf 8000_0001h, EDX bit 27. INVPCID: leaf 7, EBX bit 10; [0] is a descriptor of zeroes, type 2: all contexts.
    let rdtscp: &[u8] = &[0x0f, 0x01, 0xf9, 0xf4];
    let invpcid: &[u8] = &[0x66, 0x0f, 0x38, 0x82, 0x07, 0xf4];
    for (leaf, register, bit, code) in
        [(0x8000_0001u32, 3usize, 27u32, rdtscp), (7, 1, 10, invpcid)]
    {
        if sys::cpuid(leaf, 0)[register] >> bit & 1 == 0 {
            crate::harness::say(&format!("# leaf {leaf:x}: this CPU lacks the instruction"));
            continue;
        }
        for shown in [true, false] {
            let g = Guest::new(Mode::Long);
            g.mem.write(CODE as usize, code);
            let mut r = g.cpu.regs();
            (r.rax, r.rdi) = (2, DATA);
            g.cpu.set_regs(&r);
            let mut c = g.kvm.cpuid();
            let n = c.nent as usize;
            for e in &mut c.entries[..n] {
                // RDPID goes with RDTSCP.
                if !shown && e.function == 7 {
                    e.ecx &= !(1 << 22);
                }
                if !shown && e.function == leaf {
                    match register {
                        1 => e.ebx &= !(1 << bit),
                        _ => e.edx &= !(1 << bit),
                    }
                }
            }
            crate::must!(sys::ioctl_with(g.cpu.fd.0.raw(), SET_CPUID2, &mut { *c }));
            if shown {
                eq!(g.cpu.run(), Exit::Hlt, "leaf {leaf:x}: {}", g.describe());
            } else {
                let t = g.run_to_trap();
                eq!((t.vector, t.ip), (6, CODE), "leaf {leaf:x}");
            }
        }
    }
}
