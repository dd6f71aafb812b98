// SPDX-License-Identifier: GPL-2.0
//! Tests of the 8254: by example, and against a simulation that goes pulse by pulse.

use super::*;
use proptest::prelude::*;

/// A time in the middle of tick `tick`, so that rounding cannot matter.
fn at(tick: u64) -> u64 {
    ns_of(tick) + 400
}

fn program(pit: &mut Pit, control: u8, count: u16, now: u64) -> PitWork {
    let port = PIT_PORT + u16::from(control >> 6);
    let _ = pit.write(CONTROL_PORT, control, now);
    let _ = pit.write(port, count as u8, now);
    pit.write(port, (count >> 8) as u8, now)
}

fn latched(pit: &mut Pit, counter: u8, now: u64) -> u16 {
    let _ = pit.write(CONTROL_PORT, counter << 6, now);
    let port = PIT_PORT + u16::from(counter);
    u16::from_le_bytes([pit.read(port, now), pit.read(port, now)])
}

#[test]
fn ticks_and_times_are_inverse() {
    for second in [0, 1, 59, 86_400, 1 << 33] {
        for tick in [0, 1, 2, 596_591, 1_193_181] {
            let tick = second * PIT_HZ + tick;
            let ns = ns_of(tick);
            assert_eq!(ticks_at(ns), tick);
            assert!(ns == 0 || ticks_at(ns - 1) == tick - 1);
        }
    }
    assert_eq!(ns_of(u64::MAX), u64::MAX);
    assert_eq!(ticks_at(u64::MAX), 22_010_322_987_356_910);
}

#[test]
fn the_tick_of_linux() {
    // Mode 2 with 250 Hz: one edge for each 4773 pulses, the first one pulse later.
    let mut pit = Pit::new(0);
    let work = program(&mut pit, 0x34, 4773, at(100));
    assert_eq!(
        work,
        PitWork {
            rises: 0,
            next: Some(ns_of(101 + 4773))
        }
    );
    assert_eq!(pit.advance(at(101 + 4772)).rises, 0);
    assert_eq!(
        pit.advance(at(101 + 4773)),
        PitWork {
            rises: 1,
            next: Some(ns_of(101 + 2 * 4773))
        }
    );
    assert_eq!(pit.advance(at(101 + 11 * 4773)).rises, 10);
}

#[test]
fn one_shot_deadlines() {
    let mut pit = Pit::new(0);
    let work = program(&mut pit, 0x30, 1000, at(0));
    assert_eq!(
        work,
        PitWork {
            rises: 0,
            next: Some(ns_of(1001))
        }
    );
    assert_eq!(pit.advance(at(1000)).rises, 0);
    assert_eq!(
        pit.advance(at(1001)),
        PitWork {
            rises: 1,
            next: None
        }
    );
    assert_eq!(
        pit.advance(at(1_000_000)),
        PitWork {
            rises: 0,
            next: None
        }
    );
    // Mode 4 strobes for one pulse, and coming from mode 0 with the output high makes no edge.
    let work = program(&mut pit, 0x38, 1000, at(2_000_000));
    assert_eq!(
        work,
        PitWork {
            rises: 0,
            next: Some(ns_of(2_001_002))
        }
    );
    assert_eq!(pit.advance(at(2_001_002)).rises, 1);
}

#[test]
fn time_that_runs_backwards_stands_still() {
    let mut pit = Pit::new(at(5000));
    let work = program(&mut pit, 0x34, 100, at(10));
    assert_eq!(work.next, Some(ns_of(5101)));
    assert_eq!(pit.advance(0).rises, 0);
}

#[test]
fn latches_and_bytes() {
    let mut pit = Pit::new(0);
    let _ = program(&mut pit, 0x34, 0x1234, at(0));
    assert_eq!(latched(&mut pit, 0, at(1)), 0x1234);
    assert_eq!(latched(&mut pit, 0, at(0x11)), 0x1224);
    // A second latch before the first is read changes nothing.
    let _ = pit.write(CONTROL_PORT, 0x00, at(0x21));
    let _ = pit.write(CONTROL_PORT, 0x00, at(0x31));
    assert_eq!(pit.read(0x40, at(0x31)), 0x14);
    assert_eq!(pit.read(0x40, at(0x31)), 0x12);
    // One byte only: the other one is zero.
    let _ = pit.write(CONTROL_PORT, 0xa4, at(0));
    let _ = pit.write(0x61, 1, at(0));
    let _ = pit.write(0x42, 0x03, at(0x40));
    assert_eq!(pit.read(0x42, at(0x42)), 0x02);
    let _ = pit.write(CONTROL_PORT, 0x94, at(0x50));
    let _ = pit.write(0x42, 0x20, at(0x50));
    assert_eq!(pit.read(0x42, at(0x52)), 0x1f);
}

