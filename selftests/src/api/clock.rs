// SPDX-License-Identifier: GPL-2.0
//! KVM's clock (KVM_GET_CLOCK, KVM_SET_CLOCK, its pages, KVM_KVMCLOCK_CTRL) and the rate and offset of the time-stamp counter.

use crate::guest::{Guest, Mode, CODE, DATA};
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::record::muted;
use crate::sys::{bad_addr, filled, Map};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{EFAULT, EINVAL, ENXIO};

pub const TESTS: &[Test] = &[
    Test::new("api/clock_get_set", get_set),
    Test::new("api/clock_page", page),
    Test::new("api/clock_pages_agree", pages_agree).no_ab(),
    Test::new("api/clock_wall", wall),
    Test::new("api/clock_stopped", stopped),
    Test::new("api/clock_memory_later", memory_later).no_ab(),
    Test::new("api/tsc_rate", rate),
    Test::new("api/tsc_rate_near", rate_near),
    Test::new("api/tsc_rate_vm", rate_vm),
    Test::new("api/tsc_offset", offset),
    Test::new("api/tsc_keeps_time", keeps_time),
    Test::new("api/tsc_in_step", in_step),
    Test::new("api/tsc_in_step_offset", in_step_offset),
];

const SECOND: u64 = 1_000_000_000;
const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;

/// Measurements are not recorded: they differ from run to run.
pub fn clock(vm: &Vm) -> kvm_clock_data {
    muted(|| crate::must!(vm.fd.take(GET_CLOCK)))
}

fn need(k: &Kvm, cap: u32) {
    if k.cap(cap) == 0 {
        harness::skip("not offered");
    }
}

/// The host was told not to trust its time-stamp counters.
fn host_tsc_is_unstable() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|c| c.contains("tsc=unstable"))
}

fn get_set() {
    let k = Kvm::open();
    need(&k, KVM_CAP_ADJUST_CLOCK);
    let vm = k.vm();
    let first = clock(&vm);
    check!(
        first.clock < 60 * SECOND,
        "it starts at zero: {}",
        first.clock
    );
    check!(first.flags & !14 == 0, "flags {:x}", first.flags);
    eq!(first.pad, [0; 4]);
    if host_tsc_is_unstable() {
        eq!(
            (first.flags & 12, first.realtime, first.host_tsc),
            (0, 0, 0)
        );
    }
    let second = clock(&vm);
    check!(second.clock > first.clock, "it runs");
    let mut d: kvm_clock_data = filled(0);
    for at in [0, 5 * SECOND, 1 << 50] {
        d.clock = at;
        eq!(vm.fd.give(SET_CLOCK, &d), Ok(0));
        let now = clock(&vm).clock;
        check!((at..at + 20 * SECOND).contains(&now), "set to {at}: {now}");
    }
    // What was got can be set.
    let back = clock(&vm);
    muted(|| eq!(vm.fd.give(SET_CLOCK, &back), Ok(0)));
    check!(clock(&vm).clock >= back.clock, "it goes on");
    // Since that time of day so much has passed.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |t| t.as_nanos() as u64);
    (d.flags, d.clock, d.realtime) = (KVM_CLOCK_REALTIME, SECOND, now - 1000 * SECOND);
    muted(|| eq!(vm.fd.give(SET_CLOCK, &d), Ok(0)));
    let c = clock(&vm).clock;
    check!(
        (1001 * SECOND..1030 * SECOND).contains(&c),
        "a thousand seconds later: {c}"
    );
    // A time to come does not turn it back.
    (d.clock, d.realtime) = (7 * SECOND, now + 1000 * SECOND);
    muted(|| eq!(vm.fd.give(SET_CLOCK, &d), Ok(0)));
    let c = clock(&vm).clock;
    check!((7 * SECOND..27 * SECOND).contains(&c), "{c}");
    for flags in [1, 16, 1 << 31, u32::MAX] {
        (d.flags, d.clock) = (flags, 1 << 60);
        muted(|| eq!(vm.fd.give(SET_CLOCK, &d), Err(EINVAL), "flags {flags:x}"));
    }
    check!(clock(&vm).clock < 1 << 59, "a refused call changes nothing");
    for nr in [GET_CLOCK, SET_CLOCK] {
        eq!(vm.fd.num(nr, bad_addr()), Err(EFAULT));
    }
}

