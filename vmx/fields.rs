// SPDX-License-Identifier: GPL-2.0
//! The fields of the virtual-machine control structure, with the width in the type.
//!
//! A VMREAD or VMWRITE takes a [`Field<W>`], so a field cannot be accessed with a wrong width. The fields themselves are in
//! `fields_table.rs`. Bit 0 of an encoding selects the upper half of a 64-bit field and is never set: all of our accesses are
//! of full width.
#![forbid(unsafe_code)]

use core::marker::PhantomData;

#[path = "fields_table.rs"]
mod table;

pub use table::*;

/// The width of a field, as bits 14:13 of its encoding tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WidthCode {
    /// 16 bits.
    Word = 0,
    /// 64 bits, also on a 32-bit processor.
    Quad = 1,
    /// 32 bits.
    Double = 2,
    /// The natural width of the processor: 64 bits here.
    Natural = 3,
}

/// What a field is for, as bits 11:10 of its encoding tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Group {
    /// Execution, entry and exit controls.
    Control = 0,
    /// Written by the processor at a VM exit.
    ReadOnly = 1,
    /// Guest state.
    Guest = 2,
    /// Host state.
    Host = 3,
}

/// The marker of fields of natural width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Natural {}

mod sealed {
    /// Keeps [`super::Width`] to the four types of this file.
    pub trait Sealed {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
    impl Sealed for super::Natural {}
}

/// A width that a field can have.
pub trait Width: sealed::Sealed {
    /// The type of the field's value.
    type Value: Copy + Eq + core::fmt::Debug + core::fmt::LowerHex;
    /// Its code in the encoding.
    const CODE: WidthCode;
    /// Takes the value out of what VMREAD returned; the processor zeroes the bits above the width.
    fn from_raw(raw: u64) -> Self::Value;
    /// The value as VMWRITE takes it.
    fn to_raw(value: Self::Value) -> u64;
}

impl Width for u16 {
    type Value = u16;
    const CODE: WidthCode = WidthCode::Word;
    fn from_raw(raw: u64) -> u16 {
        raw as u16
    }
    fn to_raw(value: u16) -> u64 {
        u64::from(value)
    }
}

impl Width for u32 {
    type Value = u32;
    const CODE: WidthCode = WidthCode::Double;
    fn from_raw(raw: u64) -> u32 {
        raw as u32
    }
    fn to_raw(value: u32) -> u64 {
        u64::from(value)
    }
}

impl Width for u64 {
    type Value = u64;
    const CODE: WidthCode = WidthCode::Quad;
    fn from_raw(raw: u64) -> u64 {
        raw
    }
    fn to_raw(value: u64) -> u64 {
        value
    }
}

impl Width for Natural {
    type Value = u64;
    const CODE: WidthCode = WidthCode::Natural;
    fn from_raw(raw: u64) -> u64 {
        raw
    }
    fn to_raw(value: u64) -> u64 {
        value
    }
}

/// One field of the VMCS. Only the constants of the table have this type: there is no other way to make one.
pub struct Field<W> {
    encoding: u32,
    width: PhantomData<W>,
}

/// A field of natural width.
pub type FieldNat = Field<Natural>;

impl<W> Clone for Field<W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Field<W> {}

impl<W> Field<W> {
    /// The encoding, as VMREAD and VMWRITE take it.
    pub const fn encoding(self) -> u32 {
        self.encoding
    }

    /// The name that the table gives the field.
    pub fn name(self) -> &'static str {
        name(self.encoding)
    }
}

impl<W> core::fmt::Debug for Field<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}({:#06x})", self.name(), self.encoding)
    }
}

/// The width that an encoding tells.
pub const fn width_of(encoding: u32) -> WidthCode {
    match (encoding >> 13) & 3 {
        0 => WidthCode::Word,
        1 => WidthCode::Quad,
        2 => WidthCode::Double,
        _ => WidthCode::Natural,
    }
}

/// The group that an encoding tells.
pub const fn group_of(encoding: u32) -> Group {
    match (encoding >> 10) & 3 {
        0 => Group::Control,
        1 => Group::ReadOnly,
        2 => Group::Guest,
        _ => Group::Host,
    }
}

/// The name of the field with `encoding`; "unknown" for a number that is not in the table.
pub fn name(encoding: u32) -> &'static str {
    ALL.iter()
        .find(|entry| entry.0 == encoding)
        .map_or("unknown", |entry| entry.1)
}

/// A segment register's four fields.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field<u16>,
    /// Base address.
    pub base: FieldNat,
    /// Limit, in bytes.
    pub limit: Field<u32>,
    /// Access rights, in the format of this appendix's section "Format of Access Rights".
    pub access: Field<u32>,
}

/// The fields of the guest's ES.
pub const GUEST_ES: SegmentFields = SegmentFields {
    selector: GUEST_ES_SELECTOR,
    base: GUEST_ES_BASE,
    limit: GUEST_ES_LIMIT,
    access: GUEST_ES_ACCESS,
};

/// The fields of the guest's CS.
pub const GUEST_CS: SegmentFields = SegmentFields {
    selector: GUEST_CS_SELECTOR,
    base: GUEST_CS_BASE,
    limit: GUEST_CS_LIMIT,
    access: GUEST_CS_ACCESS,
};

/// The fields of the guest's SS.
pub const GUEST_SS: SegmentFields = SegmentFields {
    selector: GUEST_SS_SELECTOR,
    base: GUEST_SS_BASE,
    limit: GUEST_SS_LIMIT,
    access: GUEST_SS_ACCESS,
};

/// The fields of the guest's DS.
pub const GUEST_DS: SegmentFields = SegmentFields {
    selector: GUEST_DS_SELECTOR,
    base: GUEST_DS_BASE,
    limit: GUEST_DS_LIMIT,
    access: GUEST_DS_ACCESS,
};

/// The fields of the guest's FS.
pub const GUEST_FS: SegmentFields = SegmentFields {
    selector: GUEST_FS_SELECTOR,
    base: GUEST_FS_BASE,
    limit: GUEST_FS_LIMIT,
    access: GUEST_FS_ACCESS,
};

/// The fields of the guest's GS.
pub const GUEST_GS: SegmentFields = SegmentFields {
    selector: GUEST_GS_SELECTOR,
    base: GUEST_GS_BASE,
    limit: GUEST_GS_LIMIT,
    access: GUEST_GS_ACCESS,
};

/// The fields of the guest's LDTR.
pub const GUEST_LDTR: SegmentFields = SegmentFields {
    selector: GUEST_LDTR_SELECTOR,
    base: GUEST_LDTR_BASE,
    limit: GUEST_LDTR_LIMIT,
    access: GUEST_LDTR_ACCESS,
};

/// The fields of the guest's TR.
pub const GUEST_TR: SegmentFields = SegmentFields {
    selector: GUEST_TR_SELECTOR,
    base: GUEST_TR_BASE,
    limit: GUEST_TR_LIMIT,
    access: GUEST_TR_ACCESS,
};

#[cfg(test)]
#[path = "fields_tests.rs"]
mod tests;
