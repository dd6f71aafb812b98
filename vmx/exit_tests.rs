// SPDX-License-Identifier: GPL-2.0
//! Tests of the exit decoders. The literal words are those that the processor stores.
use super::*;

#[test]
fn reasons() {
    assert_eq!(ExitReason(48).basic(), Some(Basic::EptViolation));
    assert_eq!(ExitReason(48).number(), 48);
    assert!(!ExitReason(48).entry_failed());
    let failed = ExitReason(0x8000_0021);
    assert!(failed.entry_failed());
    assert_eq!(failed.basic(), Some(Basic::BadGuestState));
    assert_eq!(ExitReason(35).basic(), None);
    assert_eq!(Basic::name_of(30), "Io");
    assert_eq!(Basic::name_of(0xdead), "unknown");
}

#[test]
fn numbers_and_names_round_trip() {
    for n in 0..=100u16 {
        match Basic::from_number(n) {
            Some(reason) => assert_eq!(reason as u16, n),
            None => assert_eq!(Basic::name_of(n), "unknown"),
        }
    }
}

#[test]
fn interruption_information() {
    let nmi = IntrInfo(0x8000_0202);
    assert!(nmi.valid() && nmi.is_nmi() && nmi.exception().is_none());
    let page_fault = IntrInfo(0x8000_0b0e);
    assert_eq!(page_fault.exception(), Some(14));
    assert!(page_fault.has_error_code() && !page_fault.is_nmi());
    assert_eq!(page_fault.kind(), Some(Kind::Exception));
    let breakpoint = IntrInfo(0x8000_0603);
    assert_eq!(breakpoint.kind(), Some(Kind::SoftwareException));
    assert_eq!(breakpoint.exception(), Some(3));
    assert!(IntrInfo(0x8000_1b0d).nmi_unblocked_by_iret());
    assert_eq!(IntrInfo(0x0000_0b0e).exception(), None, "not valid");
    assert_eq!(IntrInfo(0x8000_0120).kind(), None, "type 1 is reserved");
}

#[test]
fn injected_events() {
    assert_eq!(IntrInfo::new(Kind::External, 0x31, false).0, 0x8000_0031);
    assert_eq!(IntrInfo::new(Kind::Exception, 13, true).0, 0x8000_0b0d);
    assert_eq!(
        IntrInfo::new(Kind::SoftwareInterrupt, 0x80, false).0,
        0x8000_0480
    );
    assert!(!IntrInfo::NONE.valid());
    assert!(Kind::SoftwareInterrupt.needs_length());
    assert!(!Kind::Exception.needs_length());
}

#[test]
fn control_register_accesses() {
    assert_eq!(CrAccess::decode(0x0000), CrAccess::MovTo { cr: 0, gpr: 0 });
    assert_eq!(CrAccess::decode(0x0f04), CrAccess::MovTo { cr: 4, gpr: 15 });
    assert_eq!(
        CrAccess::decode(0x0318),
        CrAccess::MovFrom { cr: 8, gpr: 3 }
    );
    assert_eq!(CrAccess::decode(0x0020), CrAccess::Clts);
    assert_eq!(
        CrAccess::decode(0x0011_0030),
        CrAccess::Lmsw { source: 0x11 }
    );
    assert_eq!(
        CrAccess::decode(0x0011_0070),
        CrAccess::Lmsw { source: 0x11 }
    );
}

#[test]
fn debug_register_accesses() {
    assert_eq!(
        DrAccess::decode(0x0217),
        DrAccess {
            dr: 7,
            gpr: 2,
            read: true
        }
    );
    assert_eq!(
        DrAccess::decode(0x0906),
        DrAccess {
            dr: 6,
            gpr: 9,
            read: false
        }
    );
    assert_eq!(debug_dr6(0xffff_ffff), 0x600f);
}

#[test]
fn io_accesses() {
    assert_eq!(
        Io::decode(0x03f8_0000),
        Some(Io {
            port: 0x3f8,
            bytes: 1,
            input: false,
            string: false,
            rep: false
        })
    );
    assert_eq!(
        Io::decode(0x01f0_0039),
        Some(Io {
            port: 0x1f0,
            bytes: 2,
            input: true,
            string: true,
            rep: true
        })
    );
    assert_eq!(
        Io::decode(0x0cfc_004b),
        Some(Io {
            port: 0xcfc,
            bytes: 4,
            input: true,
            string: false,
            rep: false
        })
    );
    assert_eq!(Io::decode(2), None);
    assert_eq!(
        StringIo::decode(1 << 7 | 3 << 15),
        Some(StringIo {
            address_bytes: 4,
            segment: 3
        })
    );
    assert_eq!(StringIo::decode(7 << 7), None);
}

#[test]
fn ept_violations() {
    let write = EptViolation::decode(0x1a9 | 2);
    assert!(write.read && write.write && !write.fetch);
    assert_eq!(write.permissions, 5);
    assert!(write.linear_valid && write.translated);
    let walk = EptViolation::decode(0x081);
    assert!(walk.linear_valid && !walk.translated && walk.permissions == 0);
    assert!(EptViolation::decode(0x1004).fetch);
    assert!(EptViolation::decode(0x1004).nmi_unblocked_by_iret);
}

#[test]
fn task_switches() {
    assert_eq!(
        TaskSwitch::decode(0xc000_0028),
        TaskSwitch {
            selector: 0x28,
            by: TaskSwitchBy::Gate
        }
    );
    assert_eq!(
        TaskSwitch::decode(0x4000_0030),
        TaskSwitch {
            selector: 0x30,
            by: TaskSwitchBy::Iret
        }
    );
}

#[test]
fn instruction_errors() {
    assert_eq!(
        InstructionError::from_number(7),
        Some(InstructionError::EntryControls)
    );
    assert_eq!(InstructionError::name_of(8), "EntryHostState");
    assert_eq!(InstructionError::name_of(14), "unknown");
}
