// SPDX-License-Identifier: GPL-2.0
//! Tests of the 8259A pair.

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// Programmed as a PC operating system does: vectors 0x30 and 0x38, everything unmasked.
fn programmed(icw4: u8) -> PicPair {
    let mut pic = PicPair::new();
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, icw4),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, icw4),
        (0x21, 0x00),
        (0xa1, 0x00),
    ] {
        let _ = pic.write(port, value);
    }
    pic
}

fn read_isr(pic: &mut PicPair) -> u16 {
    let _ = pic.write(0x20, 0x0b);
    let _ = pic.write(0xa0, 0x0b);
    u16::from_le_bytes([pic.read(0x20).0, pic.read(0xa0).0])
}

#[test]
fn one_interrupt_from_line_to_end() {
    let mut pic = programmed(1);
    assert!(!pic.intr());
    assert!(pic.set_irq(4, true).intr);
    let (vector, work) = pic.acknowledge();
    assert_eq!((vector, work.intr), (0x34, false));
    assert_eq!(read_isr(&mut pic), 0x10);
    assert_eq!(
        pic.write(0x20, 0x20),
        PicWork {
            intr: false,
            completed: 0x10
        }
    );
    // The line is still high: an edge-triggered line asks once.
    assert!(!pic.set_irq(4, true).intr);
    assert!(!pic.set_irq(4, false).intr);
    assert!(pic.set_irq(4, true).intr);
}

#[test]
fn the_lower_line_goes_first_and_nests() {
    let mut pic = programmed(1);
    let _ = pic.pulse_irq(4);
    assert_eq!(pic.acknowledge().0, 0x34);
    assert!(!pic.pulse_irq(5).intr, "a lower priority waits");
    assert!(pic.pulse_irq(3).intr, "a higher one nests");
    assert_eq!(pic.acknowledge().0, 0x33);
    assert_eq!(pic.write(0x20, 0x20).completed, 1 << 3);
    assert_eq!(
        pic.write(0x20, 0x20),
        PicWork {
            intr: true,
            completed: 1 << 4
        }
    );
    assert_eq!(pic.acknowledge().0, 0x35);
}

#[test]
fn the_second_controller_comes_through_line_2() {
    let mut pic = programmed(1);
    assert!(pic.pulse_irq(8).intr);
    assert_eq!(pic.acknowledge().0, 0x38);
    assert_eq!(read_isr(&mut pic), 0x0104);
    let _ = pic.pulse_irq(12);
    assert!(pic.write(0xa0, 0x20).completed == 1 << 8);
    assert!(
        !pic.intr(),
        "line 2 is still in service in the first controller"
    );
    assert_eq!(
        pic.write(0x20, 0x62),
        PicWork {
            intr: true,
            completed: 1 << 2
        }
    );
    assert_eq!(pic.acknowledge().0, 0x3c);
}

#[test]
fn masks_hide_and_reveal() {
    let mut pic = programmed(1);
    let _ = pic.write(0x21, 0x01);
    assert!(!pic.pulse_irq(0).intr);
    assert_eq!(pic.read(0x21).0, 0x01);
    assert!(pic.write(0x21, 0x00).intr);
    let _ = pic.write(0xa1, 0xff);
    assert_eq!(pic.acknowledge().0, 0x30);
    let _ = pic.write(0x20, 0x20);
    assert!(!pic.pulse_irq(9).intr);
}

#[test]
fn level_lines_ask_again_until_low() {
    let mut pic = programmed(1);
    let _ = pic.write(0x4d0, 0xff);
    let _ = pic.write(0x4d1, 0xff);
    assert_eq!((pic.read(0x4d0).0, pic.read(0x4d1).0), (0xf8, 0xde));
    assert!(pic.set_irq(5, true).intr);
    assert_eq!(pic.acknowledge().0, 0x35);
    assert!(pic.write(0x20, 0x20).intr, "the line is still high");
    assert!(!pic.set_irq(5, false).intr);
    assert!(pic.set_irq(11, true).intr);
    assert_eq!(pic.acknowledge().0, 0x3b);
    let _ = pic.write(0xa0, 0x20);
    assert!(pic.write(0x20, 0x20).intr);
}