/// What the guest reads in its page, in the order of the page.
pub struct Page {
    version: u32,
    tsc: u64,
    time: u64,
    mul: u32,
    shift: i8,
    flags: u8,
}

/// What the page tells of the guest's having been stopped: 2 or 0.
pub fn stopped_flag(g: &Guest, at: u64) -> u8 {
    read(g, at).flags & 2
}

pub fn read(g: &Guest, at: u64) -> Page {
    let at = at as usize;
    Page {
        version: g.mem.rd(at),
        tsc: g.mem.rd(at + 8),
        time: g.mem.rd(at + 16),
        mul: g.mem.rd(at + 24),
        shift: g.mem.rd(at + 28),
        flags: g.mem.rd(at + 29),
    }
}

impl Page {
    /// The time when the counter reads `tsc`.
    pub fn at(&self, tsc: u64) -> u64 {
        let d = tsc.wrapping_sub(self.tsc);
        let d = if self.shift < 0 {
            d >> -self.shift
        } else {
            d << self.shift
        };
        self.time + ((u128::from(d) * u128::from(self.mul)) >> 32) as u64
    }
}

fn clock_guest() -> Guest {
    let g = Guest::new(Mode::Long);
    need(&g.kvm, KVM_CAP_CLOCKSOURCE);
    // Each run: the counter in EDX:EAX, and out.
    g.mem.write(CODE as usize, &[0x0f, 0x31, 0xf4, 0xeb, 0xfb]);
    g
}

/// Runs the guest once, and gives its time-stamp counter.
fn tick(g: &Guest) -> u64 {
    muted(|| {
        let e = g.cpu.run();
        check!(e == Exit::Hlt, "{e:?}");
        let r = g.cpu.regs();
        r.rdx << 32 | r.rax
    })
}

fn page() {
    let g = clock_guest();
    check!(muted(|| g.cpu.set_msr(SYSTEM_TIME, DATA | 1)), "MSR");
    eq!(g.cpu.msr(SYSTEM_TIME), Some(DATA | 1));
    eq!(
        g.cpu.msr(0x12),
        Some(DATA | 1),
        "the old number is the same"
    );
    let tsc = tick(&g);
    let p = read(&g, DATA);
    check!(
        p.version != 0 && p.version & 1 == 0,
        "version {}",
        p.version
    );
    check!(p.mul >= 1 << 31, "multiplier {:x}", p.mul);
    let now = clock(&g.vm).clock;
    let guest = p.at(tsc);
    check!(
        guest <= now + SECOND / 100 && now < guest + 20 * SECOND,
        "the guest has {guest}, the VM {now}"
    );
    // It is the rate of the time-stamp counter.
    let khz = muted(|| crate::must!(g.cpu.fd.num(GET_TSC_KHZ, 0))) as u64;
    let second = p.at(p.tsc + khz * 1000) - p.time;
    check!(
        second.abs_diff(SECOND) < SECOND / 1000,
        "a second of ticks is {second}"
    );
    // It follows KVM_SET_CLOCK, with a new version.
    let mut d: kvm_clock_data = filled(0);
    d.clock = 1 << 50;
    eq!(g.vm.fd.give(SET_CLOCK, &d), Ok(0));
    let tsc = tick(&g);
    let q = read(&g, DATA);
    check!(
        q.version != p.version && q.version & 1 == 0,
        "version {}",
        q.version
    );
    check!(
        ((1 << 50)..(1 << 50) + 20 * SECOND).contains(&q.at(tsc)),
        "{}",
        q.at(tsc)
    );
    // And a change of the counter.
    check!(muted(|| g.cpu.set_msr(0x10, 1 << 55)), "TSC");
    let tsc = tick(&g);
    check!(tsc >= 1 << 55, "{tsc:x}");
    let r = read(&g, DATA);
    check!(
        r.at(tsc) >= q.time && r.at(tsc) < q.time + 60 * SECOND,
        "{} after {}",
        r.at(tsc),
        q.time
    );
    // Switched off, it is left alone; where there is no memory, nothing happens.
    check!(g.cpu.set_msr(SYSTEM_TIME, 0), "MSR");
    g.mem.wr(DATA as usize, 0u32);
    eq!(g.vm.fd.give(SET_CLOCK, &d), Ok(0));
    tick(&g);
    eq!(read(&g, DATA).version, 0);
    check!(g.cpu.set_msr(SYSTEM_TIME, 0xd000_0001), "MSR");
    tick(&g);
}

