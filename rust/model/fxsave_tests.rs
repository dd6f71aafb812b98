// SPDX-License-Identifier: GPL-2.0
//! The FXSAVE area.
use super::*;

/// An image of nonsense, completed.
fn completed(xstate_bv: u64, compacted: bool) -> [u8; SIZE] {
    let mut image = [0xa5; SIZE];
    let header = Header {
        xstate_bv,
        compacted,
    };
    complete(&mut image, header);
    image
}

#[test]
fn what_is_there_stays() {
    for compacted in [false, true] {
        for more in [0, xcr0::YMM | xcr0::PKRU] {
            assert_eq!(
                completed(xcr0::FP | xcr0::SSE | more, compacted),
                [0xa5; SIZE]
            );
        }
    }
    let mut image = [0xa5; SIZE];
    complete(&mut image, Header::FXSAVE);
    assert_eq!(image, [0xa5; SIZE]);
}

#[test]
fn x87_in_its_initial_state() {
    for compacted in [false, true] {
        let image = completed(xcr0::SSE, compacted);
        assert_eq!(image[..2], [0x7f, 3]);
        assert_eq!(image[2..24], [0; 22]);
        // MXCSR, its mask.
        assert_eq!(image[24..32], [0xa5; 8]);
        assert_eq!(image[32..160], [0; 128]);
        assert_eq!(image[160..], [0xa5; SIZE - 160]);
    }
}

#[test]
fn sse_in_its_initial_state() {
    for (compacted, mxcsr) in [(false, [0xa5; 4]), (true, [0x80, 0x1f, 0, 0])] {
        let image = completed(xcr0::FP | xcr0::YMM, compacted);
        assert_eq!(image[..24], [0xa5; 24]);
        assert_eq!(image[24..28], mxcsr);
        assert_eq!(image[28..160], [0xa5; 132]);
        assert_eq!(image[160..416], [0; 256]);
        assert_eq!(image[416..], [0xa5; SIZE - 416]);
    }
}
