// SPDX-License-Identifier: GPL-2.0
//! vCPU ids, mapping the run pages, descriptors in other processes, and the order of closing.

use crate::guest::{Guest, Mode};
use crate::harness::Test;
use crate::kvm::*;
use crate::sys::{self, Arg, Ended, Map};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{EEXIST, EINVAL, EIO, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};

pub const TESTS: &[Test] = &[
    Test::new("api/vcpu_ids", vcpu_ids),
    Test::new("api/vcpu_id_limit", vcpu_id_limit),
    Test::new("api/vcpu_many", vcpu_many).secs(60),
    Test::new("api/vcpu_mmap", vcpu_mmap),
    Test::new("api/vcpu_mmap_beyond", vcpu_mmap_beyond),
    Test::new("api/other_process", other_process),
    Test::new("api/close_orders", close_orders),
    Test::new("api/mapping_outlives", mapping_outlives),
    Test::new("api/run_page_fresh", run_page_fresh),
];

fn vcpu_ids() {
    let k = Kvm::open();
    let vm = k.vm();
    let max = u64::try_from(k.cap(KVM_CAP_MAX_VCPU_ID)).unwrap_or(0);
    let _a = vm.vcpu(0);
    let _b = vm.vcpu(5);
    eq!(vm.fd.num(CREATE_VCPU, 0), Err(EEXIST));
    eq!(vm.fd.num(CREATE_VCPU, 5), Err(EEXIST));
    for id in [
        max,
        max + 1,
        1 << 31,
        u64::from(u32::MAX),
        1 << 32,
        u64::MAX,
    ] {
        eq!(vm.fd.num(CREATE_VCPU, id), Err(EINVAL), "id {id:x}");
    }
    let last = vm.try_vcpu(max - 1);
    check!(
        last.is_ok(),
        "the highest id, {}: {:?}",
        max - 1,
        last.err()
    );
}

/// KVM_CAP_MAX_VCPU_ID is settled by the first value that is not 0, or by the first attempt to make a vCPU.
fn vcpu_id_limit() {
    let k = Kvm::open();
    let max = u64::try_from(k.cap(KVM_CAP_MAX_VCPU_ID)).unwrap_or(0);
    let limit = |vm: &Vm, ids: u64| {
        let mut c: kvm_enable_cap = sys::filled(0);
        (c.cap, c.args[0]) = (KVM_CAP_MAX_VCPU_ID, ids);
        // Not recorded: the highest value differs.
        sys::ioctl_with(vm.fd.0.raw(), ENABLE_CAP, &mut c)
    };
    let vm = k.vm();
    for (ids, result) in [
        (max + 1, Err(EINVAL)),
        (1 << 32, Err(EINVAL)),
        (u64::MAX, Err(EINVAL)),
        (0, Ok(0)),
        (0, Ok(0)),
        (7, Ok(0)),
        (7, Ok(0)),
        (0, Err(EINVAL)),
        (6, Err(EINVAL)),
        (max, Err(EINVAL)),
    ] {
        eq!(limit(&vm, ids), result, "a limit of {ids:x}");
    }
    let _last = vm.vcpu(6);
    eq!(vm.fd.num(CREATE_VCPU, 6), Err(EEXIST), "taken");
    eq!(vm.fd.num(CREATE_VCPU, 7), Err(EINVAL), "at the limit");
    eq!(limit(&vm, 7), Ok(0), "the same, with a vCPU");
    let _first = vm.vcpu(0);

    let vm = k.vm();
    eq!(
        sys::ioctl(vm.fd.0.raw(), CREATE_VCPU, Arg::Num(max)),
        Err(EINVAL)
    );
    eq!(
        limit(&vm, 0),
        Ok(0),
        "an id that none can have settles nothing"
    );
    let _one = vm.vcpu(0);
    eq!(limit(&vm, 7), Err(EINVAL), "after the first vCPU");
    eq!(limit(&vm, 0), Err(EINVAL), "no limit, after it");
    eq!(limit(&vm, max), Ok(0), "the limit as it is");
    let _two = vm.vcpu(7);
}

fn vcpu_many() {
    let k = Kvm::open();
    let vm = k.vm();
    let cpus: Vec<Vcpu> = (0..64).map(|i| vm.vcpu(i)).collect();
    for (i, c) in cpus.iter().enumerate() {
        c.set_regs(&kvm_regs {
            rax: i as u64,
            rflags: 2,
            ..Default::default()
        });
    }
    for (i, c) in cpus.iter().enumerate() {
        eq!(c.regs().rax, i as u64, "each vCPU has registers of its own");
    }
    drop(vm);
    eq!(
        cpus[63].regs().rax,
        63,
        "a vCPU outlives the VM's descriptor"
    );
}

fn vcpu_mmap() {
    let k = Kvm::open();
    let vm = k.vm();
    let cpu = vm.vcpu(0);
    let fd = cpu.fd.0.raw();
    for pages in 1..=3usize {
        check!(
            Map::new(pages * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0).is_ok(),
            "{pages} pages"
        );
    }
    for page in 0..3i64 {
        let m = Map::new(4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, page * 4096);
        let m = crate::must!(m);
        if page > 0 {
            m.wr(8, 0x1122_3344u32 + page as u32);
            eq!(
                cpu.run.rd::<u32>(page as usize * 4096 + 8),
                0x1122_3344 + page as u32,
                "page {page} is one page"
            );
            m.wr(8, 0u32);
        }
    }
    let m = crate::must!(Map::new(4096, PROT_READ, MAP_SHARED, fd, 0));
    cpu.set_immediate_exit(true);
    eq!(m.rd::<u8>(1), 1, "immediate_exit through a second mapping");
    check!(
        Map::new(4096, PROT_READ, MAP_PRIVATE, fd, 0).is_ok(),
        "private mapping"
    );
}