/// However late a page is written: by the pages of all vCPUs, and by KVM_GET_CLOCK, it is the same time.
fn pages_agree() {
    need_lasting_offsets();
    let g = clock_guest();
    need(&g.kvm, KVM_CAP_VCPU_ATTRIBUTES);
    let second = g.second_vcpu(1);
    let pages = [DATA, DATA + 64];
    let mut seen = Vec::new();
    for late in [false, true] {
        for (c, at) in [&g.cpu, &second].into_iter().zip(pages) {
            check!(muted(|| c.set_msr(SYSTEM_TIME, at | 1)), "MSR");
            muted(|| eq!(c.run(), Exit::Hlt));
            let p = read(&g, at);
            seen.push((p.tsc, p.time, p.mul, p.shift));
            a_while();
        }
        if late {
            eq!(g.cpu.fd.num(KVMCLOCK_CTRL, 0), Ok(0));
            tick(&g);
            let p = read(&g, DATA);
            seen.push((p.tsc, p.time, p.mul, p.shift));
        }
    }
    seen.dedup();
    check!(seen.len() == 1, "{seen:?}");
    let c = clock(&g.vm);
    if c.flags & KVM_CLOCK_HOST_TSC != 0 {
        let told = read(&g, DATA).at(c.host_tsc.wrapping_add(tsc_offset(&g.cpu)));
        check!(told.abs_diff(c.clock) < 10, "{told} and {}", c.clock);
    }
}

fn wall() {
    let g = clock_guest();
    for msr in [WALL_CLOCK, 0x11] {
        g.mem.write(DATA as usize, &[0; 12]);
        check!(muted(|| g.cpu.set_msr(msr, DATA)), "MSR {msr:x}");
        eq!(g.cpu.msr(msr), Some(DATA));
        let (version, sec): (u32, u32) = (g.mem.rd(DATA as usize), g.mem.rd(DATA as usize + 4));
        check!(version != 0 && version & 1 == 0, "version {version}");
        check!(
            g.mem.rd::<u32>(DATA as usize + 8) < SECOND as u32,
            "nanoseconds"
        );
        // The time of day when the clock was zero, and the clock, make the time of day.
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |t| t.as_secs());
        let told = u64::from(sec) + clock(&g.vm).clock / SECOND;
        check!(told.abs_diff(now) <= 5, "{told} for {now}");
    }
}

fn stopped() {
    let g = clock_guest();
    need(&g.kvm, KVM_CAP_KVMCLOCK_CTRL);
    eq!(
        g.cpu.fd.num(KVMCLOCK_CTRL, 0),
        Err(EINVAL),
        "a guest without the clock"
    );
    check!(muted(|| g.cpu.set_msr(SYSTEM_TIME, DATA | 1)), "MSR");
    tick(&g);
    eq!(read(&g, DATA).flags & 2, 0);
    eq!(g.cpu.fd.num(KVMCLOCK_CTRL, 0), Ok(0));
    tick(&g);
    eq!(read(&g, DATA).flags & 2, 2, "the guest was stopped");
    // The guest takes the flag back; it stays so.
    g.mem.wr(DATA as usize + 29, 0u8);
    let mut d: kvm_clock_data = filled(0);
    d.clock = SECOND;
    eq!(g.vm.fd.give(SET_CLOCK, &d), Ok(0));
    tick(&g);
    eq!(read(&g, DATA).flags & 2, 0);
}

