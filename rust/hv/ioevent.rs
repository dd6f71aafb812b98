// SPDX-License-Identifier: GPL-2.0
//! KVM_IOEVENTFD: writes of the guest that signal an eventfd, without a return to user space.

use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, Mutex};

use crate::model::ioevent::{self, Bus, IoEvent};
use crate::sys::cpu::Flag;
use crate::sys::eventfd::EventFd;
use crate::sys::srcu_cell::SrcuCell;
use crate::uapi::kvm_ioeventfd;

/// The registrations, sorted by [`IoEvent::key`], and the eventfd of each at the same place.
struct Set {
    events: KVVec<IoEvent>,
    targets: KVVec<Arc<EventFd>>,
}

impl Set {
    fn empty() -> Self {
        Self {
            events: KVVec::new(),
            targets: KVVec::new(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&IoEvent, &Arc<EventFd>)> {
        Iterator::zip(self.events.iter(), self.targets.iter())
    }

    /// A copy of the first `n` entries and of those from `from` on, with room for one more.
    fn copy(&self, n: usize, new: Option<(IoEvent, Arc<EventFd>)>, from: usize) -> Result<Self> {
        let room = self.events.len().saturating_add(1);
        let mut set = Self {
            events: KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?,
            targets: KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?,
        };
        let mut push = |event, target| {
            set.events.push_within_capacity(event).map_err(|_| ENOMEM)?;
            set.targets.push_within_capacity(target).map_err(|_| ENOMEM)
        };
        for (event, target) in self.iter().take(n) {
            push(*event, target.clone())?;
        }
        if let Some((event, target)) = new {
            push(event, target)?;
        }
        for (event, target) in self.iter().skip(from) {
            push(*event, target.clone())?;
        }
        Ok(set)
    }
}

/// A VM's registrations.
#[pin_data]
pub(crate) struct IoEvents {
    #[pin]
    set: SrcuCell<Set>,
    /// There are any on this bus: without, a write costs this look only.
    memory: Flag,
    ports: Flag,
    /// Held while the set is being changed.
    #[pin]
    changing: Mutex<()>,
}

impl IoEvents {
    /// None. Task context, may sleep.
    pub(crate) fn new() -> Result<impl PinInit<Self, Error>> {
        let empty = KBox::new(Set::empty(), GFP_KERNEL_ACCOUNT)?;
        Ok(try_pin_init!(Self {
            set <- SrcuCell::new(empty),
            memory: Flag::new(false),
            ports: Flag::new(false),
            changing <- new_mutex!((), "lodge_ioevents"),
        }))
    }

    /// Tells whether a write of the low `len` bytes of `value` was for an eventfd; then it is done.
    ///
    /// # Context
    /// Task context, the vCPU loaded; does not sleep.
    #[inline]
    pub(crate) fn write(&self, bus: Bus, addr: u64, len: u8, value: u64) -> bool {
        let any = match bus {
            Bus::Port => &self.ports,
            _ => &self.memory,
        };
        any.get() && self.find_and_signal(bus, addr, len, value)
    }

    #[inline(never)]
    fn find_and_signal(&self, bus: Bus, addr: u64, len: u8, value: u64) -> bool {
        let set = self.set.read();
        let target = ioevent::find(&set.events, bus, addr, len, value)
            .and_then(|at| set.targets.get(at))
            .inspect(|target| target.signal());
        target.is_some()
    }

    /// KVM_IOEVENTFD. EBADF or EINVAL for what is no eventfd; EINVAL for words that make no sense; EEXIST if a registration is in the
    /// way; ENOENT if there is none to give up.
    ///
    /// # Context
    /// A task; sleeps for an SRCU grace period.
    pub(crate) fn change(&self, words: &kvm_ioeventfd) -> Result {
        let (flags, addr, len, value) = (words.flags, words.addr, words.len, words.datamatch);
        if flags & ioevent::DEASSIGN != 0 {
            return self.remove(&IoEvent::named(flags, addr, len, value), words.fd);
        }
        let event = IoEvent::checked(flags, addr, len, value).ok_or(EINVAL)?;
        self.add(event, words.fd)
    }

    fn add(&self, event: IoEvent, fd: i32) -> Result {
        let target = Arc::new(EventFd::get(fd)?, GFP_KERNEL_ACCOUNT)?;
        let _changing = self.changing.lock();
        let set = {
            let set = self.set.read();
            if set.events.iter().any(|have| have.collides(&event)) {
                return Err(EEXIST);
            }
            let at = ioevent::place(&set.events, event.key());
            set.copy(at, Some((event, target)), at)?
        };
        self.publish(set)
    }

    fn remove(&self, event: &IoEvent, fd: i32) -> Result {
        let target = EventFd::get(fd)?;
        let _changing = self.changing.lock();
        let set = {
            let set = self.set.read();
            let at = set
                .iter()
                .position(|(have, to)| have == event && **to == target)
                .ok_or(ENOENT)?;
            set.copy(at, None, at.saturating_add(1))?
        };
        self.publish(set)
    }

    /// Every write from now on looks into `set`. With `changing` held.
    fn publish(&self, set: Set) -> Result {
        let on = |bus| set.events.iter().any(|e| e.bus == bus);
        let (memory, ports) = (on(Bus::Memory), on(Bus::Port));
        self.set.replace(KBox::new(set, GFP_KERNEL_ACCOUNT)?);
        self.memory.set(memory);
        self.ports.set(ports);
        Ok(())
    }
}
