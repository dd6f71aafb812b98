// SPDX-License-Identifier: GPL-2.0
//! Host memory for the second-stage MMU: its lock, user pages, the MMU notifier and user memory access.
//!
//! Unsafe because: it calls `mm.c`, where each function's context is stated.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::{NotThreadSafe, Opaque};

use super::lent::Lent;

/// `struct lodge_host_page`.
#[repr(C)]
struct RawHostPage {
    pfn: u64,
    page: *mut c_void,
    writable: bool,
    ram: bool,
}

/// `struct lodge_mm_events`.
#[repr(C)]
struct RawEvents {
    invalidate_start: unsafe extern "C" fn(*const c_void, u64, u64, bool),
    invalidate_end: unsafe extern "C" fn(*const c_void, u64, u64),
    age: unsafe extern "C" fn(*const c_void, u64, u64, u32) -> bool,
    release: unsafe extern "C" fn(*const c_void),
}

unsafe extern "C" {
    fn lodge_rwlock_init(lock: *mut bindings::rwlock_t);
    fn lodge_read_lock(lock: *mut bindings::rwlock_t);
    fn lodge_read_unlock(lock: *mut bindings::rwlock_t);
    fn lodge_write_lock(lock: *mut bindings::rwlock_t);
    fn lodge_write_unlock(lock: *mut bindings::rwlock_t);
    fn lodge_write_wanted(lock: *mut bindings::rwlock_t) -> bool;
    safe fn lodge_small_code_only(choice: kernel::ffi::c_int) -> bool;
    safe fn lodge_memory_encrypted() -> bool;
    safe fn lodge_signal_poisoned(hva: u64);
    fn lodge_host_page_get(
        hva: u64,
        write: bool,
        may_write: bool,
        out: *mut RawHostPage,
    ) -> kernel::ffi::c_int;
    fn lodge_host_page_put(page: *mut c_void, dirty: bool);
    safe fn lodge_host_level(hva: u64) -> u8;
    fn lodge_mm_watch(
        out: *mut *mut c_void,
        events: *const RawEvents,
        context: *const c_void,
    ) -> kernel::ffi::c_int;
    fn lodge_mm_unwatch(mm: *mut c_void);
    fn lodge_mm_is_current(mm: *const c_void) -> bool;
    safe fn lodge_cond_resched();
    fn lodge_map_page(mm: *mut *mut c_void) -> i64;
    fn lodge_unmap_page(mm: *mut c_void, hva: u64);
    safe fn lodge_user_end() -> u64;
    fn lodge_user_words_are(word: *const UserWord, n: u64) -> bool;
    fn lodge_read_user_word(to: *mut u64, hva: u64, bytes: u32) -> bool;
    fn lodge_read_user(to: *mut u8, hva: u64, bytes: u64) -> u64;
    fn lodge_write_user(hva: u64, from: *const u8, bytes: u64) -> u64;
    fn lodge_cmpxchg_user(hva: u64, bytes: u32, old: *mut u64, new: u64) -> kernel::ffi::c_int;
}

/// What was found at a user address: `struct lodge_user_word`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UserWord {
    /// The address.
    pub(crate) hva: u64,
    /// The eight bytes there.
    pub(crate) value: u64,
}

/// Whether each of the words is still what it was. False also where one can no longer be read, and for none.
///
/// # Context
/// A task of the VM's process; sleeps.
pub(crate) fn words_are(words: &[UserWord]) -> bool {
    // SAFETY: the words are readable; user memory is read as such.
    !words.is_empty() && unsafe { lodge_user_words_are(words.as_ptr(), words.len() as u64) }
}