#[test]
fn spurious_requests() {
    let mut pic = programmed(1);
    let _ = pic.write(0x4d0, 0x20);
    let _ = pic.set_irq(5, true);
    let _ = pic.set_irq(5, false);
    assert_eq!(pic.acknowledge().0, 0x37, "spurious line 7");
    assert_eq!(read_isr(&mut pic), 0);
    let _ = pic.pulse_irq(10);
    let _ = pic.write(0xa1, 0x04);
    assert_eq!(pic.acknowledge().0, 0x3f, "spurious line 15");
    assert_eq!(
        read_isr(&mut pic),
        0x0004,
        "the first controller cannot know"
    );
}

#[test]
fn automatic_end_of_interrupt() {
    let mut pic = programmed(3);
    let _ = pic.pulse_irq(1);
    let _ = pic.pulse_irq(6);
    assert_eq!(
        pic.acknowledge(),
        (
            0x31,
            PicWork {
                intr: true,
                completed: 1 << 1
            }
        )
    );
    assert_eq!(pic.acknowledge().0, 0x36);
    let _ = pic.pulse_irq(8);
    let _ = pic.pulse_irq(9);
    assert_eq!(pic.acknowledge().0, 0x38);
    assert_eq!(pic.acknowledge().0, 0x39);
    assert!(!pic.intr());
}

#[test]
fn rotation() {
    let mut pic = programmed(1);
    let _ = pic.pulse_irq(0);
    let _ = pic.pulse_irq(1);
    assert_eq!(pic.acknowledge().0, 0x30);
    let _ = pic.write(0x20, 0xa0); // rotate on non-specific end: line 0 is last now
    let _ = pic.pulse_irq(0);
    assert_eq!(pic.acknowledge().0, 0x31);
    let _ = pic.write(0x20, 0x61);
    assert_eq!(pic.acknowledge().0, 0x30);
    let _ = pic.write(0x20, 0x60);
    let _ = pic.write(0x20, 0xc4); // set priority: line 4 is last, 5 first
    let _ = pic.pulse_irq(4);
    let _ = pic.pulse_irq(5);
    assert_eq!(pic.acknowledge().0, 0x35);
    let _ = pic.write(0x20, 0xe5); // rotate on specific end: line 5 is last
    let _ = pic.pulse_irq(6);
    let _ = pic.pulse_irq(5);
    assert_eq!(pic.acknowledge().0, 0x36);
}

#[test]
fn rotation_with_automatic_end() {
    let mut pic = programmed(3);
    let _ = pic.write(0x20, 0x80);
    let _ = pic.pulse_irq(3);
    assert_eq!(pic.acknowledge().0, 0x33);
    let _ = pic.pulse_irq(3);
    let _ = pic.pulse_irq(4);
    assert_eq!(pic.acknowledge().0, 0x34, "line 3 is last now");
    let _ = pic.write(0x20, 0x00);
    let _ = pic.acknowledge();
    let _ = pic.pulse_irq(5);
    let _ = pic.pulse_irq(6);
    assert_eq!(pic.acknowledge().0, 0x35);
    let _ = pic.pulse_irq(5);
    assert_eq!(pic.acknowledge().0, 0x35, "no rotation any more");
}

#[test]
fn special_mask_mode_lets_lower_lines_in() {
    let mut pic = programmed(1);
    let _ = pic.pulse_irq(3);
    assert_eq!(pic.acknowledge().0, 0x33);
    assert!(!pic.pulse_irq(6).intr);
    let _ = pic.write(0x20, 0x68);
    assert!(pic.write(0x21, 0x08).intr);
    assert_eq!(pic.acknowledge().0, 0x36);
    // A non-specific end leaves the masked line 3 in service.
    assert_eq!(pic.write(0x20, 0x20).completed, 1 << 6);
    assert_eq!(pic.write(0x20, 0x20).completed, 0);
    assert_eq!(pic.write(0x20, 0x63).completed, 1 << 3);
    let _ = pic.write(0x20, 0x48);
    let _ = pic.write(0x21, 0x00);
    let _ = pic.pulse_irq(3);
    assert_eq!(pic.acknowledge().0, 0x33);
    let _ = pic.pulse_irq(6);
    assert!(!pic.write(0x21, 0x08).intr, "special mask mode is off");
}

#[test]
fn special_fully_nested_mode() {
    let mut pic = programmed(0x11);
    let _ = pic.pulse_irq(12);
    assert_eq!(pic.acknowledge().0, 0x3c);
    assert!(
        pic.pulse_irq(9).intr,
        "a higher line of the second controller nests"
    );
    assert_eq!(pic.acknowledge().0, 0x39);
    let mut plain = programmed(1);
    let _ = plain.pulse_irq(12);
    let _ = plain.acknowledge();
    assert!(!plain.pulse_irq(9).intr);
}

