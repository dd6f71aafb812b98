// SPDX-License-Identifier: GPL-2.0
//! The life of the machine under running VMs: suspend and resume as tests, the ends of a kernel as commands.

use super::threads::{counter, progress, with_running};
use crate::api::clock;
use crate::guest::{Guest, Mode, CODE, DATA};
use crate::harness::{self, Test};
use crate::kvm::Exit;
use crate::sys::{self, Arg, OwnedFd};
use crate::{check, eq};
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new("lifecycle/snapshot_while_running", snapshot)
        .secs(60)
        .no_ab(),
    Test::new("lifecycle/suspend_to_ram_while_running", suspend_to_ram)
        .secs(60)
        .no_ab(),
];

/// Where the guest that runs has its clock.
const PAGE: u64 = DATA + 0x1000;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const SNAPSHOT_FREEZE: u64 = 0x3301;
const SNAPSHOT_UNFREEZE: u64 = 0x3302;
const SNAPSHOT_FREE: u64 = 0x3305;
const SNAPSHOT_CREATE_IMAGE: u64 = 0x4004_3311;

/// Two guests count, one in this process and one in another; `sleep` takes the machine down and up again. Then both go on, and a
/// new VM works too. The time-stamp counter and the clock of one that does not run meanwhile do not go back. Clocks tell that the guest
/// was stopped.
fn across(sleep: impl FnOnce()) {
    let other = counter();
    let still = Guest::new(Mode::Long);
    still
        .mem
        .write(CODE as usize, &[0x0f, 0x31, 0xf4, 0xeb, 0xfb]);
    check!(still.cpu.set_msr(SYSTEM_TIME, DATA | 1), "MSR");
    check!(other.cpu.set_msr(SYSTEM_TIME, PAGE | 1), "MSR");
    let times = || {
        eq!(still.cpu.run(), Exit::Hlt);
        let r = still.cpu.regs();
        let tsc = r.rdx << 32 | r.rax;
        (tsc, clock::read(&still, DATA).at(tsc))
    };
    let host = || clock::clock(&still.vm);
    let (tsc, time) = times();
    let before = host().host_tsc;
    let pid = sys::fork(|| {
        let g = counter();
        loop {
            // A freezing task leaves the guest as if by a signal.
            match g.cpu.run() {
                Exit::Err(libc::EINTR, _) => {}
                _ => return 1,
            }
        }
    });
    with_running(&other.cpu, |_| {
        progress(&other);
        eq!(clock::stopped_flag(&other, PAGE), 0);
        sleep();
        progress(&other);
    });
    eq!(
        clock::stopped_flag(&other, PAGE),
        2,
        "one that ran was told"
    );
    eq!(clock::stopped_flag(&still, DATA), 0, "not yet");
    let read = still.cpu.msr(0x10).unwrap_or(0);
    check!(read > tsc, "user space reads {read} after {tsc}");
    let (after, new_time) = times();
    eq!(
        clock::stopped_flag(&still, DATA),
        2,
        "one that did not is told when it runs"
    );
    still.mem.wr(DATA as usize + 29, 0u8);
    times();
    eq!(clock::stopped_flag(&still, DATA), 0, "once");
    let now = host();
    check!(after > read, "the guest reads {after} after {read}");
    check!(
        new_time > time && now.clock.abs_diff(new_time) < 1_000_000_000,
        "its clock has {new_time} after {time}, and the VM's {}",
        now.clock
    );
    if now.host_tsc < before {
        println!(
            "# the host's counter went back by {}",
            before - now.host_tsc
        );
    }
    eq!(sys::wait(pid, false), sys::Ended::Not);
    eq!(sys::kill(pid, libc::SIGKILL), Ok(0));
    eq!(sys::wait(pid, true), sys::Ended::Signal(libc::SIGKILL));
    let fresh = Guest::new(Mode::Long);
    fresh.mem.wr(CODE as usize, 0xf4u8);
    eq!(fresh.cpu.run(), Exit::Hlt);
}

