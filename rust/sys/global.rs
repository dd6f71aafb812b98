// SPDX-License-Identifier: GPL-2.0
//! What a backend sets up once at load and every CPU uses: a value that is there from setup to teardown.
//!
//! Unsafe because: it is shared by raw pointer; the module's load and unload are the only writers.

use kernel::prelude::*;

use crate::sys::cpu::{IrqOff, PreemptOff, Word};

/// A lazily set, shared value.
pub(crate) struct Global<T>(Word, core::marker::PhantomData<fn() -> T>);

impl<T: Sync + Send + 'static> Global<T> {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self(Word::new(), core::marker::PhantomData)
    }

    /// Sets the value. Only once between two [`Global::clear`].
    pub(crate) fn set(&self, value: KBox<T>) {
        let old = self.0.get();
        self.0.set(KBox::into_raw(value) as u64);
        if old != 0 {
            // A second value would leak the first, which is not unsound and is our own mistake.
            pr_err!("a global was set twice\n");
        }
    }

    /// The value; EIO outside of setup to teardown, which is our own mistake.
    pub(crate) fn get(&self) -> Result<&'static T> {
        let p = self.0.get() as *const T;
        if p.is_null() {
            return Err(EIO);
        }
        // SAFETY: set by `set`, and not cleared while anything that calls this can run.
        Ok(unsafe { &*p })
    }

    fn clear(&self) {
        let p = self.0.get() as *mut T;
        self.0.set(0);
        if !p.is_null() {
            // SAFETY: from `KBox::into_raw`; no longer referenced, see `clear_at_unload`.
            drop(unsafe { KBox::from_raw(p) });
        }
    }
}

/// Drops the value. Called by the module's unloading only, when no descriptor and so no VM is left (they hold a reference to
/// the module), and virtualization is off on each CPU: nothing uses the value any more.
pub(crate) fn clear_at_unload<T: Sync + Send + 'static>(global: &Global<T>) {
    global.clear();
}

/// One plain value for each CPU, for use by that CPU with interrupts off (or by its hotplug callbacks).
pub(crate) struct PerCpu<T: Copy>(KVec<core::cell::Cell<T>>);

// SAFETY: each cell is used by its own CPU only, with preemption off, and not from interrupts.
unsafe impl<T: Copy + Send> Sync for PerCpu<T> {}

impl<T: Copy> PerCpu<T> {
    /// The same first value for each possible CPU.
    pub(crate) fn new(value: T) -> Result<Self> {
        let n = crate::sys::cpu::nr_cpus() as usize;
        let mut v = KVec::with_capacity(n, GFP_KERNEL)?;
        for _ in 0..n {
            v.push(core::cell::Cell::new(value), GFP_KERNEL)?;
        }
        Ok(Self(v))
    }

    /// This CPU's value.
    pub(crate) fn get(&self, irq: &IrqOff) -> Option<T> {
        self.0.get(irq.cpu() as usize).map(core::cell::Cell::get)
    }

    /// Sets this CPU's value.
    pub(crate) fn set(&self, irq: &IrqOff, value: T) {
        if let Some(cell) = self.0.get(irq.cpu() as usize) {
            cell.set(value);
        }
    }

    /// Changes this CPU's value while no vCPU runs on it (CPU hotplug).
    pub(crate) fn update(&self, preempt: &PreemptOff, change: impl FnOnce(T) -> T) {
        if let Some(cell) = self.0.get(preempt.cpu() as usize) {
            cell.set(change(cell.get()));
        }
    }
}
