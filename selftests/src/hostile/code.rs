// SPDX-License-Identifier: GPL-2.0
//! Random valid instructions, mostly of the kinds that a hypervisor has to do with: system instructions, port and string
//! accesses, far transfers, descriptor tables, control and debug registers, MSRs, and stores to page and descriptor tables.

use super::rng::Rng;
use crate::guest::*;

/// Code in the making.
pub struct Code {
    bits: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Where instructions begin.
    pub starts: Vec<u64>,
}

/// Opcodes without an operand byte.
const PLAIN: &[&[u8]] = &[
    &[0xf4],
    &[0xfa],
    &[0xfb],
    &[0x9c],
    &[0x9d],
    &[0xcf],
    &[0xcb],
    &[0xcc],
    &[0xce],
    &[0xf1],
    &[0x0f, 0x05],
    &[0x0f, 0x06],
    &[0x0f, 0x07],
    &[0x0f, 0x08],
    &[0x0f, 0x09],
    &[0x0f, 0x0b],
    &[0x0f, 0x30],
    &[0x0f, 0x31],
    &[0x0f, 0x32],
    &[0x0f, 0x33],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xa2],
    &[0x0f, 0xaa],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x01, 0xc2],
    &[0x0f, 0x01, 0xc8],
    &[0x0f, 0x01, 0xc9],
    &[0x0f, 0x01, 0xca],
    &[0x0f, 0x01, 0xcb],
    &[0x0f, 0x01, 0xd0],
    &[0x0f, 0x01, 0xd1],
    &[0x0f, 0x01, 0xd4],
    &[0x0f, 0x01, 0xd8],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x01, 0xda],
    &[0x0f, 0x01, 0xdb],
    &[0x0f, 0x01, 0xdc],
    &[0x0f, 0x01, 0xdd],
    &[0x0f, 0x01, 0xde],
    &[0x0f, 0x01, 0xdf],
    &[0x0f, 0x01, 0xee],
    &[0x0f, 0x01, 0xef],
    &[0x0f, 0x01, 0xf8],
    &[0x0f, 0x01, 0xf9],
    &[0x0f, 0x01, 0xfc],
    &[0x0f, 0x01, 0xfd],
    &[0xf3, 0x90],
    &[0x06],
    &[0x07],
    &[0x0e],
    &[0x16],
    &[0x17],
    &[0x1e],
    &[0x1f],
    &[0x0f, 0xa0],
    &[0x0f, 0xa1],
    &[0x0f, 0xa8],
    &[0x0f, 0xa9],
];

/// String instructions.
const STRINGS: &[u8] = &[
    0x6c, 0x6d, 0x6e, 0x6f, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf,
];

/// Opcodes with ModR/M; the register field is random.
const MODRM: &[&[u8]] = &[
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x0d],
    &[0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x0f, 0xb0],
    &[0x0f, 0xb1],
    &[0x0f, 0xc0],
    &[0x0f, 0xc1],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x0f, 0xb6],
    &[0x0f, 0xbe],
    &[0x0f, 0x28],
    &[0x0f, 0x29],
    &[0x0f, 0x6f],
    &[0x0f, 0x7f],
    &[0x66, 0x0f, 0x38, 0x80],
    &[0x66, 0x0f, 0x38, 0x81],
    &[0x66, 0x0f, 0x38, 0x82],
    &[0x0f, 0x38, 0xf0],
    &[0x0f, 0x38, 0xf1],
    &[0x8c],
    &[0x8e],
    &[0x8e],
    &[0x88],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0x87],
    &[0x8f],
    &[0x01],
    &[0x31],
    &[0x39],
    &[0x11],
    &[0x63],
    &[0xc4],
    &[0xc5],
    &[0xd1],
    &[0xd3],
    &[0xd9],
    &[0xdb],
    &[0xdd],
    &[0xf7],
    &[0xfe],
    &[0xff],
    &[0xff],
];

impl Code {
    /// No code yet, for 16, 32 or 64 bits.
    pub fn new(bits: u32) -> Self {
        Self {
            bits,
            bytes: Vec::new(),
            starts: Vec::new(),
        }
    }

    /// Fills `len` bytes.
    pub fn generate(&mut self, rng: &mut Rng, len: usize) {
        while self.bytes.len() + 32 < len {
            if rng.one_in(3) {
                self.starts.push(self.bytes.len() as u64);
                self.load_register(rng);
            }
            self.starts.push(self.bytes.len() as u64);
            self.instruction(rng);
        }
        self.bytes.resize(len, 0xf4);
    }

    fn immediate(&mut self, rng: &mut Rng, n: usize) {
        let v = rng.odd().to_le_bytes();
        self.bytes.extend(&v[..n]);
    }

    /// MOV of something interesting to a register.
    fn load_register(&mut self, rng: &mut Rng) {
        let reg = rng.pick(&[0u8, 1, 2, 3, 5, 6, 7]);
        let values = [
            DATA,
            MMIO,
            GDT,
            IDT,
            TSS,
            PML4,
            PDPT,
            PD,
            CODE,
            0xc000_0080,
            0x20,
            0x58,
            0x60,
            0x68,
            0x70,
        ];
        let v = if rng.one_in(3) {
            rng.odd()
        } else {
            rng.pick(&values) + rng.below(16)
        };
        let bytes = v.to_le_bytes();
        match self.bits {
            16 => {
                self.bytes.push(0xb8 | reg);
                self.bytes.extend(&bytes[..2]);
            }
            64 if rng.one_in(3) => {
                self.bytes.extend([0x48, 0xb8 | reg]);
                self.bytes.extend(bytes);
            }
            _ => {
                self.bytes.push(0xb8 | reg);
                self.bytes.extend(&bytes[..4]);
            }
        }
    }

