// SPDX-License-Identifier: GPL-2.0
//! The tests' side of fault injection: where it comes from, how a call is made with each of its points failing, and which ioctls were.

use crate::harness;
use crate::kvm::*;
use crate::sys::{self, Arg, OwnedFd, Res};
use crate::{check, eq};
use libc::{EFAULT, ENOMEM};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// The most points of failure that one call may have.
pub const MANY: u32 = 2000;

/// The module that stands in for the kernel's own fault injection, and its file.
const MODULE: &str = "/modules/foreign/fail_nth.ko";
const MODULE_FILE: &str = "/sys/kernel/debug/lodge_fail_nth";

fn open(path: &str) -> Option<File> {
    OpenOptions::new().read(true).write(true).open(path).ok()
}

thread_local! {
    /// The ioctl that was made last by [`num`] and its kin. (A set of them would need memory in the middle of what is to fail.)
    static LAST: Cell<u64> = const { Cell::new(0) };
}

/// Fault injection for the calling thread.
pub struct Inject {
    file: Option<File>,
    /// The ioctls that it was done to.
    done: RefCell<BTreeSet<u64>>,
}

impl Drop for Inject {
    fn drop(&mut self) {
        self.file = None;
        // It was not loaded if the kernel has its own.
        let _ = sys::delete_module("fail_nth");
    }
}

impl Inject {
    /// Sets it up, or skips the test.
    pub fn new() -> Self {
        // What the test itself needs shall not be what fails.
        let _ = sys::bad_addr();
        let Some(file) = open("/proc/thread-self/fail-nth") else {
            if !std::path::Path::new(MODULE).exists() {
                harness::skip("the kernel has no fault injection, and fail_nth.ko is not there");
            }
            eq!(sys::load_module(MODULE, ""), Ok(0));
            return Self::with(open(MODULE_FILE).expect(MODULE_FILE));
        };
        // Allocations that may wait are to fail too, and silently.
        for (what, value) in [
            ("failslab/ignore-gfp-wait", "N"),
            ("failslab/verbose", "0"),
            ("fail_page_alloc/ignore-gfp-wait", "N"),
            ("fail_page_alloc/ignore-gfp-highmem", "N"),
            ("fail_page_alloc/min-order", "0"),
            ("fail_page_alloc/verbose", "0"),
            ("fail_usercopy/verbose", "0"),
        ] {
            let file = format!("/sys/kernel/debug/{what}");
            if let Err(e) = std::fs::write(&file, value) {
                panic!("{file}: {e}");
            }
        }
        Self::with(file)
    }

    fn with(file: File) -> Self {
        Self {
            file: Some(file),
            done: RefCell::new(BTreeSet::new()),
        }
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("the file is open until the end")
    }

    fn set(&self, n: u32) -> bool {
        self.file().write_at(n.to_string().as_bytes(), 0).is_ok()
    }

    /// Runs `f` with the `n`-th point failing; gives its result, and whether there were so many.
    pub fn nth<R>(&self, n: u32, f: impl FnOnce() -> R) -> (R, bool) {
        check!(self.set(n), "fail-nth cannot be written");
        let r = f();
        // What is left of the count. Reading it copies to user space, which can be what fails: then it was not reached before.
        let mut left = [0u8; 16];
        let hit =
            matches!(self.file().read_at(&mut left, 0), Ok(len) if left[..len].starts_with(b"0"));
        while !self.set(0) {}
        (r, hit)
    }

    /// Makes each point of `call` fail in turn, on a new subject each time; then the call has to work, and `after` to find
    /// everything in order.
    pub fn each<S>(
        &self,
        what: &str,
        setup: impl Fn() -> S,
        call: impl Fn(&S) -> Res,
        after: impl Fn(&S, bool),
    ) {
        for n in 1..MANY {
            let s = setup();
            LAST.set(0);
            let (r, hit) = self.nth(n, || call(&s));
            self.done.borrow_mut().insert(LAST.get());
            if let Err(e) = r {
                check!(
                    hit && matches!(e, ENOMEM | EFAULT),
                    "{what}, point {n}: errno {e}, {hit}"
                );
            }
            after(&s, r.is_ok());
            if r.is_err() {
                let again = call(&s);
                check!(again.is_ok(), "{what} after point {n} failed: {again:?}");
                after(&s, true);
            }
            if !hit {
                check!(r.is_ok(), "{what}: {r:?}");
                harness::say(&format!("{what}: {} points", n - 1));
                return;
            }
        }
        harness::fail(&format!("{what}: more than {MANY} points"));
    }

    /// An ioctl that this machine does not have.
    pub fn absent(&self, nr: u64) {
        self.done.borrow_mut().insert(nr);
    }

    /// The ioctls of this list have been made to fail, and no others.
    pub fn covers(&self, list: &[u64]) {
        let mut done = self.done.take();
        // What is no ioctl.
        done.remove(&0);
        let wanted: BTreeSet<u64> = list.iter().copied().collect();
        for nr in wanted.difference(&done) {
            harness::fail(&format!("{} was not made to fail", ioctl_name(*nr)));
        }
        for nr in done.difference(&wanted) {
            harness::fail(&format!("{} is not in the list", ioctl_name(*nr)));
        }
    }

    /// The same on a subject that calls do not use up.
    pub fn each_on<S>(
        &self,
        what: &str,
        s: &S,
        call: impl Fn(&S) -> Res,
        after: impl Fn(&S, bool),
    ) {
        self.each(what, || s, |s| call(s), |s, done| after(s, done));
    }
}

/// Nothing is to be seen of it.
pub fn nothing<S>(_: &S, _: bool) {}

// The calls that are made to fail go to the kernel directly: the wrappers of `kvm` allocate.

/// An ioctl with a number.
pub fn num(fd: &Kfd, nr: u64, arg: u64) -> Res {
    LAST.set(nr);
    sys::ioctl(fd.0.raw(), nr, Arg::Num(arg))
}

/// An ioctl with a structure, which is not looked at afterwards.
pub fn give<T: sys::Abi>(fd: &Kfd, nr: u64, v: &T) -> Res {
    LAST.set(nr);
    sys::ioctl_with(fd.0.raw(), nr, &mut { *v })
}

/// An ioctl that fills a structure.
pub fn take<T: sys::Abi>(fd: &Kfd, nr: u64) -> Res {
    give(fd, nr, &sys::zeroed::<T>())
}

/// An ioctl that gives a descriptor, which is closed at once.
pub fn fd_of(fd: &Kfd, nr: u64, arg: u64) -> Res {
    num(fd, nr, arg).map(|fd| {
        drop(OwnedFd::new(fd));
        0
    })
}

/// A call with a structure that is too big for the stack.
pub fn call<T: sys::Abi>(fd: &Kfd, nr: u64, v: &RefCell<Box<T>>) -> Res {
    LAST.set(nr);
    sys::ioctl_with(fd.0.raw(), nr, &mut **v.borrow_mut())
}

/// A call that has to be refused with `errno`, whenever nothing else fails.
pub fn refused(r: Res, errno: i32) -> Res {
    match r {
        Err(e) if e == errno => Ok(0),
        Ok(v) => panic!("it gave {v}, not errno {errno}"),
        other => other,
    }
}
