// SPDX-License-Identifier: GPL-2.0
use super::vector::*;
use super::*;
use proptest::prelude::*;

const OPEN: Gates = Gates {
    if_flag: true,
    shadow: false,
    closed: false,
    irq_waiting: false,
    irq_window_wanted: false,
};

fn next(q: &mut EventQueue, g: Gates) -> Next {
    q.plan(&g).next
}

fn injected(e: Exception) -> Vectoring {
    Vectoring {
        kind: Kind::Hardware,
        vector: e.vector,
        error: e.error,
        insn_len: 0,
    }
}

#[test]
fn a_payload_is_taken_once() {
    let mut q = EventQueue::new();
    assert_eq!(q.take_payload(), None);
    q.raise(Exception::page_fault(2, 0x1234));
    assert_eq!(q.take_payload().and_then(|e| e.payload), Some(0x1234));
    assert_eq!(q.take_payload(), None);
    let Next::Exception {
        exception, fresh, ..
    } = next(&mut q, OPEN)
    else {
        panic!("the exception is still there");
    };
    assert_eq!((exception.payload, fresh), (None, true));
    assert_eq!(q.take_payload(), None, "it is being delivered");
}

#[test]
fn exceptions_merge_while_undelivered() {
    let mut q = EventQueue::new();
    q.raise(Exception::protection(0));
    q.raise(Exception::with_error(NP, 8));
    assert_eq!(
        next(&mut q, OPEN),
        Next::Exception {
            exception: Exception::with_error(DF, 0),
            fresh: true,
            set_rf: false
        }
    );
    // Delivering the double fault faults again.
    q.complete(Some(injected(Exception::with_error(DF, 0))));
    q.raise(Exception::page_fault(0, 0x1000));
    assert!(q.take_triple_fault());
    assert!(!q.take_triple_fault());
}

#[test]
fn payload_and_rf_belong_to_the_first_injection() {
    let mut q = EventQueue::new();
    let e = Exception::page_fault(2, 0xdead_beef);
    q.raise(e);
    assert_eq!(
        next(&mut q, OPEN),
        Next::Exception {
            exception: e,
            fresh: true,
            set_rf: true
        }
    );
    // The entry failed: planned again, with no side effects left.
    let again = Exception { payload: None, ..e };
    let repeat = Next::Exception {
        exception: again,
        fresh: false,
        set_rf: false,
    };
    assert_eq!(next(&mut q, OPEN), repeat);
    q.complete(Some(injected(e)));
    assert_eq!(next(&mut q, OPEN), repeat);
    q.complete(None);
    assert_eq!(next(&mut q, OPEN), Next::None);
}

#[test]
fn rf_is_for_faults_only() {
    for (v, rf) in [
        (DE, true),
        (UD, true),
        (DB, false),
        (BP, false),
        (DF, false),
        (MC, false),
    ] {
        let mut q = EventQueue::new();
        q.raise(Exception::new(v));
        let Next::Exception { set_rf, .. } = next(&mut q, OPEN) else {
            unreachable!()
        };
        assert_eq!(set_rf, rf, "vector {v}");
    }
}

#[test]
fn an_interrupt_waits_for_the_window() {
    let mut q = EventQueue::new();
    let waiting = Gates {
        irq_waiting: true,
        ..OPEN
    };
    for g in [
        Gates {
            if_flag: false,
            ..waiting
        },
        Gates {
            shadow: true,
            ..waiting
        },
        Gates {
            closed: true,
            ..waiting
        },
    ] {
        let plan = q.plan(&g);
        assert_eq!((plan.next, plan.irq_window), (Next::None, true));
        assert!(!q.ready_for_interrupt(&g));
    }
    assert!(q.ready_for_interrupt(&waiting));
    let plan = q.plan(&waiting);
    assert_eq!((plan.next, plan.irq_window), (Next::Acknowledge, false));
    q.queue_interrupt(0x30);
    assert_eq!(q.injected_interrupt(), Some(0x30));
    assert!(!q.ready_for_interrupt(&OPEN));
    let Next::Interrupt(i) = next(&mut q, OPEN) else {
        unreachable!()
    };
    assert_eq!((i.vector, i.soft), (0x30, false));
    q.complete(None);
    assert_eq!(next(&mut q, OPEN), Next::None);
}

