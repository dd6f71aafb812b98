// SPDX-License-Identifier: GPL-2.0
//! `lodge asm`: runs a flat blob of machine code and shows its exits and registers.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use clap::{Args, ValueEnum};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::errno;

use crate::boot::cpu::{self, CpuMode};
use crate::error::Context;
use crate::input::Keys;
use crate::machine::{self, End};
use crate::memory::parse_size;
use crate::narrow::Cpu;
use crate::sys::kvm::{MappedVm, RunPage};
use crate::sys::signals::{stop, Kicks};
use crate::{state, status, vm};

/// Real-mode code is loaded here, at 0000:1000; the stack is below.
const REAL_ADDRESS: u64 = 0x1000;
/// 64-bit code is loaded here; the stack is below.
const LONG_ADDRESS: u64 = 0x10_0000;
/// Real-mode code has to fit into its segment.
const REAL_END: u64 = 0x1_0000;

/// The processor mode of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// 16-bit real mode, loaded and entered at 0000:1000
    Real,
    /// 64-bit mode, loaded and entered at 1 MiB, 4 GiB mapped one to one
    Long,
}

/// Run a flat binary and print its exits and final registers
#[derive(Args, Debug)]
pub struct AsmArgs {
    /// The machine code
    file: PathBuf,
    /// The processor's mode
    #[arg(long, value_enum, default_value = "real")]
    mode: Mode,
    /// The size of the guest's memory
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse_size)]
    memory: u64,
    /// The KVM device
    #[arg(long, value_name = "FILE", default_value = "/dev/kvm")]
    device: PathBuf,
    /// End the run after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// Runs the blob until it halts and returns the exit status.
pub fn run(args: &AsmArgs) -> Result<u8> {
    let name = args.file.display();
    let code = std::fs::read(&args.file).with_context(|| format!("cannot read {name}"))?;
    let (mode, address, end) = match args.mode {
        Mode::Real => (CpuMode::Real, REAL_ADDRESS, REAL_END.min(args.memory)),
        Mode::Long => (CpuMode::Long, LONG_ADDRESS, args.memory),
    };
    if code.len() as u64 > end.saturating_sub(address) {
        bail!("{name} does not fit: it is loaded at {address:#x} and may not go beyond {end:#x}");
    }
    let kvm = vm::open(&args.device)?;
    let vm = vm::create(&kvm, args.memory)?;
    vm.memory
        .write_slice(&code, GuestAddress(address))
        .context("code")?;
    let mut vcpu = vm::create_vcpu(&kvm, &vm, &Cpu::host())?;
    let mut sregs = vcpu.get_sregs().ioctl("KVM_GET_SREGS")?;
    cpu::set_segments(&vm.memory, &mut sregs, mode)?;
    vcpu.set_sregs(&sregs).ioctl("KVM_SET_SREGS")?;
    vcpu.set_regs(&cpu::registers(address, address))
        .ioctl("KVM_SET_REGS")?;

    let mut out = io::stdout();
    let end = execute(&mut out, &mut vcpu, Duration::from_secs(args.timeout))?;
    finish(&mut out, &end, &vcpu, &vm)?;
    Ok(status::of(&end))
}

fn finish(out: &mut impl Write, end: &End, vcpu: &VcpuFd, vm: &MappedVm) -> Result<()> {
    let state = match end {
        End::Halted => state::general(&vcpu.get_regs().ioctl("KVM_GET_REGS")?),
        other => {
            writeln!(out, "{}", status::text(other))?;
            state::describe(vcpu, &vm.memory)?
        }
    };
    out.write_all(state.as_bytes())?;
    Ok(())
}

/// Runs and prints exits. Nothing is at any port or address: reads give all ones.
fn execute(out: &mut impl Write, vcpu: &mut VcpuFd, limit: Duration) -> Result<End> {
    let page = RunPage::new(vcpu);
    let kicks = Kicks::new(page)?;
    Keys::default().listen(Some(limit))?;
    loop {
        if kicks.take() {
            if let Some(why) = stop() {
                return Ok(End::Stopped(why));
            }
        }
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                for value in data.chunks(page.io_size()) {
                    writeln!(out, "out  {port:#06x} {}", value_of(value))?;
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                data.fill(0xff);
                for value in data.chunks(page.io_size()) {
                    writeln!(out, "in   {port:#06x} {}", value_of(value))?;
                }
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                writeln!(out, "write {address:#x} {}", value_of(data))?;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                data.fill(0xff);
                writeln!(out, "read {address:#x} {}", value_of(data))?;
            }
            Ok(VcpuExit::Hlt) => {
                writeln!(out, "hlt")?;
                return Ok(End::Halted);
            }
            Ok(VcpuExit::Shutdown) => return Ok(End::TripleFault),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
            Ok(exit) => {
                let text = machine::describe(&exit);
                return Ok(End::Failed(
                    text.unwrap_or_else(|| machine::internal_error(page)),
                ));
            }
            Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => {}
            Err(e) => {
                return Err(Err::<(), errno::Error>(e)
                    .ioctl("KVM_RUN")
                    .unwrap_err()
                    .into())
            }
        }
    }
}

/// A little-endian value in hexadecimal, all of its digits.
fn value_of(bytes: &[u8]) -> String {
    let value = bytes
        .iter()
        .rev()
        .fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    format!("{value:#0width$x}", width = 2 + 2 * bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_width() {
        assert_eq!(value_of(&[0x34, 0x12]), "0x1234");
        assert_eq!(value_of(&[1, 0, 0, 0]), "0x00000001");
    }
}
