// SPDX-License-Identifier: GPL-2.0
//! What the instruction emulator needs of registers.

use crate::hv::backend::{Backend, SysSeg, Table as HwTable};
use crate::hv::cpuid;
use crate::hv::vcpu::Loaded;
use crate::model::cr;
use crate::model::emu::job::{Answer, Need, Table};
use crate::model::event::Exception;
use crate::model::msr::Who;
use crate::model::regs::{Segment, TableReg};
use crate::sys::fpu;

fn value(r: core::result::Result<u64, Exception>) -> Answer {
    r.map_or_else(Answer::Fault, Answer::Value)
}

fn ack(r: core::result::Result<(), Exception>) -> Answer {
    r.map_or_else(Answer::Fault, |()| Answer::Ack)
}

impl<B: Backend> Loaded<'_, B> {
    /// The needs that registers meet.
    pub(super) fn register_need(&mut self, need: Need) -> Answer {
        match need {
            Need::ReadCr { cr } => value(self.read_cr(cr)),
            Need::WriteCr { cr, value } => ack(self.write_cr(cr, value)),
            Need::ReadDr { dr } => value(self.read_dr(dr)),
            Need::WriteDr { dr, value } => ack(self.write_dr(dr, value)),
            Need::EndLocalBreakpoints => {
                self.end_local_breakpoints();
                Answer::Ack
            }
            Need::Invlpg { .. } => {
                B::flush_tlb(&mut self.state.hw);
                Answer::Ack
            }
            Need::ReadVec { reg } => Answer::Vector(fpu::read_vector(reg)),
            Need::WriteVec { reg, value, vex } => {
                fpu::write_vector(reg, value, vex);
                Answer::Ack
            }
            Need::ReadFpu => Answer::Value(fpu::x87_words().into()),
            Need::InitFpu => {
                fpu::x87_init();
                Answer::Ack
            }
            // No instruction of the guest's names these: the filter of user space's is not asked.
            Need::ReadMsr { index } => value(
                self.read_msr(index, Who::Guest)
                    .map_err(|_| Exception::protection(0)),
            ),
            Need::WriteMsr { index, value } => ack(self
                .write_msr(index, value, Who::Guest)
                .map_err(|_| Exception::protection(0))),
            other => self.table_need(other),
        }
    }

    fn table_need(&mut self, need: Need) -> Answer {
        match need {
            Need::ReadTable { table } => Answer::Segment(self.table_register(table)),
            Need::WriteTable { table, value } => {
                self.set_table_register(table, value);
                Answer::Ack
            }
            Need::LoadSeg { seg, value } => {
                B::set_segment(&mut self.state.hw, seg, value);
                Answer::Ack
            }
            Need::Cpuid { leaf, subleaf } => cpuid::look_up(self, leaf, subleaf),
            // As RDPMC of the guest does.
            Need::ReadPmc { .. } => Answer::Fault(Exception::protection(0)),
            Need::ReadXcr { index: 0 } => Answer::Value(self.state.controls.xcr0),
            Need::ReadXcr { .. } => Answer::Fault(Exception::protection(0)),
            Need::WriteXcr { index, value } => {
                let limits = *self.state.features.limits();
                let checked = cr::check_xcr(index, value, &limits);
                ack(checked
                    .map(|v| self.set_xcr0(v))
                    .map_err(|_| Exception::protection(0)))
            }
            // Met before.
            _ => Answer::Fault(Exception::undefined()),
        }
    }

    fn table_register(&mut self, table: Table) -> Segment {
        let hw = &mut self.state.hw;
        let plain = |t: TableReg| Segment {
            base: t.base,
            limit: t.limit.into(),
            ..Segment::default()
        };
        match table {
            Table::Gdt => plain(B::table(hw, HwTable::Gdt)),
            Table::Idt => plain(B::table(hw, HwTable::Idt)),
            Table::Ldt => B::sys_segment(hw, SysSeg::Ldtr),
            Table::Tss => B::sys_segment(hw, SysSeg::Tr),
        }
    }

    fn set_table_register(&mut self, table: Table, value: Segment) {
        let hw = &mut self.state.hw;
        let plain = TableReg {
            base: value.base,
            limit: value.limit as u16,
        };
        match table {
            Table::Gdt => B::set_table(hw, HwTable::Gdt, plain),
            Table::Idt => B::set_table(hw, HwTable::Idt, plain),
            Table::Ldt => B::set_sys_segment(hw, SysSeg::Ldtr, value),
            Table::Tss => B::set_sys_segment(hw, SysSeg::Tr, value),
        }
    }
}