/// What the page is to tell is not lost where there is no memory yet.
fn memory_later() {
    const LATER: u64 = 0xd000_0000;
    const PAGE: u64 = 4096;
    let g = clock_guest();
    check!(muted(|| g.cpu.set_msr(SYSTEM_TIME, LATER | 1)), "MSR");
    eq!(g.cpu.fd.num(KVMCLOCK_CTRL, 0), Ok(0));
    tick(&g);
    let memory = Map::anon(PAGE as usize);
    eq!(g.vm.region(9, 0, LATER, PAGE, memory.addr()), Ok(0));
    tick(&g);
    let (version, flags) = (memory.rd::<u32>(0), memory.rd::<u8>(29));
    check!(version != 0 && version & 1 == 0, "version {version}");
    eq!(flags & 2, 2, "the guest was stopped");
}

/// How fast the guest's counter runs, in kHz, by the host's clock.
fn measured(c: &Vcpu) -> u64 {
    muted(|| {
        let read = || c.msr(0x10).unwrap_or(0);
        let (from, a) = (std::time::Instant::now(), read());
        std::thread::sleep(std::time::Duration::from_millis(200));
        let b = read();
        (b - a) / (from.elapsed().as_millis() as u64).max(1)
    })
}

fn rate() {
    let g = clock_guest();
    let c = &g.cpu;
    let khz = || muted(|| crate::must!(c.fd.num(GET_TSC_KHZ, 0))) as u64;
    let host = khz();
    let set = |khz: u64| muted(|| c.fd.num(SET_TSC_KHZ, khz));
    eq!(set(0), Ok(0), "the host's");
    eq!(khz(), host);
    eq!(set(host), Ok(0));
    // A little more or less is the inaccuracy of a clock.
    eq!(set(host + host / 10_000), Ok(0));
    eq!(khz(), host + host / 10_000);
    // Twice as fast: by the hardware, or the counter is pushed forward at each entry.
    eq!(set(2 * host), Ok(0));
    eq!(khz(), 2 * host);
    check!(muted(|| c.set_msr(0x10, 0)), "TSC");
    let (from, a) = (std::time::Instant::now(), tick(&g));
    std::thread::sleep(std::time::Duration::from_millis(300));
    let b = tick(&g);
    let fast = (b - a) / (from.elapsed().as_millis() as u64).max(1);
    check!(
        fast > 3 * host / 2 && fast < 3 * host,
        "{fast} kHz for {}",
        2 * host
    );
    if g.kvm.cap(KVM_CAP_TSC_CONTROL) == 0 {
        eq!(
            set(host / 2),
            Err(EINVAL),
            "a slower counter needs hardware"
        );
    } else {
        eq!(set(host / 2), Ok(0));
        eq!(khz(), host / 2);
        let slow = measured(c);
        check!(
            slow > host / 4 && slow < 3 * host / 4,
            "{slow} kHz for {}",
            host / 2
        );
        eq!(set(0x7fff_ffff), Err(EINVAL));
        // The guest's clock follows the rate.
        check!(muted(|| c.set_msr(SYSTEM_TIME, DATA | 1)), "MSR");
        tick(&g);
        let p = read(&g, DATA);
        let second = p.at(p.tsc + host / 2 * 1000) - p.time;
        check!(
            second.abs_diff(SECOND) < SECOND / 1000,
            "a second of ticks is {second}"
        );
    }
}

/// A rate that is nearly the hardware's changes nothing: the guest's clock goes by the rate at which the counter really runs.
fn rate_near() {
    let g = clock_guest();
    let c = &g.cpu;
    let host = muted(|| crate::must!(c.fd.num(GET_TSC_KHZ, 0))) as u64;
    let scale = || {
        check!(muted(|| c.set_msr(SYSTEM_TIME, DATA | 1)), "MSR");
        tick(&g);
        let p = read(&g, DATA);
        (p.mul, p.shift)
    };
    let hardware = scale();
    for near in [host + host / 10_000, host - host / 10_000] {
        eq!(muted(|| c.fd.num(SET_TSC_KHZ, near)), Ok(0));
        eq!(scale(), hardware, "{near} kHz for {host}");
        eq!(muted(|| c.fd.num(GET_TSC_KHZ, 0)), Ok(near as i32));
    }
}