fn vcpu_mmap_beyond() {
    let k = Kvm::open();
    let vm = k.vm();
    let cpu = vm.vcpu(0);
    for page in [3i64, 4, 63, 64, 1000] {
        let m = Map::new(4096, PROT_READ, MAP_SHARED, cpu.fd.0.raw(), page * 4096);
        let m = match m {
            Err(e) => {
                crate::record::line("mmap beyond", &format!("{page}"), &format!("errno {e}"), "");
                eq!(e, EINVAL, "page {page}");
                continue;
            }
            Ok(m) => m,
        };
        // A mapping may succeed, but there is nothing to touch in it.
        let pid = sys::fork(|| i32::from(m.rd::<u8>(0)) & 1);
        let ended = sys::wait(pid, true);
        crate::record::line("mmap beyond", &format!("{page}"), &format!("{ended:?}"), "");
        eq!(ended, Ended::Signal(libc::SIGBUS), "page {page}");
    }
}

/// The result of `f` in a forked child, as an errno, 0 for success.
fn in_child(f: impl FnOnce() -> Result<i32, i32>) -> i32 {
    let pid = sys::fork(|| f().err().unwrap_or(0));
    match sys::wait(pid, true) {
        Ended::Exit(n) => n,
        e => panic!("child: {e:?}"),
    }
}

fn other_process() {
    let g = Guest::new(Mode::Long);
    let before = g.cpu.regs();
    let vcpu_calls: &[u64] = &[RUN, GET_REGS, SET_REGS, GET_SREGS, GET_FPU, NMI, 0xaeff];
    for nr in vcpu_calls {
        let e = in_child(|| {
            let mut b = vec![0u8; 8192];
            let arg = if *nr == RUN || *nr == NMI {
                Arg::Num(0)
            } else {
                Arg::Buf(&mut b)
            };
            sys::ioctl(g.cpu.fd.0.raw(), *nr, arg)
        });
        crate::record::line("other process", &ioctl_name(*nr), &format!("errno {e}"), "");
        eq!(e, EIO, "vCPU, {}", ioctl_name(*nr));
    }
    for nr in [CREATE_VCPU, CHECK_EXTENSION, SET_USER_MEMORY_REGION, 0xaeff] {
        let e = in_child(|| sys::ioctl(g.vm.fd.0.raw(), nr, Arg::Num(7)));
        crate::record::line("other process", &ioctl_name(nr), &format!("errno {e}"), "");
        eq!(e, EIO, "VM, {}", ioctl_name(nr));
    }
    let e = in_child(|| sys::ioctl(g.kvm.0 .0.raw(), GET_API_VERSION, Arg::Num(0)));
    eq!(e, 0, "the system descriptor belongs to nobody");
    let after = g.cpu.regs();
    eq!(
        sys::bytes_of(&before),
        sys::bytes_of(&after),
        "registers after refused calls"
    );
    // The VM still works here.
    g.load(|a| {
        use iced_x86::code_asm::*;
        a.mov(eax, 77)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    eq!(g.values(), vec![77]);
}

fn close_orders() {
    for order in 0..6 {
        let g = Guest::new(Mode::Real);
        g.mem.wr(0x8000, 0xf4u8);
        let Guest {
            cpu, vm, kvm, mem, ..
        } = g;
        eq!(cpu.run(), Exit::Hlt);
        let Vcpu { fd, run } = cpu;
        match order {
            0 => drop((fd, vm, kvm, run, mem)),
            1 => drop((kvm, vm, fd, mem, run)),
            2 => drop((vm, fd, kvm, run, mem)),
            3 => drop((mem, vm, kvm, fd, run)),
            4 => {
                // The guest's memory goes away under the VM, which can still be asked and run.
                drop(mem);
                drop((kvm, vm));
                let cpu = Vcpu { fd, run };
                eq!(cpu.regs().rip, 0x8001);
                let e = cpu.run();
                check!(
                    matches!(e, Exit::Err(libc::EFAULT, _)),
                    "run without memory: {e:?}"
                );
            }
            _ => {
                drop(kvm);
                drop(vm);
                let cpu = Vcpu { fd, run };
                let mut r = cpu.regs();
                r.rip = 0x8000;
                cpu.set_regs(&r);
                eq!(
                    cpu.run(),
                    Exit::Hlt,
                    "runs although only the vCPU's descriptor is left"
                );
            }
        }
    }
}

fn mapping_outlives() {
    let k = Kvm::open();
    let vm = k.vm();
    let Vcpu { fd, run } = vm.vcpu(0);
    drop(fd);
    drop(vm);
    drop(k);
    run.wr(4096, 0x55u8);
    eq!(
        run.rd::<u8>(4096),
        0x55,
        "the run pages live as long as their mapping"
    );
}

fn run_page_fresh() {
    // Recycled pages must be clean: use up some, then look at new ones.
    let k = Kvm::open();
    for round in 0..8 {
        let vm = k.vm();
        let cpu = vm.vcpu(0);
        for page in 0..3 {
            let dirty = cpu
                .run
                .read(page * 4096, 4096)
                .iter()
                .filter(|b| **b != 0)
                .count();
            // Flags of the current state may be set already, such as the registers that can be synchronised.
            check!(
                dirty <= 16,
                "round {round}, page {page}: {dirty} bytes are not 0"
            );
            cpu.run.fill(page * 4096, 4096, 0xcc);
        }
    }
}
