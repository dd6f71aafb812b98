// SPDX-License-Identifier: GPL-2.0
//! Single entries: which may become which, and their bits.

use super::arena::{RO, RW};
use crate::mmu::ept::{Ept, EptConfig};
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::pte::{PteFormat, FROZEN};
use crate::mmu::tdp::funnel::judge;
use crate::mmu::{Access, Level, MemType, Perms};

/// The arrows of "Life of an entry": each pair of kinds at each level is legal or refused, and owes what it should.
#[test]
fn the_funnel_knows_its_arrows() {
    let config = NptConfig::default();
    let leaf = |pa, level, perms| Npt::leaf(config, pa, level, perms, MemType::WriteBack);
    for level in (1..=5).filter_map(Level::from_number) {
        let verdict = |old, new| judge::<Npt>(config, level, old, new).map(|v| v.flush).ok();
        let table = Npt::table(config, 0x5000);
        assert_eq!(verdict(0, FROZEN), Some(false));
        assert_eq!(verdict(FROZEN, 0), Some(false));
        assert_eq!(verdict(0, 0), None);
        assert_eq!(verdict(0x1000, 0), None);
        assert_eq!(verdict(0, 0x1000), None);
        if level > Level::L4K {
            assert_eq!(verdict(0, table), Some(false));
            assert_eq!(verdict(table, FROZEN), Some(true));
            assert_eq!(verdict(table, 0), None);
            assert_eq!(verdict(table, Npt::table(config, 0x6000)), None);
            assert_eq!(verdict(FROZEN, table), None);
        }
        if !level.may_be_leaf() {
            continue;
        }
        let (rw, ro) = (leaf(1 << 40, level, RW), leaf(1 << 40, level, RO));
        assert_eq!(verdict(0, rw), Some(false));
        assert_eq!(verdict(ro, rw), Some(false));
        assert_eq!(verdict(rw, ro), Some(true));
        assert_eq!(verdict(rw, Npt::clear_accessed(rw)), Some(false));
        assert_eq!(verdict(rw, 0), Some(true));
        assert_eq!(verdict(rw, FROZEN), Some(true));
        assert_eq!(verdict(FROZEN, rw), None);
        assert_eq!(verdict(rw, leaf(1 << 41, level, RW)), None);
        if level > Level::L4K {
            assert_eq!(verdict(rw, table), None);
            assert_eq!(verdict(table, rw), None);
        }
    }
}

/// The encodings, bit by bit ("EPT Translation Mechanism", "Nested Paging").
#[test]
fn leaves_have_the_manuals_bits() {
    let ept = |ad, level, perms, mem| {
        Ept::leaf(
            EptConfig { accessed_dirty: ad },
            0x1_4000_0000,
            level,
            perms,
            mem,
        )
    };
    assert_eq!(
        ept(false, Level::L4K, RW, MemType::WriteBack),
        0x1_4000_0077
    );
    assert_eq!(ept(true, Level::L2M, RW, MemType::WriteBack), 0x1_4000_03f7);
    assert_eq!(ept(true, Level::L4K, RO, MemType::Uncached), 0x1_4000_0105);
    let npt = |sme, level, perms, mem| {
        Npt::leaf(
            NptConfig {
                encryption_mask: sme,
            },
            0x1_4000_0000,
            level,
            perms,
            mem,
        )
    };
    assert_eq!(npt(0, Level::L4K, RW, MemType::WriteBack), 0x1_4000_0067);
    assert_eq!(npt(0, Level::L1G, RO, MemType::WriteBack), 0x1_4000_00a5);
    let no_exec = Perms {
        write: false,
        exec: false,
    };
    assert_eq!(
        npt(0, Level::L4K, no_exec, MemType::WriteBack),
        0x8000_0001_4000_0025
    );
    assert_eq!(
        npt(1 << 47, Level::L4K, RO, MemType::WriteBack),
        0x8001_4000_0025
    );
    assert_eq!(
        npt(1 << 47, Level::L4K, RO, MemType::Uncached),
        0x1_4000_0025
    );
    assert!(!Ept::is_present(FROZEN) && !Npt::is_present(FROZEN));
    assert!(RO.allow(Access::EXEC) && !RO.allow(Access::WRITE) && !no_exec.allow(Access::EXEC));
}