/// A reader-writer spinlock around `T`.
///
/// # Context
/// Taken by tasks only; the holder must not sleep.
#[pin_data]
pub(crate) struct RwSpinLock<T> {
    #[pin]
    raw: Opaque<bindings::rwlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: the lock moves with its data, of which it gives one thread at a time `&mut`.
unsafe impl<T: Send> Send for RwSpinLock<T> {}
// SAFETY: as above; several threads may have `&T` at once.
unsafe impl<T: Send + Sync> Sync for RwSpinLock<T> {}

impl<T> RwSpinLock<T> {
    /// An unlocked lock.
    pub(crate) fn new(data: T) -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid, pinned memory for a lock.
                unsafe { lodge_rwlock_init(slot) }
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Takes the read side.
    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: initialised by `new`.
        unsafe { lodge_read_lock(self.raw.get()) };
        ReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Takes the write side.
    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: initialised by `new`.
        unsafe { lodge_write_lock(self.raw.get()) };
        WriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// The read side held.
pub(crate) struct ReadGuard<'a, T> {
    lock: &'a RwSpinLock<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the read side is held, so nobody has a `&mut`.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this task holds the read side.
        unsafe { lodge_read_unlock(self.lock.raw.get()) };
    }
}

/// The write side held.
pub(crate) struct WriteGuard<'a, T> {
    lock: &'a RwSpinLock<T>,
    _not_send: NotThreadSafe,
}

impl<T> WriteGuard<'_, T> {
    /// Whether others wait for the lock, or for this CPU.
    pub(crate) fn wanted(&self) -> bool {
        // SAFETY: the lock lives; this only looks at it.
        unsafe { lodge_write_wanted(self.lock.raw.get()) }
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the write side is held.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the write side is held, and `self` is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this task holds the write side.
        unsafe { lodge_write_unlock(self.lock.raw.get()) };
    }
}

/// Whether guests may execute from small leaves only (iTLB multihit); `choice` is the parameter `nx_huge_pages`.
pub(crate) fn small_code_only(choice: i32) -> bool {
    lodge_small_code_only(choice)
}

/// Whether the host's memory is encrypted: then a physical address alone does not reach it.
pub(crate) fn memory_encrypted() -> bool {
    lodge_memory_encrypted()
}

/// Sends the current thread the SIGBUS of an access to a user address whose page has an uncorrectable memory error.
pub(crate) fn signal_poisoned(hva: u64) {
    lodge_signal_poisoned(hva);
}

/// The host page behind a user address, with a reference on it if it has a `struct page`.
///
/// # Invariants
/// `raw.page` is null or a page on which this value owns a reference.
pub(crate) struct HostPage {
    raw: RawHostPage,
}

/// Why there is no host page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostPageError {
    /// Nothing is mapped there, or not for this access.
    Fault,
    /// A driver has mapped something there that cannot be written.
    ReadOnly,
    /// The page has an uncorrectable memory error.
    HwPoison,
    /// A signal is pending.
    Interrupted,
    /// The mapping changed meanwhile: start over.
    Again,
}

impl HostPage {
    /// Finds the page at `hva` of the current mm, for writing or reading, faulting it in. With `may_write`, a page found for reading
    /// is writable too where that costs nothing. Task context, may sleep.
    #[inline]
    pub(crate) fn get(hva: u64, write: bool, may_write: bool) -> Result<Self, HostPageError> {
        let mut raw = RawHostPage {
            pfn: 0,
            page: core::ptr::null_mut(),
            writable: false,
            ram: false,
        };
        // SAFETY: `raw` is valid for writing.
        let status = unsafe { lodge_host_page_get(hva, write, may_write, &mut raw) };
        match status.unsigned_abs() {
            // INVARIANT: on success, the function left the reference it took in `raw.page`.
            0 => Ok(Self { raw }),
            bindings::EHWPOISON => Err(HostPageError::HwPoison),
            bindings::EINTR => Err(HostPageError::Interrupted),
            bindings::EROFS => Err(HostPageError::ReadOnly),
            bindings::EAGAIN => Err(HostPageError::Again),
            _ => Err(HostPageError::Fault),
        }
    }

    /// Its page frame number.
    pub(crate) fn pfn(&self) -> u64 {
        self.raw.pfn
    }