    fn prefixes(&mut self, rng: &mut Rng) {
        const ALL: [u8; 11] = [
            0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
        ];
        while rng.one_in(5) {
            let p = rng.pick(&ALL);
            self.bytes.push(p);
        }
        if self.bits == 64 && rng.one_in(3) {
            self.bytes.push(0x40 | rng.below(16) as u8);
        }
    }

    fn instruction(&mut self, rng: &mut Rng) {
        match rng.below(20) {
            0..=3 => {
                self.prefixes(rng);
                let op = rng.pick(PLAIN);
                self.bytes.extend(op);
            }
            4 | 5 => {
                if rng.one_in(2) {
                    self.bytes.push(rng.pick(&[0xf2, 0xf3]));
                }
                self.prefixes(rng);
                let op = rng.pick(STRINGS);
                self.bytes.push(op);
            }
            // MOV to and from control and debug registers.
            6..=8 => {
                self.prefixes(rng);
                let op = rng.pick(&[0x20u8, 0x21, 0x22, 0x22, 0x23]);
                self.bytes.extend([0x0f, op, 0xc0 | rng.u8()]);
            }
            9 => {
                self.prefixes(rng);
                let op = rng.pick(&[0xe4u8, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef]);
                self.bytes.push(op);
                if op < 0xe8 {
                    self.bytes.push(rng.u8());
                }
            }
            10 => self.far(rng),
            11 => {
                let vector = rng.u8();
                self.bytes.extend([0xcd, vector]);
            }
            12 | 13 => self.table_store(rng),
            _ => {
                self.prefixes(rng);
                let op = rng.pick(MODRM);
                self.bytes.extend(op);
                self.modrm(rng);
                // Some of these take an immediate; where not, it is the next instruction.
                if rng.one_in(4) {
                    self.immediate(rng, 1);
                }
            }
        }
    }

    fn modrm(&mut self, rng: &mut Rng) {
        let modrm = rng.u8();
        self.bytes.push(modrm);
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if mode == 3 {
            return;
        }
        if self.bits != 16 && rm == 4 {
            let sib = rng.u8();
            self.bytes.push(sib);
        }
        let wide = if self.bits == 16 { 2 } else { 4 };
        let absolute = mode == 0 && rm == if self.bits == 16 { 6 } else { 5 };
        match mode {
            _ if absolute => self.address(rng, wide),
            1 => self.bytes.push(rng.u8()),
            2 => self.address(rng, wide),
            _ => {}
        }
    }

    fn address(&mut self, rng: &mut Rng, n: usize) {
        let v = match rng.below(4) {
            0 => MMIO + rng.below(0x1000),
            1 => rng.pick(&[GDT, IDT, TSS, PML4, PD]) + rng.below(64),
            2 => DATA + rng.below(0x1000),
            _ => rng.odd(),
        };
        self.bytes.extend(&v.to_le_bytes()[..n]);
    }

    /// A far CALL or JMP, direct or through memory.
    fn far(&mut self, rng: &mut Rng) {
        let selector = rng.pick(&[
            8u16, 0x10, 0x18, 0x20, 0x30, 0x38, 0x43, 0x53, 0x58, 0x60, 0x68, 0x70, 4,
        ]);
        let wide = if self.bits == 16 { 2 } else { 4 };
        if self.bits != 64 && rng.one_in(2) {
            let op = rng.pick(&[0x9au8, 0xea]);
            self.bytes.push(op);
            let at = CODE + rng.below(4096);
            self.bytes.extend(&at.to_le_bytes()[..wide]);
            self.bytes.extend(selector.to_le_bytes());
        } else {
            let reg = rng.pick(&[3u8, 5]);
            self.bytes.extend([0xff, reg << 3]);
        }
    }

    /// Writes an entry of a page table, a descriptor or a gate.
    fn table_store(&mut self, rng: &mut Rng) {
        let at = rng.pick(&[PML4, PDPT, PD, PD + 8, GDT, IDT, 0x1_8000, 0]) + 8 * rng.below(64);
        let task_gate = 0x0000_e500_0058_0000u64;
        let v = match rng.below(6) {
            0 => task_gate,
            1 => rng.odd(),
            2 => rng.odd() | 0x87,
            3 => (rng.odd() << 12) | 7,
            4 => 0x0000_8e00_0008_8000,
            _ => rng.u64(),
        };
        // MOV to memory of an immediate, both halves or one.
        for half in 0..=rng.below(2) {
            let at = at + 4 * half;
            let part = (v >> (32 * half)).to_le_bytes();
            match self.bits {
                16 => {
                    self.bytes.extend([0x66, 0xc7, 0x06]);
                    self.bytes.extend(&at.to_le_bytes()[..2]);
                }
                32 => {
                    self.bytes.extend([0xc7, 0x05]);
                    self.bytes.extend(&at.to_le_bytes()[..4]);
                }
                _ => {
                    self.bytes.extend([0xc7, 0x04, 0x25]);
                    self.bytes.extend(&at.to_le_bytes()[..4]);
                }
            }
            self.bytes.extend(&part[..4]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A good part of what is generated are instructions that exist, so that the attack is not one by #UD alone.
    #[test]
    fn mostly_valid() {
        for bits in [16, 32, 64] {
            let mut code = Code::new(bits);
            code.generate(&mut Rng::new(1), 4096);
            assert!(code.bytes.len() == 4096 && code.starts.len() > 200);
            assert!(code.starts.iter().all(|s| *s < 4096));
        }
    }
}