fn rate_vm() {
    let k = Kvm::open();
    let vm = k.vm();
    let host = muted(|| crate::must!(vm.fd.num(GET_TSC_KHZ, 0))) as u64;
    eq!(muted(|| vm.fd.num(SET_TSC_KHZ, 2 * host)), Ok(0));
    eq!(muted(|| vm.fd.num(GET_TSC_KHZ, 0)), Ok(2 * host as i32));
    let c = vm.vcpu(0);
    eq!(
        muted(|| c.fd.num(GET_TSC_KHZ, 0)),
        Ok(2 * host as i32),
        "a new vCPU has it"
    );
    eq!(
        muted(|| vm.fd.num(SET_TSC_KHZ, host)),
        Err(EINVAL),
        "once there are vCPUs"
    );
    eq!(muted(|| vm.fd.num(GET_TSC_KHZ, 0)), Ok(2 * host as i32));
}

fn need_lasting_offsets() {
    if host_tsc_is_unstable() {
        harness::skip("an offset is good on one CPU only");
    }
}

fn offset() {
    need_lasting_offsets();
    let g = clock_guest();
    need(&g.kvm, KVM_CAP_VCPU_ATTRIBUTES);
    let c = &g.cpu;
    let cell = crate::sys::Map::anon(4096);
    let attr = |group: u32, attr: u64, addr: u64| {
        let mut a: kvm_device_attr = filled(0);
        (a.group, a.attr, a.addr) = (group, attr, addr);
        a
    };
    let ours = attr(0, 0, cell.addr());
    eq!(c.fd.give(HAS_DEVICE_ATTR, &ours), Ok(0));
    eq!(c.fd.give(GET_DEVICE_ATTR, &ours), Ok(0));
    let before: u64 = cell.rd(0);
    let tsc = tick(&g);
    cell.wr(0, before.wrapping_add(1 << 52));
    eq!(c.fd.give(SET_DEVICE_ATTR, &ours), Ok(0));
    cell.wr(0, 0u64);
    eq!(c.fd.give(GET_DEVICE_ATTR, &ours), Ok(0));
    eq!(cell.rd::<u64>(0), before.wrapping_add(1 << 52));
    let later = tick(&g);
    check!(
        later > tsc + (1 << 52) && later < tsc + (1 << 52) + (1 << 40),
        "{tsc:x} {later:x}"
    );
    // A change that user space makes is none of the guest's.
    eq!(c.msr(0x3b), Some(0));
    for (bad, errno) in [
        (attr(1, 0, cell.addr()), ENXIO),
        (attr(0, 1, cell.addr()), ENXIO),
        (attr(u32::MAX, u64::MAX, cell.addr()), ENXIO),
    ] {
        for nr in [HAS_DEVICE_ATTR, GET_DEVICE_ATTR, SET_DEVICE_ATTR] {
            eq!(c.fd.give(nr, &bad), Err(errno), "{}", ioctl_name(nr));
        }
    }
    let bad = attr(0, 0, bad_addr());
    for nr in [GET_DEVICE_ATTR, SET_DEVICE_ATTR] {
        eq!(c.fd.give(nr, &bad), Err(EFAULT), "{}", ioctl_name(nr));
        eq!(c.fd.num(nr, bad_addr()), Err(EFAULT), "{}", ioctl_name(nr));
    }
}

/// While the guest does not run, and after, its counter goes at its rate.
fn keeps_time() {
    let g = clock_guest();
    let khz = muted(|| crate::must!(g.cpu.fd.num(GET_TSC_KHZ, 0))) as u64;
    tick(&g);
    for to in [1 << 50, 5] {
        check!(muted(|| g.cpu.set_msr(0x10, to)), "TSC");
        let (from, a) = (std::time::Instant::now(), tick(&g));
        a_while();
        let b = tick(&g);
        let ms = from.elapsed().as_millis() as u64;
        check!(
            b > a + 90 * khz && b < a + (ms + 20) * khz,
            "{} ticks in {ms} ms at {khz} kHz",
            b.wrapping_sub(a)
        );
    }
}