#[test]
fn polling_acknowledges() {
    let mut pic = programmed(1);
    let _ = pic.pulse_irq(4);
    let _ = pic.write(0x20, 0x0c);
    assert_eq!(
        pic.read(0x20),
        (
            0x84,
            PicWork {
                intr: false,
                completed: 0
            }
        )
    );
    assert_eq!(read_isr(&mut pic), 0x10);
    let _ = pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20).0, 0);
    let _ = pic.pulse_irq(8);
    let _ = pic.write(0xa0, 0x0c);
    assert_eq!(pic.read(0xa0).0, 0x80);
}

#[test]
fn initialization_forgets() {
    let mut pic = programmed(3);
    let _ = pic.set_irq(3, true);
    let _ = pic.write(0x21, 0xf0);
    // Without the fourth word, its functions are off; single mode has no third.
    let _ = pic.write(0x20, 0x12);
    let _ = pic.write(0x21, 0x50);
    assert!(!pic.intr(), "the request was reset, the line has not moved");
    assert_eq!(pic.read(0x21).0, 0);
    let _ = pic.set_irq(3, false);
    let _ = pic.set_irq(3, true);
    assert_eq!(pic.acknowledge().0, 0x53);
    assert_eq!(read_isr(&mut pic) & 0xff, 0x08, "no automatic end");
}

#[test]
fn foreign_ports_and_lines_do_nothing() {
    let mut pic = programmed(1);
    let before = pic;
    assert_eq!(pic.read(0x22).0, 0xff);
    let _ = pic.write(0x22, 0xff);
    let _ = pic.set_irq(2, true);
    let _ = pic.set_irq(16, true);
    let _ = pic.set_irq(255, true);
    assert_eq!(pic, before);
    for port in [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1] {
        assert!(PicPair::owns(port));
    }
    assert!(!PicPair::owns(0x22) && !PicPair::owns(0x4d2));
}

#[derive(Clone, Debug)]
enum Op {
    Line(u8, bool),
    Write(u16, u8),
    Read(u16),
    Acknowledge,
}

fn op() -> impl Strategy<Value = Op> {
    let port = prop::sample::select(&[0x20u16, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][..]);
    prop_oneof![
        (0u8..16, any::<bool>()).prop_map(|(line, high)| Op::Line(line, high)),
        (port.clone(), any::<u8>()).prop_map(|(p, v)| Op::Write(p, v)),
        port.prop_map(Op::Read),
        Just(Op::Acknowledge),
    ]
}

proptest! {
    /// Whatever is written: reports match the state, and a spurious answer sets no in-service bit in its controller.
    #[test]
    fn any_program_keeps_the_books(ops in prop::collection::vec(op(), 1..200)) {
        let mut pic = PicPair::new();
        for op in ops {
            let before = pic.in_service();
            let work = match op {
                Op::Line(line, high) => pic.set_irq(line, high),
                Op::Write(port, value) => pic.write(port, value),
                Op::Read(port) => pic.read(port).1,
                Op::Acknowledge => {
                    let asked = pic.intr();
                    let (_, work) = pic.acknowledge();
                    if !asked {
                        prop_assert_eq!(pic.in_service(), before);
                    }
                    prop_assert_eq!(before & !pic.in_service(), 0, "an acknowledge clears nothing");
                    let mut work = work;
                    work.completed = 0;
                    work
                }
            };
            prop_assert_eq!(work.intr, pic.intr());
            prop_assert_eq!(work.completed, before & !pic.in_service());
        }
    }

    /// Every edge on an unmasked line is delivered once, in order of priority, if each is ended.
    #[test]
    fn every_edge_is_delivered_once(lines in any::<u16>()) {
        let lines = lines & !(1 << 2);
        let mut pic = programmed(1);
        for irq in 0..16u8 {
            if lines & (1 << irq) != 0 {
                let _ = pic.pulse_irq(irq);
            }
        }
        let order = [0u8, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7];
        let expected: Vec<u8> =
            order.iter().filter(|irq| lines & (1 << **irq) != 0).map(|irq| 0x30 + irq).collect();
        let mut seen = Vec::new();
        while pic.intr() {
            let (vector, _) = pic.acknowledge();
            seen.push(vector);
            if vector >= 0x38 {
                let _ = pic.write(0xa0, 0x20);
            }
            let _ = pic.write(0x20, 0x20);
        }
        prop_assert_eq!(seen, expected);
    }
}
