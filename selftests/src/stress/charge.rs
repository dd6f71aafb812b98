// SPDX-License-Identifier: GPL-2.0
//! What VMs cost is charged to the memory cgroup of their process, and given back.

use super::cgroup::{in_cgroup, Cgroup};
use super::left;
use super::pages::wait_for;
use super::sweep::Sweeper;
use crate::guest::{out, Guest, Mode};
use crate::harness::{self, rounds, Test};
use crate::kvm::*;
use crate::sys::{self, Ended, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("stress/charged_tables", tables).secs(60).no_ab(),
    Test::new("stress/charged_slots", slots)
        .secs(60)
        .long(120)
        .no_ab(),
    Test::new("stress/charged_vcpus", vcpus)
        .secs(90)
        .long(300)
        .no_ab(),
    // The kernel tells at length whom it killed and why.
    Test::new("stress/charge_limit", limit)
        .secs(60)
        .long(300)
        .no_ab()
        .log_ok(&["Call Trace:", "Modules linked in"]),
];

fn tables() {
    // 512 pages, 2 MiB apart: each needs a table of its own.
    let n = 512u64;
    in_cgroup("tables", |cg| {
        let m = Map::anon((n << 21) as usize);
        eq!(
            m.advise(0, (n << 21) as usize, libc::MADV_NOHUGEPAGE),
            Ok(0)
        );
        let s = Sweeper::new(m.addr(), n << 21);
        s.aim(&s.g.cpu, 0, n, 1 << 21);
        let before = cg.stat("sec_pagetables");
        check!(
            s.sweep(&s.g.cpu, &super::sweep::Progress::default()),
            "a sweep"
        );
        let during = cg.stat("sec_pagetables");
        check!(
            during - before >= n * 4096,
            "second-stage tables charged: {before} before, {during} after"
        );
        check!(
            during - before <= (n + 16) * 4096,
            "{before} before, {during} after"
        );
        drop(s);
        // The kernel adds up what each CPU has counted every two seconds.
        wait_for("the tables to be given back", || {
            cg.stat("sec_pagetables") == 0
        });
    });
}

/// A slot of one page in one 2 MiB after another: the tables that it needed go with it, and do not wait for the VM's end.
fn slots() {
    const APART: u64 = 2 << 20;
    let n = rounds(512, 1500);
    in_cgroup("slots", |cg| {
        let page = Map::anon(4096);
        let g = Guest::new(Mode::Long);
        g.load(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.out(0x10, eax)?;
            a.jmp(top)
        });
        let tables = || cg.stat("sec_pagetables") / 4096;
        for i in 0..n {
            let at = (16 + i) * APART;
            // Moved, and every third time deleted and made anew.
            if i % 3 == 2 {
                eq!(g.vm.region(1, 0, 0, 0, 0), Ok(0));
            }
            eq!(g.vm.region(1, 0, at, 4096, page.addr()), Ok(0));
            page.wr(0, i as u32);
            let mut r = g.cpu.regs();
            r.rbx = at;
            g.cpu.set_regs(&r);
            g.expect(&out(0x10, &(i as u32).to_le_bytes()));
        }
        // The kernel adds up what each CPU has counted every two seconds.
        std::thread::sleep(std::time::Duration::from_secs(3));
        wait_for("the tables of slots that are gone", || tables() < 64);
    });
}

fn current(cg: &Cgroup) -> u64 {
    super::number(&cg.file("memory.current")).unwrap_or(0)
}

fn vcpus() {
    // What the machine has less, the group has more: nothing big is taken without being charged.
    let (vms, each) = (20, 4u64);
    in_cgroup("vcpus", |cg| {
        let make = || -> Vec<(Vm, Vec<Vcpu>)> {
            let k = Kvm::open();
            (0..vms)
                .map(|_| {
                    let vm = k.vm();
                    let cpus = (0..each).map(|i| vm.vcpu(i)).collect();
                    (vm, cpus)
                })
                .collect()
        };
        // Once before, so that caches of the kernel are filled.
        drop(make());
        left::settle();
        let (free, charged, kernel) = (left::pages(), current(cg), cg.stat("kernel"));
        let all = make();
        left::settle();
        let (free2, charged2, kernel2) = (left::pages(), current(cg), cg.stat("kernel"));
        let (taken, charged) = ((free - free2) * 4096, charged2 as i64 - charged as i64);
        // Not the kernel's own: the guest's FPU image, and what an SRCU domain keeps for each CPU. The charge comes in batches.
        let vcpus = vms as i64 * each as i64;
        let uncharged = vcpus * 2 * 4096 + vms as i64 * 4096 * sys::all_cpus() as i64 + (1 << 19);
        check!(
            charged > vcpus * 3 * 4096 && taken - charged < uncharged,
            "{vms} VMs with {each} vCPUs: {taken} bytes taken, {charged} charged, of them {} of the kernel",
            kernel2 as i64 - kernel as i64
        );
        drop(all);
        left::settle();
        let end = current(cg) as i64;
        check!(
            end < charged2 as i64 - charged / 2,
            "{end} bytes remain charged"
        );
    });
}

fn limit() {
    // At the limit of its group a process gets ENOMEM, or is killed by the kernel; nothing else breaks.
    let cg = Cgroup::new("limit");
    check!(super::set(&cg.file("memory.max"), 12 << 20), "memory.max");
    for _ in 0..rounds(3, 10) {
        let pid = sys::fork(|| {
            cg.enter();
            let k = Kvm::open();
            let mut all = Vec::new();
            for _ in 0..4000 {
                let vm = k.0.num(CREATE_VM, 0).map(|fd| Vm {
                    fd: Kfd(sys::OwnedFd::new(fd)),
                });
                let made = vm.and_then(|vm| vm.try_vcpu(0).map(|c| (vm, c)));
                match made {
                    Ok(pair) => all.push(pair),
                    Err(libc::ENOMEM) => return 7,
                    Err(e) => {
                        harness::say(&format!("after {} VMs: errno {e}", all.len()));
                        return 1;
                    }
                }
            }
            2
        });
        let e = sys::wait(pid, true);
        check!(
            matches!(e, Ended::Exit(7) | Ended::Signal(libc::SIGKILL)),
            "{e:?}"
        );
    }
    // The machine is well.
    let g = Guest::new(Mode::Long);
    g.mem.wr(crate::guest::CODE as usize, 0xf4u8);
    eq!(g.cpu.run(), Exit::Hlt);
}