/// User space queues an interrupt where an instruction is not finished, and its end is a fault.
#[test]
fn an_interrupt_behind_an_exception_is_not_lost() {
    let closed = Gates {
        if_flag: false,
        ..OPEN
    };
    let mut q = EventQueue::new();
    q.queue_interrupt(0x20);
    q.raise(Exception::new(PF));
    let is_fault = |n| matches!(n, Next::Exception { exception, .. } if exception.vector == PF);
    assert!(is_fault(next(&mut q, OPEN)));
    assert!(is_fault(next(&mut q, OPEN)));
    q.complete(None);
    // The handler has interrupts off, and may use INT n.
    let plan = q.plan(&closed);
    assert_eq!((plan.next, plan.irq_window), (Next::None, true));
    assert!(!q.wakes(&closed) && q.wakes(&OPEN) && !q.ready_for_interrupt(&OPEN));
    q.complete(Some(Vectoring {
        kind: Kind::Software,
        vector: 0x80,
        error: None,
        insn_len: 2,
    }));
    assert_eq!(q.injected_interrupt(), Some(0x20));
    let plan = q.plan(&OPEN);
    assert!(matches!(plan.next, Next::Interrupt(i) if i.vector == 0x20 && !plan.irq_window));
    q.complete(None);
    assert!(q.is_idle());
}

#[test]
fn user_space_can_ask_for_the_window() {
    let mut q = EventQueue::new();
    let plan = q.plan(&Gates {
        if_flag: false,
        irq_window_wanted: true,
        ..OPEN
    });
    assert_eq!((plan.next, plan.irq_window), (Next::None, true));
}

#[test]
fn nmi_goes_before_interrupts_and_masks_itself() {
    let mut q = EventQueue::new();
    q.add_nmis(5);
    let g = Gates {
        irq_waiting: true,
        ..OPEN
    };
    let plan = q.plan(&g);
    assert_eq!(plan.next, Next::Nmi);
    assert!(plan.nmi_window && plan.irq_window);
    q.complete(None);
    assert!(q.nmi_masked());
    // One more is remembered, however many come.
    q.add_nmis(7);
    let plan = q.plan(&g);
    assert_eq!(plan.next, Next::Acknowledge);
    assert!(plan.nmi_window);
    q.complete(None);
    q.set_nmi_masked(false);
    assert_eq!(next(&mut q, OPEN), Next::Nmi);
    q.complete(None);
    q.set_nmi_masked(false);
    assert_eq!(next(&mut q, OPEN), Next::None);
}

#[test]
fn nmi_respects_the_shadow_and_gif() {
    for g in [
        Gates {
            shadow: true,
            ..OPEN
        },
        Gates {
            closed: true,
            ..OPEN
        },
    ] {
        let mut q = EventQueue::new();
        q.add_nmis(1);
        let plan = q.plan(&g);
        assert_eq!((plan.next, plan.nmi_window), (Next::None, true));
    }
    // RFLAGS.IF is nothing to an NMI.
    let mut q = EventQueue::new();
    q.add_nmis(1);
    assert_eq!(
        next(
            &mut q,
            Gates {
                if_flag: false,
                ..OPEN
            }
        ),
        Next::Nmi
    );
}

#[test]
fn an_interrupted_nmi_is_delivered_again() {
    let mut q = EventQueue::new();
    q.add_nmis(1);
    assert_eq!(next(&mut q, OPEN), Next::Nmi);
    q.complete(Some(Vectoring {
        kind: Kind::Nmi,
        vector: NMI,
        error: None,
        insn_len: 0,
    }));
    assert!(!q.nmi_masked());
    assert_eq!(
        next(
            &mut q,
            Gates {
                shadow: true,
                ..OPEN
            }
        ),
        Next::Nmi
    );
}

#[test]
fn an_nmi_behind_an_exception_asks_for_another_round() {
    let mut q = EventQueue::new();
    q.add_nmis(1);
    q.raise(Exception::undefined());
    let plan = q.plan(&OPEN);
    assert!(matches!(plan.next, Next::Exception { .. }));
    assert!(plan.exit_at_once && !plan.nmi_window);
    q.complete(None);
    assert_eq!(next(&mut q, OPEN), Next::Nmi);
}

