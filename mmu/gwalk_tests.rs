// SPDX-License-Identifier: GPL-2.0
//! The walk against a naive model on random tables, and the cases worth a name.
use super::*;
use core::cell::RefCell;
use std::vec;
use std::vec::Vec;

/// Sixteen frames of memory.
struct Memory {
    words: RefCell<Vec<u32>>,
    /// Compare-exchanges that fail, then those that work.
    lose: RefCell<u32>,
    read_only: bool,
}

const FRAMES: u64 = 16;

impl Memory {
    fn new() -> Self {
        Self {
            words: RefCell::new(vec![0; (FRAMES * 1024) as usize]),
            lose: RefCell::new(0),
            read_only: false,
        }
    }

    fn set(&self, gpa: u64, len: u8, value: u64) {
        let at = (gpa / 4) as usize;
        self.words.borrow_mut()[at] = value as u32;
        if len == 8 {
            self.words.borrow_mut()[at + 1] = (value >> 32) as u32;
        }
    }
}

impl GuestMem for Memory {
    fn read(&self, gpa: u64, len: u8) -> Option<u64> {
        assert!(matches!(len, 4 | 8) && gpa % u64::from(len) == 0);
        let words = self.words.borrow();
        let at = (gpa / 4) as usize;
        let low = u64::from(*words.get(at)?);
        Some(if len == 8 {
            low | (u64::from(*words.get(at + 1)?) << 32)
        } else {
            low
        })
    }

    fn cmpxchg(&self, gpa: u64, len: u8, old: u64, new: u64) -> Option<bool> {
        if self.read_only {
            return None;
        }
        if *self.lose.borrow() > 0 {
            *self.lose.borrow_mut() -= 1;
            return Some(false);
        }
        if self.read(gpa, len)? != old {
            return Some(false);
        }
        self.set(gpa, len, new);
        Some(true)
    }
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn one_in(&mut self, n: u64) -> bool {
        (self.next() >> 20) % n == 0
    }
}

/// What one level means, said for each kind of paging separately and in full.
struct Step {
    gpa: u64,
    value: u64,
    next: u64,
    leaf_size: Option<u64>,
    reserved: bool,
    rights: bool,
}

fn model_path(mem: &Memory, p: &Paging, gva: u64) -> Result<Vec<Step>, Vec<Step>> {
    let m = u32::from(p.maxphyaddr);
    let high = |from: u32, to: u32| (from..to).fold(0u64, |bits, n| bits | (1 << n));
    let nx_reserved = if p.efer & efer::NXE == 0 { 1 << 63 } else { 0 };
    let mut steps: Vec<Step> = Vec::new();
    let long = p.efer & efer::LMA != 0;
    let pae = p.cr4 & cr4::PAE != 0;
    // (shift of the index, bits of the index, bytes of an entry)
    let levels: &[(u32, u32, u8)] = match (long, p.cr4 & cr4::LA57 != 0, pae) {
        (true, true, _) => &[(48, 9, 8), (39, 9, 8), (30, 9, 8), (21, 9, 8), (12, 9, 8)],
        (true, false, _) => &[(39, 9, 8), (30, 9, 8), (21, 9, 8), (12, 9, 8)],
        (false, _, true) => &[(30, 2, 8), (21, 9, 8), (12, 9, 8)],
        _ => &[(22, 10, 4), (12, 10, 4)],
    };
    let mut table = match (long, pae) {
        (true, _) => p.cr3 & high(12, m),
        (false, true) => p.cr3 & high(5, 32),
        _ => p.cr3 & high(12, 32),
    };
    for &(shift, bits, len) in levels {
        let index = (gva >> shift) & ((1 << bits) - 1);
        let gpa = table + index * u64::from(len);
        let root = !long && pae && shift == 30;
        let value = match p.pdptrs {
            Some(regs) if root => Some(regs[index as usize]),
            _ => mem.read(gpa, len),
        };
        let Some(value) = value else {
            return Err(steps);
        };
        if value & 1 == 0 {
            return Err(steps);
        }
        let ps = value & 0x80 != 0;
        let (leaf_size, reserved, next) = if len == 4 {
            match (shift, ps && p.cr4 & cr4::PSE != 0) {
                (12, _) => (Some(1 << 12), 0, value & high(12, 32)),
                (_, true) => {
                    let above = m.min(40) - 32;
                    let frame = value & high(22, 32) | (((value >> 13) & 0xff) << 32);
                    (Some(1 << 22), high(13 + above, 22), frame)
                }
                _ => (None, 0, value & high(12, 32)),
            }
        } else if root {
            (
                None,
                high(m, 64) | high(1, 3) | high(5, 9),
                value & high(12, m),
            )
        } else {
            let top = high(m, if long { 52 } else { 63 }) | nx_reserved;
            let big = shift == 21 || shift == 30 && p.gbpages;
            match (shift, ps) {
                (12, _) => (Some(1 << 12), top, value & high(12, m)),
                (_, true) if big => (
                    Some(1 << shift),
                    top | high(13, shift),
                    value & high(shift, m),
                ),
                (21, _) => (None, top, value & high(12, m)),
                _ => (None, top | 0x80, value & high(12, m)),
            }
        };
        steps.push(Step {
            gpa,
            value,
            next,
            leaf_size,
            reserved: value & reserved != 0,
            rights: !root,
        });
        if steps.last().unwrap().reserved {
            return Err(steps);
        }
        if leaf_size.is_some() {
            return Ok(steps);
        }
        table = next;
    }
    unreachable!()
}