/// What hibernation does up to the image in memory: tasks frozen, devices and all CPUs but one off, then what comes last in a
/// suspend (virtualization off), a copy of memory, and all the way back. The image is thrown away.
fn snapshot() {
    const DEVICE: &str = "/dev/snapshot";
    if !std::path::Path::new(DEVICE).exists() {
        harness::skip("the kernel takes no snapshots (/dev/snapshot)");
    }
    across(|| {
        // From here on the kernel is about to hibernate.
        let dev = crate::must!(OwnedFd::open(DEVICE, libc::O_RDONLY));
        let call = |nr, arg| sys::ioctl(dev.raw(), nr, arg);
        eq!(call(SNAPSHOT_FREEZE, Arg::Num(0)), Ok(0));
        let mut in_suspend = [0u8; 4];
        let made = call(SNAPSHOT_CREATE_IMAGE, Arg::Buf(&mut in_suspend));
        let freed = call(SNAPSHOT_FREE, Arg::Num(0));
        eq!(call(SNAPSHOT_UNFREEZE, Arg::Num(0)), Ok(0));
        eq!(made, Ok(0));
        eq!(freed, Ok(0));
        // 1: in the kernel that made the image, as opposed to one that was resumed from it.
        eq!(in_suspend, [1, 0, 0, 0]);
    });
}

/// S3, woken by the clock.
fn suspend_to_ram() {
    const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";
    let deep = std::fs::read_to_string("/sys/power/mem_sleep").unwrap_or_default();
    if !deep.contains("deep") {
        harness::skip("the firmware offers no S3");
    }
    if std::fs::write(ALARM, "+3").is_err() {
        harness::skip("no clock that could wake the machine");
    }
    across(|| {
        check!(
            std::fs::write("/sys/power/mem_sleep", "deep").is_ok(),
            "S3 is not chosen"
        );
        let began = Instant::now();
        eq!(
            std::fs::write("/sys/power/state", "mem").map_err(|e| e.to_string()),
            Ok(())
        );
        check!(
            began.elapsed() < Duration::from_secs(30),
            "it slept too long"
        );
    });
}

/// Ends the machine while a guest runs on each CPU, and one more. What follows shows on the console: a new kernel, or the machine's
/// reset; if this returns, it did not work.
pub fn end_machine(args: &[String]) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let loaded = match words[..] {
        ["reboot" | "crash"] => Ok(0),
        [way @ ("kexec" | "crash-kexec"), kernel, initrd] => sys::kexec_load(
            kernel,
            initrd,
            // It shows how far it gets; as in vm.sh, nothing watches its time-stamp counter.
            "console=ttyS0 earlyprintk=ttyS0 panic=-1 cryptomgr.notests tsc=nowatchdog reboot=t",
            way == "crash-kexec",
        ),
        _ => Err(libc::EINVAL),
    };
    if let Err(e) = loaded {
        println!("end {words:?}: errno {e}");
        return ExitCode::FAILURE;
    }
    let guests: Vec<Guest> = (0..=sys::cpus()).map(|_| counter()).collect();
    std::thread::scope(|s| {
        for (i, g) in guests.iter().enumerate() {
            s.spawn(move || {
                let _ = sys::pin(0, i % sys::cpus());
                loop {
                    let _ = g.cpu.run();
                }
            });
        }
        for g in &guests {
            progress(g);
        }
        println!("guests are running, the end comes by {}", words[0]);
        // What the serial line holds back would be lost.
        std::thread::sleep(Duration::from_millis(500));
        let ended = match words[0] {
            "kexec" => sys::reboot(true),
            "reboot" => sys::reboot(false),
            _ => std::fs::write("/proc/sysrq-trigger", "c")
                .map(|()| 0)
                .map_err(|e| e.raw_os_error().unwrap_or(0)),
        };
        println!("the machine goes on: {ended:?}");
        std::process::exit(1)
    })
}