#[test]
fn soft_events_come_back_with_their_length() {
    let mut q = EventQueue::new();
    q.complete(Some(Vectoring {
        kind: Kind::Software,
        vector: 0x80,
        error: None,
        insn_len: 2,
    }));
    let want = Interrupt {
        vector: 0x80,
        soft: true,
        insn_len: 2,
    };
    assert_eq!(
        next(
            &mut q,
            Gates {
                if_flag: false,
                ..OPEN
            }
        ),
        Next::Interrupt(want)
    );
    assert_eq!(q.injected_interrupt(), None);
    let int3 = Vectoring {
        kind: Kind::SoftException,
        vector: BP,
        error: None,
        insn_len: 1,
    };
    q.complete(Some(int3));
    let Next::Exception {
        exception, fresh, ..
    } = next(&mut q, OPEN)
    else {
        unreachable!()
    };
    assert_eq!((exception.insn_len, fresh), (1, false));
    q.complete(Some(Vectoring {
        kind: Kind::Privileged,
        vector: DB,
        error: None,
        insn_len: 1,
    }));
    assert_eq!(next(&mut q, OPEN), Next::None);
}

#[test]
fn set_regs_drops_only_what_is_pending() {
    let mut q = EventQueue::new();
    q.raise(Exception::undefined());
    q.drop_pending_exception();
    assert_eq!(next(&mut q, OPEN), Next::None);
    q.raise(Exception::undefined());
    let _ = q.plan(&OPEN);
    q.drop_pending_exception();
    assert!(matches!(
        next(&mut q, OPEN),
        Next::Exception { fresh: false, .. }
    ));
}

#[test]
fn restoring_checks_the_vector() {
    let mut q = EventQueue::new();
    for nr in [NMI, 32, 255] {
        let s = Saved {
            exception_injected: true,
            exception_nr: nr,
            ..Saved::default()
        };
        assert_eq!(q.restore(&s), Err(BadEvent));
        assert_eq!(q, EventQueue::new());
    }
    let s = Saved {
        exception_nr: 200,
        ..Saved::default()
    };
    assert_eq!(q.restore(&s), Ok(()));
    let s = Saved {
        nmi_pending: 9,
        nmi_masked: true,
        ..Saved::default()
    };
    assert_eq!(q.restore(&s), Ok(()));
    assert_eq!(q.save().nmi_pending, 1);
}

#[test]
fn halted_guests_wake_for_what_can_be_taken() {
    let mut q = EventQueue::new();
    assert!(!q.wakes(&OPEN));
    assert!(q.wakes(&Gates {
        irq_waiting: true,
        ..OPEN
    }));
    assert!(!q.wakes(&Gates {
        irq_waiting: true,
        if_flag: false,
        ..OPEN
    }));
    q.add_nmis(1);
    assert!(q.wakes(&Gates {
        if_flag: false,
        ..OPEN
    }));
    q.set_nmi_masked(true);
    assert!(!q.wakes(&Gates {
        if_flag: false,
        ..OPEN
    }));
}

fn vectoring() -> impl Strategy<Value = Option<Vectoring>> {
    let kind = prop_oneof![
        Just(Kind::External),
        Just(Kind::Nmi),
        Just(Kind::Hardware),
        Just(Kind::Software),
        Just(Kind::Privileged),
        Just(Kind::SoftException),
    ];
    proptest::option::of(
        (kind, any::<u8>(), any::<Option<u32>>(), any::<u8>()).prop_map(
            |(kind, vector, error, insn_len)| Vectoring {
                kind,
                vector,
                error,
                insn_len,
            },
        ),
    )
}

fn gates() -> impl Strategy<Value = Gates> {
    any::<(bool, bool, bool, bool, bool)>().prop_map(|(a, b, c, d, e)| Gates {
        if_flag: a,
        shadow: b,
        closed: c,
        irq_waiting: d,
        irq_window_wanted: e,
    })
}

