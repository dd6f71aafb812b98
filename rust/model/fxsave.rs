// SPDX-License-Identifier: GPL-2.0
//! The FXSAVE area, which is also the legacy region of an XSAVE image (Intel SDM volume 1, "Legacy Region of an XSAVE Area").
#![forbid(unsafe_code)]

use crate::model::cr::xcr0;

/// Bytes of it.
pub const SIZE: usize = 512;

/// FCW after FNINIT.
const FCW: u16 = 0x37f;
/// MXCSR after reset.
const MXCSR: u32 = 0x1f80;

/// What the header of an XSAVE image says of its legacy region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// XSTATE_BV: the components that the image holds; the others are in their initial state.
    pub xstate_bv: u64,
    /// XCOMP_BV bit 63: the image is in the compacted form.
    pub compacted: bool,
}

impl Header {
    /// Of an image that FXSAVE wrote: all of it is there.
    pub const FXSAVE: Self = Self {
        xstate_bv: xcr0::FP | xcr0::SSE,
        compacted: false,
    };
}

/// Gives what `image` does not hold its initial value: the CPU leaves the bytes of a component in its initial state as they were.
///
/// MXCSR belongs to no component in the standard form: it is always there.
pub fn complete(image: &mut [u8; SIZE], header: Header) {
    if header.xstate_bv & xcr0::FP == 0 {
        put(image, 0, &[0; 24]);
        put(image, 0, &FCW.to_le_bytes());
        put(image, 32, &[0; 128]);
    }
    if header.xstate_bv & xcr0::SSE == 0 {
        put(image, 160, &[0; 256]);
        if header.compacted {
            put(image, 24, &MXCSR.to_le_bytes());
        }
    }
}

/// Copies `from` over the part of `image` that begins at `offset`.
pub fn put(image: &mut [u8], offset: usize, from: &[u8]) {
    for (to, b) in image.iter_mut().skip(offset).zip(from) {
        *to = *b;
    }
}

#[cfg(test)]
#[path = "fxsave_tests.rs"]
mod tests;
