// SPDX-License-Identifier: GPL-2.0
//! Any value to any MSR.
use super::*;
use proptest::prelude::*;

proptest! {
    /// Nothing panics; a refused write changes nothing; what the guest stores it reads; what user space reads it can restore.
    #[test]
    fn any_access(
        which in 0usize..10,
        steps in proptest::collection::vec((any::<prop::sample::Index>(), 0u32..40, any::<u64>(), 0u8..4, any::<bool>()), 1..60),
    ) {
        let name = cpus()[which].name;
        let mut v = Vcpu::new(name);
        for (row, off, value, shape, by_guest) in steps {
            let index = row.get(TABLE).first.wrapping_add(off);
            let who = if by_guest { Who::Guest } else { Who::Host };
            let value = match shape { 0 => value, 1 => value & 0xff, 2 => 0, _ => 1 << (value & 63) };
            let before = v.slots;
            match v.wr(index, value, who) {
                Err(_) => prop_assert_eq!(before, v.slots),
                Ok(Effect::Hw(msr, _)) => prop_assert_eq!(v.rd(index, Who::Host), Ok(Answer::Hw(msr))),
                Ok(_) => {}
            }
            if let Ok(Answer::Value(x)) = v.rd(index, Who::Host) {
                let slots = v.slots;
                if v.wr(index, x, Who::Host).is_ok() {
                    prop_assert_eq!(slots, v.slots, "{:#x}", index);
                } else {
                    prop_assert_eq!(find(index, &v.guest).unwrap().host_write, May::Unknown, "{:#x}", index);
                }
            }
        }
    }

    #[test]
    fn any_index(index: u32, value: u64) {
        let mut v = Vcpu::new("tcg-max");
        let _ = v.rd(index, Who::Guest);
        let _ = v.wr(index, value, Who::Guest);
        let _ = v.wr(index, value, Who::Host);
        let _ = read(&[], index, Who::Host, &v.guest);
        let _ = write(&mut [], index, value, Who::Host, &REAL, &v.guest);
    }
}
