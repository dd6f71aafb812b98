// SPDX-License-Identifier: GPL-2.0
//! `lodge run`: boots a kernel.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use crate::boot::load::{self, Loaded, Protocol};
use crate::boot::params::{self, Span};
use crate::boot::{cpu, layout};
use crate::error::Context;
use crate::input::Keys;
use crate::machine::{End, Machine};
use crate::memory::parse_size;
use crate::narrow::{self, Cpu};
use crate::state;
use crate::status;
use crate::sys::kvm::MappedVm;
use crate::sys::terminal::RawMode;
use crate::vm;

/// The command line for a guest whose user gave none: its console, a way to end without ACPI, and no self-tests of the
/// kernel's cryptography, which are a third of the time that a stock kernel takes to boot.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 cryptomgr.notests";
/// Bit 11 of IA32_APIC_BASE: the local APIC is on. There is none.
const APIC_BASE_ENABLE: u64 = 1 << 11;

/// Boot a Linux kernel
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The kernel: a bzImage (vmlinuz) or an ELF file (vmlinux)
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_CMDLINE)]
    cmdline: String,
    /// The size of the guest's memory
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    memory: u64,
    /// What of this machine's CPU the guest sees: `host`, `baseline`, or features beside the baseline's by their names in
    /// /proc/cpuinfo, with commas; `host,-avx` takes away
    #[arg(long, value_name = "CPU", default_value = "host", value_parser = narrow::parse, allow_hyphen_values = true)]
    cpu: Cpu,
    /// The KVM device
    #[arg(long, value_name = "FILE", default_value = "/dev/kvm")]
    device: PathBuf,
    /// End the guest after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// Boots the kernel and returns the exit status.
pub fn run(args: &RunArgs) -> Result<u8> {
    let kvm = vm::open(&args.device)?;
    let vm = vm::create(&kvm, args.memory)?;
    let loaded = load::kernel(&vm.memory, &args.kernel)?;
    let initrd = load::initrd(&vm.memory, args.memory, &loaded, args.initrd.as_deref())?;
    let vcpu = vm::create_vcpu(&kvm, &vm, &args.cpu)?;
    let cmdline = complete_cmdline(&args.cmdline, vm::tsc_khz(&kvm, &vcpu));
    load::cmdline(&vm.memory, &loaded, &cmdline)?;
    set_entry(&vcpu, &vm.memory, args.memory, &loaded, initrd)?;

    let keys = Keys::default();
    let mut machine = Machine::new(vcpu, keys.clone())?;
    let began = Instant::now();
    let end = {
        let _raw = RawMode::enter();
        keys.listen(args.timeout.map(Duration::from_secs))?;
        machine.run()?
    };
    report(&end, &machine, &vm, began.elapsed());
    Ok(status::of(&end))
}

/// Adds what the guest cannot find out by itself: how fast its time stamp counter is. A kernel measures that against the
/// timer, which takes shorter accesses than those that leave the guest; and it checks the counter against interrupts of
/// the timer, of which a busy host loses some.
fn complete_cmdline(text: &str, tsc_khz: Option<u32>) -> String {
    let mut text = text.to_string();
    if let Some(khz) = tsc_khz {
        for (parameter, value) in [
            ("tsc_early_khz=", khz.to_string()),
            ("tsc=", "reliable".into()),
        ] {
            if !text
                .split_whitespace()
                .any(|word| word.starts_with(parameter))
            {
                text.push_str(&format!(" {parameter}{value}"));
            }
        }
    }
    text
}

/// Tells the kernel what it needs to know, and points the vCPU at it.
fn set_entry(
    vcpu: &VcpuFd,
    memory: &GuestMemoryMmap,
    size: u64,
    loaded: &Loaded,
    initrd: Span,
) -> Result<()> {
    let mut sregs = vcpu.get_sregs().ioctl("KVM_GET_SREGS")?;
    cpu::set_segments(memory, &mut sregs, loaded.mode)?;
    sregs.apic_base &= !APIC_BASE_ENABLE;
    vcpu.set_sregs(&sregs).ioctl("KVM_SET_SREGS")?;
    let mut regs = cpu::registers(loaded.entry, layout::STACK);
    match loaded.protocol {
        Protocol::Linux(header) => {
            params::write_zero_page(memory, size, header, initrd)?;
            regs.rsi = layout::ZERO_PAGE;
        }
        Protocol::Pvh => {
            params::write_pvh_info(memory, size, initrd)?;
            regs.rbx = layout::PVH_INFO;
        }
    }
    vcpu.set_regs(&regs).ioctl("KVM_SET_REGS")?;
    Ok(())
}

/// Says on standard error how the run ended, with the vCPU's state if it ended badly.
fn report(end: &End, machine: &Machine, vm: &MappedVm, after: Duration) {
    let mut text = format!(
        "lodge: {} after {:.1} s\n",
        status::text(end),
        after.as_secs_f64()
    );
    if *end == End::TripleFault {
        text.push_str(
            "lodge: this may be the state after a reset: on AMD a triple fault leaves no other\n",
        );
    }
    if matches!(end, End::TripleFault | End::Failed(_)) {
        match state::describe(&machine.vcpu, &vm.memory) {
            Ok(state) => text.push_str(&state),
            Err(error) => {
                text.push_str(&format!("lodge: cannot read the vCPU's state: {error}\n"));
            }
        }
    }
    // The exit status says how it ended, even if nobody reads the words.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_gets_the_frequency_unless_it_has_one() {
        let full = complete_cmdline("quiet", Some(2_500_000));
        assert_eq!(full, "quiet tsc_early_khz=2500000 tsc=reliable");
        assert_eq!(complete_cmdline(&full, Some(1)), full);
        assert_eq!(
            complete_cmdline("tsc=unstable", Some(7)),
            "tsc=unstable tsc_early_khz=7"
        );
        assert_eq!(complete_cmdline("quiet", None), "quiet");
    }
}