fn own_offset(cell: &crate::sys::Map) -> kvm_device_attr {
    let mut a: kvm_device_attr = filled(0);
    a.addr = cell.addr();
    a
}

/// KVM_VCPU_TSC_OFFSET.
fn tsc_offset(c: &Vcpu) -> u64 {
    let cell = crate::sys::Map::anon(4096);
    muted(|| eq!(c.fd.give(GET_DEVICE_ATTR, &own_offset(&cell)), Ok(0)));
    cell.rd(0)
}

fn set_tsc_offset(c: &Vcpu, offset: u64) {
    let cell = crate::sys::Map::anon(4096);
    cell.wr(0, offset);
    muted(|| eq!(c.fd.give(SET_DEVICE_ATTR, &own_offset(&cell)), Ok(0)));
}

fn set_tsc(c: &Vcpu, value: u64) {
    check!(muted(|| c.set_msr(0x10, value)), "TSC");
}

/// Time in which the writes of a VMM's that sets one vCPU after the other could go apart.
fn a_while() {
    std::thread::sleep(std::time::Duration::from_millis(100));
}

fn vm_of_two() -> (Vm, Vcpu, Vcpu, u64) {
    need_lasting_offsets();
    let k = Kvm::open();
    need(&k, KVM_CAP_VCPU_ATTRIBUTES);
    let vm = k.vm();
    let a = vm.vcpu(0);
    a_while();
    let b = vm.vcpu(1);
    let second = muted(|| crate::must!(a.fd.num(GET_TSC_KHZ, 0))) as u64 * 1000;
    (vm, a, b, second)
}

/// Writes of the counter that are meant to be the same are.
fn in_step() {
    let (vm, a, b, second) = vm_of_two();
    let same = |a: &Vcpu, b: &Vcpu, why: &str| {
        let (a, b) = (tsc_offset(a), tsc_offset(b));
        check!(a == b, "{why}: {a:x} and {b:x}");
    };
    same(&a, &b, "new");
    set_tsc(&a, 0);
    a_while();
    set_tsc(&b, 0);
    same(&a, &b, "zero");
    // Between other values than 0, a second is the same.
    let value = 1 << 50;
    set_tsc(&a, value);
    check!(tsc_offset(&a) != tsc_offset(&b), "far from zero");
    a_while();
    set_tsc(&b, value);
    same(&a, &b, "the same value");
    set_tsc(&b, value + second / 2);
    same(&a, &b, "half a second away");
    set_tsc(&b, value + 20 * second);
    let apart = tsc_offset(&b).wrapping_sub(tsc_offset(&a));
    check!(
        apart > 15 * second && apart < 25 * second,
        "20 seconds away: {apart:x} of {second:x}"
    );
    a_while();
    // The last one counts, for new vCPUs too.
    set_tsc(&a, value + 20 * second);
    same(&a, &b, "the same value again");
    same(&vm.vcpu(2), &b, "a new vCPU");
    // A vCPU of another rate stands alone.
    let half = muted(|| a.fd.num(SET_TSC_KHZ, second / 500));
    if half == Ok(0) {
        set_tsc(&a, 0);
        check!(tsc_offset(&a) != tsc_offset(&b), "another rate");
    }
}

/// So is an offset that is set what others are in step with.
fn in_step_offset() {
    let (vm, a, b, _) = vm_of_two();
    let offset = tsc_offset(&a).wrapping_add(1 << 48);
    set_tsc_offset(&a, offset);
    eq!(muted(|| tsc_offset(&a) == offset), true);
    check!(tsc_offset(&b) != offset, "the other one is left alone");
    check!(tsc_offset(&vm.vcpu(2)) == offset, "a new vCPU");
    set_tsc(&b, 0);
    check!(tsc_offset(&b) == offset, "zero");
    a_while();
    let now = muted(|| a.msr(0x10)).unwrap_or(0);
    set_tsc_offset(&b, offset ^ 1 << 47);
    set_tsc(&b, now);
    check!(tsc_offset(&b) != offset, "the last one was elsewhere");
}