/// User space may save the events and give them back while an interrupt waits for a handler with interrupts off.
#[test]
fn a_kept_interrupt_waits_after_a_restore_too() {
    let closed = Gates {
        if_flag: false,
        ..OPEN
    };
    let shadow = Gates {
        shadow: true,
        ..OPEN
    };
    let mut q = EventQueue::new();
    q.queue_interrupt(0x20);
    let saved = q.save();
    assert!(q.restore(&saved).is_ok());
    for gates in [closed, shadow] {
        let plan = q.plan(&gates);
        assert_eq!((plan.next, plan.irq_window), (Next::None, true));
        q.complete(None);
        assert!(!q.wakes(&gates));
    }
    assert!(q.wakes(&OPEN));
    assert!(matches!(next(&mut q, OPEN), Next::Interrupt(i) if i.vector == 0x20));
    // INT n is no interrupt that waits for anything.
    let was = Vectoring {
        kind: Kind::Software,
        vector: 0x80,
        error: None,
        insn_len: 2,
    };
    q.complete(Some(was));
    assert!(matches!(next(&mut q, closed), Next::Interrupt(i) if i.soft));
}

proptest! {
    /// Whatever happens, an entry is planned soundly.
    #[test]
    fn plans_are_sound(steps in proptest::collection::vec((0u8..6, any::<u8>(), vectoring(), gates()), 1..60)) {
        let mut q = EventQueue::new();
        let mut nmis_sent = 0u32;
        let mut nmis_seen = 0u32;
        for (op, byte, was, g) in steps {
            match op {
                0 => q.raise(Exception::new([DE, DB, UD, DF, GP, PF][byte as usize % 6])),
                1 => { q.add_nmis(u32::from(byte & 3)); nmis_sent += u32::from(byte & 3); }
                2 => q.queue_interrupt(byte),
                3 => q.set_nmi_masked(byte & 1 != 0),
                4 => {
                    let mut other = EventQueue::new();
                    let saved = q.save();
                    prop_assert!(other.restore(&saved).is_ok());
                    prop_assert_eq!(other.save(), saved);
                }
                _ => {
                    let before = q;
                    let plan = q.plan(&g);
                    let fresh_nmi = plan.next == Next::Nmi && !before.nmi_injected;
                    if fresh_nmi {
                        nmis_seen += 1;
                        prop_assert!(!before.nmi_masked && !g.shadow && !g.closed);
                    }
                    if plan.next == Next::Acknowledge {
                        prop_assert!(g.irq_waiting && g.irq_open());
                        prop_assert!(before.exception.is_none() && !before.redelivers());
                    } else {
                        prop_assert!(!g.irq_waiting || plan.irq_window);
                    }
                    prop_assert!(!g.irq_window_wanted || plan.irq_window);
                    if before.exception.is_some() {
                        let is_exception = matches!(plan.next, Next::Exception { .. });
                        prop_assert!(is_exception);
                    }
                    if let Next::Interrupt(i) = plan.next {
                        prop_assert!(i.soft || g.irq_open());
                    }
                    // A waiting NMI is never forgotten.
                    prop_assert!(!q.nmi_waiting() || plan.nmi_window || plan.exit_at_once);
                    // Planning again without an entry changes nothing.
                    let copy = q;
                    let again = q.plan(&Gates { irq_waiting: false, ..g });
                    prop_assert_eq!(q, copy);
                    let same = match (plan.next, again.next) {
                        (Next::Exception { exception: a, .. }, Next::Exception { exception: b, fresh, .. }) =>
                            a.vector == b.vector && a.error == b.error && !fresh,
                        (Next::Acknowledge, Next::None) => true,
                        (a, b) => a == b,
                    };
                    prop_assert!(same);
                    q.complete(was);
                    // Nor is an interrupt.
                    if before.interrupt.is_some() && !matches!(plan.next, Next::Interrupt(_)) {
                        prop_assert_eq!(q.interrupt, before.interrupt);
                    }
                }
            }
        }
        prop_assert!(nmis_seen <= nmis_sent);
    }
}

#[test]
fn an_idle_queue_plans_nothing() {
    for n in 0..4u32 {
        let mut q = EventQueue::new();
        match n {
            1 => q.raise(Exception::new(UD)),
            2 => q.queue_interrupt(0x20),
            3 => q.add_nmis(1),
            _ => {}
        }
        assert_eq!(q.is_idle(), n == 0);
        let mut other = EventQueue::new();
        if n == 0 {
            let plan = other.plan(&Gates::default());
            assert!(matches!(plan.next, Next::None));
            assert!(!plan.irq_window && !plan.nmi_window && !plan.exit_at_once);
        }
    }
}