#[test]
fn read_back_of_count_and_status() {
    let mut pit = Pit::new(0);
    let _ = program(&mut pit, 0x36, 0, at(0));
    let _ = program(&mut pit, 0x70, 5, at(0));
    let _ = pit.write(CONTROL_PORT, 0xe6, at(0)); // status of 0 and 1, before the load
    assert_eq!(pit.read(0x40, at(0)), 0xf6);
    assert_eq!(pit.read(0x41, at(0)), 0x70);
    let _ = pit.write(CONTROL_PORT, 0xc2, at(3)); // both of 0
    assert_eq!(pit.read(0x40, at(9)), 0xb6);
    assert_eq!(
        pit.read(0x40, at(9)),
        0xfc,
        "65536, two less for each pulse"
    );
    assert_eq!(pit.read(0x40, at(9)), 0xff);
    let _ = pit.write(CONTROL_PORT, 0xe4, at(6));
    assert_eq!(pit.read(0x41, at(9)), 0xb0, "the output is high");
}

#[test]
fn decimal_counting() {
    let mut pit = Pit::new(0);
    let _ = program(&mut pit, 0x31, 0x1000, at(0));
    assert_eq!(latched(&mut pit, 0, at(2)), 0x0999);
    assert_eq!(latched(&mut pit, 0, at(1002)), 0x9999);
    let _ = program(&mut pit, 0x35, 0, at(2000));
    assert_eq!(latched(&mut pit, 0, at(2002)), 0x9999);
    assert_eq!(pit.advance(at(2002)).next, Some(ns_of(12_001)));
}

#[test]
fn the_speaker_port_gates_counter_2() {
    let mut pit = Pit::new(0);
    assert_eq!(pit.read(0x61, at(0)) & 0x23, 0);
    let _ = program(&mut pit, 0xb0, 50, at(0));
    let _ = pit.advance(at(1000));
    assert_eq!(latched(&mut pit, 2, at(1000)), 50, "the gate is low");
    let _ = pit.write(0x61, 0xf1, at(1000));
    assert_eq!(pit.read(0x61, at(1049)) & 0xef, 0x01);
    assert_eq!(
        pit.read(0x61, at(1050)) & 0xef,
        0x21,
        "the output is high after 50 pulses"
    );
    assert_ne!(
        pit.read(0x61, 100 * 15_085) & 0x10,
        pit.read(0x61, 101 * 15_085) & 0x10
    );
}

#[test]
fn foreign_ports_do_nothing() {
    let mut pit = Pit::new(0);
    let before = pit;
    let _ = pit.write(0x44, 0xff, 0);
    assert_eq!(pit.read(0x44, 0), 0xff);
    assert_eq!(pit.read(0x43, 0), 0xff);
    assert_eq!(pit, before);
    assert!(Pit::owns(0x40) && Pit::owns(0x43) && Pit::owns(0x61));
    assert!(!Pit::owns(0x3f) && !Pit::owns(0x44) && !Pit::owns(0x60));
}

/// Counter 2, one clock pulse at a time.
#[derive(Default)]
struct Sim {
    mode: u8,
    gate: bool,
    register: Option<u64>,
    /// The count that the next pulse loads.
    load: Option<u64>,
    /// Left of the count; in mode 3, left of the half cycle.
    left: Option<u64>,
    fired: bool,
    out: bool,
    rises: u64,
}

impl Sim {
    fn set_out(&mut self, out: bool) {
        self.rises += u64::from(out && !self.out);
        self.out = out;
    }

    fn control(&mut self, mode: u8) {
        self.mode = mode;
        (self.register, self.load, self.left) = (None, None, None);
        self.set_out(mode != 0);
    }

    fn count(&mut self, count: u64) {
        let idle = self.left.is_none() && self.load.is_none();
        self.register = Some(count);
        match self.mode {
            0 | 4 => {
                self.load = Some(count);
                self.set_out(self.mode == 4);
            }
            2 | 3 if idle => self.load = Some(count),
            _ => {}
        }
    }

