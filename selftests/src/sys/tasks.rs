// SPDX-License-Identifier: GPL-2.0
//! Processes, threads, their signals, and the CPUs that they run on. Unsafe, as every call of libc's is; a crate's wrapper of fork, or of
//! a signal's handler, would be no less so.

use super::{errno, ret, Res};
use std::ptr;
use std::sync::OnceLock;

/// Runs `f` in a forked child; gives the child's pid. The child ends with `f`'s result as its status, 101 for a panic.
pub fn fork(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the harness has one thread when it forks; children that fork use only what fork allows them.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: errno {}", errno());
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
        // SAFETY: ends the process.
        unsafe { libc::_exit(code) };
    }
    pid
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Still running.
    Not,
    /// Exit status.
    Exit(i32),
    /// Killed by a signal.
    Signal(i32),
}

/// waitpid; without `block` returns at once.
pub fn wait(pid: i32, block: bool) -> Ended {
    let mut st = 0;
    loop {
        // SAFETY: `st` is a live int.
        let r = unsafe { libc::waitpid(pid, &mut st, if block { 0 } else { libc::WNOHANG }) };
        if r == 0 {
            return Ended::Not;
        }
        if r < 0 && errno() == libc::EINTR {
            continue;
        }
        assert!(r == pid, "waitpid({pid}): {r}, errno {}", errno());
        return if libc::WIFSIGNALED(st) {
            Ended::Signal(libc::WTERMSIG(st))
        } else {
            Ended::Exit(libc::WEXITSTATUS(st))
        };
    }
}

/// kill(2).
pub fn kill(pid: i32, sig: i32) -> Res {
    // SAFETY: no memory is involved.
    ret(unsafe { libc::kill(pid, sig) })
}

/// The thread id of the caller.
pub fn gettid() -> i32 {
    // SAFETY: no memory is involved.
    unsafe { libc::gettid() }
}

/// tgkill(2) to a thread of this process.
pub fn tkill(tid: i32, sig: i32) -> Res {
    // SAFETY: no memory is involved.
    ret(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, sig) } as i32)
}

/// Makes the caller the leader of a session, to be killed if its parent dies.
pub fn own_session() {
    // SAFETY: no memory is involved.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}

extern "C" fn no_op(_: i32) {}

/// Installs a handler that does nothing for `sig`, without SA_RESTART, so that it interrupts system calls.
pub fn interrupting(sig: i32) {
    // SAFETY: the handler touches nothing; the struct is zeroed and then filled.
    unsafe {
        let mut sa: libc::sigaction = std::mem::zeroed();
        sa.sa_sigaction = no_op as *const () as usize;
        libc::sigaction(sig, &sa, ptr::null_mut());
    }
}

/// Blocks or unblocks `sig` in the calling thread.
pub fn block(sig: i32, on: bool) {
    // SAFETY: the set is a live local.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, sig);
        libc::pthread_sigmask(
            if on {
                libc::SIG_BLOCK
            } else {
                libc::SIG_UNBLOCK
            },
            &set,
            ptr::null_mut(),
        );
    }
}

/// Is `sig` pending for the calling thread?
pub fn pending(sig: i32) -> bool {
    // SAFETY: the set is a live local.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&mut set);
        libc::sigismember(&set, sig) == 1
    }
}

/// Takes `sig`, which is blocked and pending, off the calling thread; gives its code and address.
pub fn take_signal(sig: i32) -> Option<(i32, u64)> {
    // SAFETY: the set, the information and the time are live locals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let now: libc::timespec = std::mem::zeroed();
        libc::sigaddset(&mut set, sig);
        (libc::sigtimedwait(&set, &mut info, &now) == sig)
            .then(|| (info.si_code, info.si_addr() as u64))
    }
}

/// The CPUs that the tests may use: those that the first caller could run on when it asked, which is before anything is pinned. A host VM
/// of QEMU's has one more (`tools/env/vm.sh`).
fn allowed() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        // SAFETY: the set is a live local.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            let r = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
            assert!(r == 0, "sched_getaffinity: errno {}", errno());
            (0..libc::CPU_SETSIZE as usize)
                .filter(|&cpu| libc::CPU_ISSET(cpu, &set))
                .collect()
        }
    })
}

/// The number by which the kernel knows the `n`th CPU of the tests'.
pub fn cpu_number(n: usize) -> Option<usize> {
    allowed().get(n).copied()
}

/// Pins thread `tid` (0: the caller) to the `n`th CPU of the tests'.
pub fn pin(tid: i32, n: usize) -> Res {
    set_affinity(tid, &[cpu_number(n).ok_or(libc::EINVAL)?])
}

/// Lets thread `tid` (0: the caller) run on each CPU of the tests'.
pub fn unpin(tid: i32) -> Res {
    set_affinity(tid, allowed())
}

fn set_affinity(tid: i32, cpus: &[usize]) -> Res {
    // SAFETY: the set is a live local.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for &cpu in cpus {
            libc::CPU_SET(cpu, &mut set);
        }
        ret(libc::sched_setaffinity(
            tid,
            size_of::<libc::cpu_set_t>(),
            &set,
        ))
    }
}

/// How many CPUs the tests may use.
pub fn cpus() -> usize {
    allowed().len()
}

/// How many CPUs the machine has.
pub fn all_cpus() -> usize {
    // SAFETY: no memory is involved.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }.max(1) as usize
}

/// The file by which the second CPU of the tests' is switched off; None: it cannot be.
pub fn second_cpu_switch() -> Option<String> {
    let switch = format!("/sys/devices/system/cpu/cpu{}/online", cpu_number(1)?);
    std::fs::exists(&switch)
        .is_ok_and(|there| there)
        .then_some(switch)
}

/// A SIGALRM every `us` microseconds; 0 ends that.
pub fn alarm_every(us: i64) {
    let every = libc::timeval {
        tv_sec: us / 1_000_000,
        tv_usec: us % 1_000_000,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: the structure is a live local.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
}