/// The result and the entries as they must be afterwards.
#[allow(clippy::type_complexity)]
fn model(
    mem: &Memory,
    p: &Paging,
    gva: u64,
    a: Access,
) -> (Result<(u64, u64), WalkError>, Vec<(u64, u64)>) {
    let mut code = u32::from(a.write) * 2 + u32::from(a.user) * 4;
    let nxe = p.efer & efer::NXE != 0 && p.cr4 & cr4::PAE != 0;
    if a.fetch && (nxe || p.cr4 & cr4::SMEP != 0) {
        code |= 16;
    }
    let fault = |bits: u32| (Err(WalkError::PageFault { error: code | bits }), Vec::new());
    let steps = match model_path(mem, p, gva) {
        Ok(steps) => steps,
        Err(steps) => {
            return fault(if steps.last().is_some_and(|step| step.reserved) {
                9
            } else {
                0
            })
        }
    };
    let with_rights = || steps.iter().filter(|step| step.rights);
    let writable = with_rights().all(|step| step.value & 2 != 0);
    let user = with_rights().all(|step| step.value & 4 != 0);
    let nx = nxe && with_rights().any(|step| step.value >> 63 != 0);
    let leaf = steps.last().unwrap();
    let wp = p.cr0 & cr0::WP != 0;
    let mut key_fault = false;
    if p.cr4 & cr4::PKE != 0 && p.efer & efer::LMA != 0 && user && !a.fetch {
        let key = (leaf.value >> 59) & 15;
        let (ad, wd) = (
            (p.pkru >> (2 * key)) & 1 != 0,
            (p.pkru >> (2 * key + 1)) & 1 != 0,
        );
        key_fault = ad || wd && a.write && (a.user || wp);
    }
    let ok = if a.user {
        user && (!a.write || writable) && !(a.fetch && nx)
    } else {
        let smep_ok = !(a.fetch && user && p.cr4 & cr4::SMEP != 0);
        let smap_ok = a.fetch || !user || p.cr4 & cr4::SMAP == 0 || p.ac && !a.implicit;
        let write_ok = !a.write || writable || !wp;
        let fetch_ok = !a.fetch || !nx;
        write_ok && fetch_ok && smep_ok && smap_ok
    };
    if !ok || key_fault {
        return fault(1 | (u32::from(key_fault) << 5));
    }
    let size = leaf.leaf_size.unwrap();
    let after = with_rights()
        .map(|step| {
            let dirty = a.write && step.leaf_size.is_some();
            (step.gpa, step.value | 0x20 | (u64::from(dirty) << 6))
        })
        .collect();
    (Ok((leaf.next + gva % size, size)), after)
}

