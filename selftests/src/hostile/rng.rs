// SPDX-License-Identifier: GPL-2.0
//! A small generator of pseudo-random numbers (SplitMix64): the same numbers for the same seed, on every machine.

/// The generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Any 32-bit number.
    pub fn u32(&mut self) -> u32 {
        (self.u64() >> 32) as u32
    }

    /// Any byte.
    pub fn u8(&mut self) -> u8 {
        (self.u64() >> 56) as u8
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.u64() % n
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `list`, which is not empty.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    /// Fills `b`.
    pub fn fill(&mut self, b: &mut [u8]) {
        for part in b.chunks_mut(8) {
            let word = self.u64().to_le_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
    }

    /// A number of the kind at which checks go wrong: edges of widths, single bits, non-canonical addresses, small and
    /// negative ones; or any.
    pub fn odd(&mut self) -> u64 {
        const EDGES: [u64; 22] = [
            0,
            1,
            u64::MAX,
            0x7f,
            0xff,
            0xffff,
            0x1_0000,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x1_0000_0000,
            0x0000_7fff_ffff_ffff,
            0x0000_8000_0000_0000,
            0xffff_7fff_ffff_ffff,
            0xffff_8000_0000_0000,
            0x000f_ffff_ffff_f000,
            0x0010_0000_0000_0000,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            0x00ff_ffff_ffff_ffff,
            0xff00_0000_0000_0000,
            0xfee0_0900,
        ];
        match self.below(8) {
            0 | 1 => self.pick(&EDGES),
            2 => 1 << self.below(64),
            3 => self.below(32),
            4 => self.below(1 << 20) << 12,
            5 => u64::from(self.u32()),
            6 => self
                .pick(&EDGES)
                .wrapping_add(self.below(17))
                .wrapping_sub(8),
            _ => self.u64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn same_seed_same_numbers() {
        let (mut a, mut b, mut c) = (Rng::new(7), Rng::new(7), Rng::new(8));
        let x: Vec<u64> = (0..8).map(|_| a.u64()).collect();
        assert_eq!(x, (0..8).map(|_| b.u64()).collect::<Vec<_>>());
        assert_ne!(x, (0..8).map(|_| c.u64()).collect::<Vec<_>>());
        // The published first value of SplitMix64 for the seed 1234567.
        assert_eq!(Rng::new(1_234_567).u64(), 6_457_827_717_110_365_317);
    }
}