    fn set_gate(&mut self, gate: bool) {
        let rise = gate && !self.gate;
        let fall = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            2 | 3 if fall => self.set_out(true),
            1 | 2 | 3 | 5 if rise => {
                self.load = self.register;
                if self.mode == 5 {
                    self.set_out(true);
                }
            }
            _ => {}
        }
    }

    fn pulse(&mut self) {
        if let Some(count) = self.load.take() {
            self.fired = false;
            self.left = Some(if self.mode == 3 {
                count.div_ceil(2)
            } else {
                count
            });
            self.set_out(!matches!(self.mode, 0 | 1));
            return;
        }
        let counts = self.gate || matches!(self.mode, 1 | 5);
        let (Some(left), Some(register), true) = (self.left, self.register, counts) else {
            return;
        };
        let mut left = (left + 0xffff) % 0x1_0000;
        match self.mode {
            0 | 1 if left == 0 => self.set_out(true),
            2 if left == 0 => {
                left = register;
                self.set_out(true);
            }
            2 if left == 1 => self.set_out(false),
            3 if left == 0 => {
                left = if self.out {
                    register / 2
                } else {
                    register.div_ceil(2)
                };
                self.set_out(!self.out);
            }
            4 | 5 => {
                self.set_out(left != 0 || self.fired);
                self.fired |= left == 0;
            }
            _ => {}
        }
        self.left = Some(left);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Control(u8),
    Count(u16),
    Gate(bool),
    Wait(u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (0u8..6).prop_map(Op::Control),
        3 => (2u16..40).prop_map(Op::Count),
        2 => any::<bool>().prop_map(Op::Gate),
        6 => (0u16..90).prop_map(Op::Wait),
    ]
}

proptest! {
    /// Output, edges and the announced next edge agree with the simulation at every pulse.
    #[test]
    fn arithmetic_agrees_with_the_pulses(mode in 0u8..6, ops in prop::collection::vec(op(), 1..60)) {
        let mut counter = Counter::new(false);
        let mut sim = Sim::default();
        let (mut tick, mut rises) = (10u64, 0u64);
        let control = |counter: &mut Counter, sim: &mut Sim, mode: u8, tick| {
            counter.program(Access::Low, 0x90 | (mode << 1), tick);
            sim.control(mode);
        };
        control(&mut counter, &mut sim, mode, tick);
        for op in ops {
            match op {
                Op::Control(mode) => control(&mut counter, &mut sim, mode, tick),
                Op::Count(count) => {
                    counter.write(count as u8, tick);
                    sim.count(count.into());
                }
                Op::Gate(gate) => {
                    counter.set_gate(gate, tick);
                    sim.set_gate(gate);
                }
                Op::Wait(pulses) => {
                    let mut next = counter.next_rise(tick);
                    for _ in 0..pulses {
                        let before = sim.rises;
                        sim.pulse();
                        tick += 1;
                        if sim.rises > before {
                            prop_assert_eq!(next, Some(tick), "announced edge");
                            next = counter.next_rise(tick);
                        }
                        prop_assert_eq!(counter.output(tick), sim.out, "output at {}", tick);
                    }
                    prop_assert!(next.is_none_or(|next| next > tick), "edge announced, none came");
                }
            }
            rises += counter.take_rises(tick);
            prop_assert_eq!(rises, sim.rises);
        }
    }

    /// Asking more often changes nothing, and announced deadlines are exact.
    #[test]
    fn polling_is_harmless(mode in 0u8..6, count in any::<u16>(), steps in prop::collection::vec(0u64..90_000_000, 1..40)) {
        let mut often = Pit::new(0);
        let first = program(&mut often, 0x30 | (mode << 1), count, 0);
        let mut seldom = often;
        let (mut now, mut rises, mut next) = (0, 0, first.next);
        for step in steps {
            let due = next.is_some_and(|next| next <= now + step);
            now += step;
            let work = often.advance(now);
            prop_assert_eq!(work.rises > 0, due);
            rises += work.rises;
            next = work.next;
        }
        prop_assert_eq!(seldom.advance(now).rises, rises);
        prop_assert_eq!(latched(&mut seldom, 0, now), latched(&mut often, 0, now));
    }

    /// Any program is survived, and the next edge is never in the past.
    #[test]
    fn any_program_is_survived(ops in prop::collection::vec((0x40u16..0x45, any::<u8>(), any::<u32>(), any::<bool>()), 1..200)) {
        let mut pit = Pit::new(0);
        let mut now = 0u64;
        for (port, value, step, read) in ops {
            now += u64::from(step);
            let port = if port == 0x44 { 0x61 } else { port };
            if read {
                let _ = pit.read(port, now);
            } else {
                let work = pit.write(port, value, now);
                prop_assert!(work.next.is_none_or(|next| next > now));
            }
        }
        let _ = pit.advance(u64::MAX);
    }
}