    /// Whether the host may write to it.
    pub(crate) fn writable(&self) -> bool {
        self.raw.writable
    }

    /// Whether it is ordinary memory, as opposed to a device's.
    pub(crate) fn is_ram(&self) -> bool {
        self.raw.ram
    }

    /// Drops the reference of a page that the guest can write to from now on. Before `mmu_lock` is let go; any context.
    pub(crate) fn put_dirty(self) {
        let this = ManuallyDrop::new(self);
        // SAFETY: by the invariant; `drop` does not run.
        unsafe { lodge_host_page_put(this.raw.page, true) };
    }
}

impl Drop for HostPage {
    fn drop(&mut self) {
        // SAFETY: by the invariant; null is allowed.
        unsafe { lodge_host_page_put(self.raw.page, false) };
    }
}

/// A page of anonymous memory in a process's address space, which sees it as its own memory. Unmapped when this is dropped there.
///
/// # Invariants
/// `mm` is an mm to which this holds a reference.
pub(crate) struct MappedPage {
    hva: u64,
    mm: NonNull<c_void>,
}

// SAFETY: the C functions may be called from any task.
unsafe impl Send for MappedPage {}

impl MappedPage {
    /// Maps one into the current process. Task context, sleeps.
    pub(crate) fn new() -> Result<Self> {
        let mut mm = core::ptr::null_mut();
        // SAFETY: `mm` is written.
        let hva = unsafe { lodge_map_page(&mut mm) };
        let Ok(address) = u64::try_from(hva) else {
            return Err(Error::from_errno(hva as i32));
        };
        // INVARIANT: it worked, so `mm` comes with a reference.
        Ok(Self {
            hva: address,
            mm: NonNull::new(mm).ok_or(ENOMEM)?,
        })
    }

    /// Its user address.
    pub(crate) fn hva(&self) -> u64 {
        self.hva
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // SAFETY: by the invariant. In its own process the address is the process's to unmap, whatever is mapped there by now.
        unsafe { lodge_unmap_page(self.mm.as_ptr(), self.hva) };
    }
}

/// The level, 1 to 3 for 4 KiB to 1 GiB, at which the current mm maps `hva` at this moment.
pub(crate) fn host_level(hva: u64) -> u8 {
    lodge_host_level(hva)
}

/// How a range is asked for its age.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgeHow {
    /// Only asked.
    Test,
    /// And marked unused.
    Clear,
    /// And marked unused in the TLBs too.
    ClearFlush,
}

/// What happens to the host's page tables of an mm, in user addresses, half open.
///
/// # Context
/// Any task, several at once, with locks of the memory manager held: memory must not be allocated.
pub(crate) trait MmEvents: Send + Sync + 'static {
    /// The range's mappings are about to go; paired with `invalidate_end`. Nothing sleeps unless `may_block`.
    fn invalidate_start(&self, start: u64, end: u64, may_block: bool);
    /// They are gone.
    fn invalidate_end(&self, start: u64, end: u64);
    /// Whether the range was used.
    fn age(&self, start: u64, end: u64, how: AgeHow) -> bool;
    /// The address space goes, or the watch ends.
    fn release(&self);
}

/// The watch over the current mm. Events go to the target until it is dropped.
///
/// # Invariants
/// C's object is a `struct lodge_mm`.
pub(crate) struct MmWatch<T: MmEvents>(Lent<T>);

impl<T: MmEvents> MmWatch<T> {
    const EVENTS: RawEvents = RawEvents {
        invalidate_start: Self::invalidate_start,
        invalidate_end: Self::invalidate_end,
        age: Self::age,
        release: Self::release,
    };