/// An entry that is mostly usable and points into the frames.
fn entry(rng: &mut Rng) -> u64 {
    let mut value = ((rng.next() >> 30) & 0xff) | 1 | (((rng.next() >> 11) % FRAMES) << 12);
    if !rng.one_in(4) {
        value |= 6;
    }
    if rng.one_in(30) {
        value &= !1;
    }
    if rng.one_in(8) {
        value |= 1 << 63;
    }
    if rng.one_in(8) {
        value |= (rng.next() & 15) << 59;
    }
    if rng.one_in(40) {
        value |= 1 << (12 + rng.next() % 51);
    }
    value
}

fn random_paging(rng: &mut Rng) -> Paging {
    let kind = (rng.next() >> 33) & 3;
    let mut p = Paging {
        cr0: cr0::PG | cr0::PE,
        cr3: (((rng.next() >> 9) % FRAMES) << 12) | (rng.next() & 0xff8),
        maxphyaddr: [36, 39, 40, 46, 52][(rng.next() >> 13) as usize % 5],
        gbpages: !rng.one_in(3),
        ac: rng.one_in(2),
        pkru: rng.next() as u32 & rng.next() as u32 & rng.next() as u32,
        ..Paging::default()
    };
    p.efer |= [0, efer::LMA | efer::LME][usize::from(kind >= 2)]
        | if rng.one_in(3) { 0 } else { efer::NXE };
    p.cr4 |= if kind >= 1 { cr4::PAE } else { 0 } | if kind == 3 { cr4::LA57 } else { 0 };
    for bit in [cr4::PSE, cr4::SMEP, cr4::SMAP, cr4::PKE] {
        p.cr4 |= if rng.one_in(2) { bit } else { 0 };
    }
    p.cr0 |= if rng.one_in(2) { cr0::WP } else { 0 };
    if kind == 1 && rng.one_in(2) {
        p.pdptrs = Some(core::array::from_fn(|_| entry(rng) & !0x1e6));
    }
    p
}

#[test]
fn random_tables_as_the_model_walks_them() {
    let mut rng = Rng(7);
    let (mut good, mut bad, mut reserved) = (0, 0, 0);
    for _ in 0..60 {
        let mem = Memory::new();
        let wide = rng.one_in(2);
        for slot in 0..FRAMES * 512 {
            let mut value = entry(&mut rng);
            if !wide {
                // 32-bit entries in both halves
                value = value & 0xffff_ffff | (entry(&mut rng) << 32);
            }
            mem.set(slot * 8, 8, value);
        }
        for _ in 0..5000 {
            let paging = random_paging(&mut rng);
            let gva = rng.next();
            let gva = if paging.efer & efer::LMA == 0 {
                gva & 0xffff_ffff
            } else {
                gva
            };
            let access = Access {
                write: rng.one_in(2),
                fetch: false,
                user: rng.one_in(2),
                implicit: false,
            };
            let access = match rng.next() >> 60 {
                0..=3 => Access {
                    write: false,
                    fetch: true,
                    ..access
                },
                4..=5 => Access {
                    user: false,
                    implicit: true,
                    ..access
                },
                _ => access,
            };
            let (expected, after) = model(&mem, &paging, gva, access);
            let got = walk(&mem, &paging, gva, access);
            let context = || std::format!("{paging:x?} {gva:#x} {access:?}");
            assert_eq!(got.map(|t| (t.gpa, t.page_size)), expected, "{}", context());
            let len = if paging.efer & efer::LMA == 0 && paging.cr4 & cr4::PAE == 0 {
                4
            } else {
                8
            };
            // One entry may have been used at two levels; then both flags are in it.
            for &(gpa, value) in &after {
                let now = mem.read(gpa, len).unwrap();
                assert_eq!(now & value, value, "{}", context());
            }
            match expected {
                Ok(_) => good += 1,
                Err(WalkError::PageFault { error }) if error & 8 != 0 => reserved += 1,
                Err(_) => bad += 1,
            }
        }
    }
    assert!(
        good > 20_000 && bad > 20_000 && reserved > 5_000,
        "{good} {bad} {reserved}"
    );
}