    /// Watches the current mm. Task context, may sleep.
    pub(crate) fn new(target: Arc<T>) -> Result<Self> {
        let watch = |context| {
            let mut raw = core::ptr::null_mut();
            // SAFETY: the table is static, and its functions are given the address of a `T`.
            let status = unsafe { lodge_mm_watch(&mut raw, &Self::EVENTS, context) };
            kernel::error::to_result(status).map(|()| raw)
        };
        // INVARIANT: that is what `lodge_mm_watch` makes.
        // SAFETY: events have ended when `lodge_mm_unwatch` returns.
        unsafe { Lent::new(target, watch, lodge_mm_unwatch) }.map(Self)
    }

    /// Whether the current task runs in the mm that is watched.
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: by the invariant.
        unsafe { lodge_mm_is_current(self.0.raw()) }
    }

    /// # Safety
    /// `context` is the memory of a live `T`.
    unsafe extern "C" fn invalidate_start(
        context: *const c_void,
        start: u64,
        end: u64,
        block: bool,
    ) {
        // SAFETY: by the contract.
        unsafe { &*context.cast::<T>() }.invalidate_start(start, end, block);
    }

    /// # Safety
    /// `context` is the memory of a live `T`.
    unsafe extern "C" fn invalidate_end(context: *const c_void, start: u64, end: u64) {
        // SAFETY: by the contract.
        unsafe { &*context.cast::<T>() }.invalidate_end(start, end);
    }

    /// # Safety
    /// `context` is the memory of a live `T`.
    unsafe extern "C" fn age(context: *const c_void, start: u64, end: u64, how: u32) -> bool {
        let how = match how {
            0 => AgeHow::Test,
            1 => AgeHow::Clear,
            _ => AgeHow::ClearFlush,
        };
        // SAFETY: by the contract.
        unsafe { &*context.cast::<T>() }.age(start, end, how)
    }

    /// # Safety
    /// `context` is the memory of a live `T`.
    unsafe extern "C" fn release(context: *const c_void) {
        // SAFETY: by the contract.
        unsafe { &*context.cast::<T>() }.release();
    }
}

/// Lets another task run if one should. A task that may sleep, without a spinlock.
pub(crate) fn cond_resched() {
    lodge_cond_resched();
}

/// The first address that is not a user address.
pub(crate) fn user_end() -> u64 {
    lodge_user_end()
}

/// Fills `to` from user memory. Gives the number of bytes at its end that could not be read; those are zeroed.
/// Task context, may sleep.
pub(crate) fn read_user(to: &mut [u8], hva: u64) -> usize {
    // SAFETY: `to` is valid for writing; the function checks the user address.
    unsafe { lodge_read_user(to.as_mut_ptr(), hva, to.len() as u64) as usize }
}

/// The user word of 8 bytes, or of 4, at `hva`, where it can be read. Task context, may sleep.
pub(crate) fn read_user_word(hva: u64, wide: bool) -> Option<u64> {
    let mut word = 0;
    let bytes = if wide { 8 } else { 4 };
    // SAFETY: `word` is valid for writing; the function checks the user address.
    unsafe { lodge_read_user_word(&mut word, hva, bytes) }.then_some(word)
}

/// Writes `from` to user memory. Gives the number of bytes at its end that could not be written. Task context, may sleep.
pub(crate) fn write_user(hva: u64, from: &[u8]) -> usize {
    // SAFETY: `from` is valid for reading; the function checks the user address.
    unsafe { lodge_write_user(hva, from.as_ptr(), from.len() as u64) as usize }
}

/// Writes `new` to the user word of `bytes` (1, 2, 4 or 8, naturally aligned) at `hva` if it is `old`; otherwise gives what it is. EFAULT if it cannot be
/// written. Task context, may sleep.
pub(crate) fn cmpxchg_user(hva: u64, bytes: u32, old: u64, new: u64) -> Result<Result<(), u64>> {
    let mut found = old;
    // SAFETY: `found` is valid for writing; the function checks the user address and the size.
    match unsafe { lodge_cmpxchg_user(hva, bytes, &mut found, new) } {
        0 => Ok(Ok(())),
        1 => Ok(Err(found)),
        _ => Err(EFAULT),
    }
}