/// Four-level tables in frames 1 to 4 that map linear address 0 to frame 9, all rights, no flags.
fn simple() -> (Memory, Paging) {
    let mem = Memory::new();
    for level in 1..=3u64 {
        mem.set(level << 12, 8, ((level + 1) << 12) | 7);
    }
    mem.set(4 << 12, 8, (9 << 12) | 7);
    let paging = Paging {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: 1 << 12,
        cr4: cr4::PAE,
        efer: efer::LMA | efer::NXE,
        maxphyaddr: 40,
        ..Paging::default()
    };
    (mem, paging)
}

const READ: Access = Access {
    write: false,
    fetch: false,
    user: false,
    implicit: false,
};
const WRITE: Access = Access {
    write: true,
    ..READ
};

#[test]
fn without_paging_addresses_are_32_bits() {
    let got = walk(&Memory::new(), &Paging::default(), 0x1_2345_6789, WRITE).unwrap();
    assert_eq!((got.gpa, got.page_size), (0x2345_6789, 4096));
}

#[test]
fn flags_are_set_by_what_is_allowed_only() {
    let (mem, paging) = simple();
    mem.set(4 << 12, 8, (9 << 12) | 5);
    assert_eq!(
        walk(&mem, &paging, 0x123, WRITE),
        Err(WalkError::PageFault { error: 3 })
    );
    assert_eq!(
        mem.read(1 << 12, 8),
        Some((2 << 12) | 7),
        "a fault leaves the entries"
    );
    assert_eq!(walk(&mem, &paging, 0x123, READ).unwrap().gpa, 0x9123);
    assert_eq!(mem.read(1 << 12, 8), Some((2 << 12) | 0x27));
    assert_eq!(mem.read(4 << 12, 8), Some((9 << 12) | 0x25));
    mem.set(4 << 12, 8, (9 << 12) | 7);
    walk(&mem, &paging, 0x123, WRITE).unwrap();
    assert_eq!(mem.read(4 << 12, 8), Some((9 << 12) | 0x67));
    assert_eq!(
        mem.read(3 << 12, 8),
        Some((4 << 12) | 0x27),
        "only the leaf gets dirty"
    );
}

#[test]
fn lost_races_walk_again_but_not_for_ever() {
    let (mem, paging) = simple();
    *mem.lose.borrow_mut() = 3;
    assert!(walk(&mem, &paging, 0, WRITE).is_ok());
    let (mem, paging) = simple();
    *mem.lose.borrow_mut() = u32::MAX;
    assert_eq!(walk(&mem, &paging, 0, WRITE), Err(WalkError::Contended));
    // Tables in read-only memory translate, without flags.
    let (mut mem, paging) = simple();
    mem.read_only = true;
    assert!(walk(&mem, &paging, 0, WRITE).is_ok());
    assert_eq!(mem.read(4 << 12, 8), Some((9 << 12) | 7));
}

#[test]
fn tables_outside_of_memory_map_nothing() {
    for level in 1..=3u64 {
        let (mem, paging) = simple();
        mem.set(level << 12, 8, (0x77 << 12) | 7);
        for (access, error) in [
            (READ, 0),
            (WRITE, 2),
            (Access { user: true, ..READ }, 4),
            (
                Access {
                    fetch: true,
                    ..READ
                },
                16,
            ),
        ] {
            assert_eq!(
                walk(&mem, &paging, 0, access),
                Err(WalkError::PageFault { error })
            );
        }
    }
    // So does one that only the root could lead to.
    let (mem, mut paging) = simple();
    paging.cr3 = 0x77 << 12;
    assert_eq!(
        walk(&mem, &paging, 0, READ),
        Err(WalkError::PageFault { error: 0 })
    );
}
