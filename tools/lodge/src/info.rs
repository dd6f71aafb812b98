// SPDX-License-Identifier: GPL-2.0
//! `lodge info`: what a device offers.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use kvm_bindings::MsrList;
use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::errno;

use crate::caps::CAPABILITIES;
use crate::error::Context;
use crate::{features, vm};

/// Print what a KVM device offers
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// The KVM device
    #[arg(long, value_name = "FILE", default_value = "/dev/kvm")]
    device: PathBuf,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

struct Info {
    device: String,
    api_version: i32,
    vendor: String,
    mmap_size: usize,
    cpuid_entries: usize,
    /// Nothing if the device does not have the ioctl.
    msrs: Option<usize>,
    feature_msrs: Option<usize>,
    capabilities: Vec<(&'static str, u32, i32)>,
    features: Vec<(String, Vec<String>)>,
}

/// Prints the table and returns the exit status.
pub fn run(args: &InfoArgs) -> Result<u8> {
    let kvm = vm::open(&args.device)?;
    let info = collect(&kvm, args.device.display().to_string())?;
    let text = if args.json { json(&info) } else { table(&info) };
    io::stdout()
        .write_all(text.as_bytes())
        .context("standard output")?;
    Ok(0)
}

fn collect(kvm: &Kvm, device: String) -> Result<Info> {
    let cpuid = vm::supported_cpuid(kvm)?;
    let feature_msrs = match kvm.check_extension(Cap::GetMsrFeatures) {
        true => count(
            kvm.get_msr_feature_index_list(),
            "KVM_GET_MSR_FEATURE_INDEX_LIST",
        )?,
        false => None,
    };
    Ok(Info {
        device,
        api_version: kvm.get_api_version(),
        vendor: features::vendor(cpuid.as_slice()).unwrap_or_else(|| "unknown".to_string()),
        mmap_size: kvm.get_vcpu_mmap_size().ioctl("KVM_GET_VCPU_MMAP_SIZE")?,
        cpuid_entries: cpuid.as_slice().len(),
        msrs: count(kvm.get_msr_index_list(), "KVM_GET_MSR_INDEX_LIST")?,
        feature_msrs,
        capabilities: CAPABILITIES
            .iter()
            .map(|(name, number)| (*name, *number, kvm.check_extension_raw(u64::from(*number))))
            .collect(),
        features: features::list(cpuid.as_slice()),
    })
}

/// The length of a list, or nothing if the device does not have the ioctl.
fn count(list: Result<MsrList, errno::Error>, name: &'static str) -> Result<Option<usize>> {
    match list {
        Ok(list) => Ok(Some(list.as_slice().len())),
        Err(e) if [libc::ENOTTY, libc::EINVAL].contains(&e.errno()) => Ok(None),
        Err(e) => Err(Err::<(), _>(e).ioctl(name).unwrap_err().into()),
    }
}

fn number(value: Option<usize>) -> String {
    value.map_or("not offered".to_string(), |n| n.to_string())
}

fn table(info: &Info) -> String {
    let mut text = String::new();
    for (name, value) in [
        ("device", info.device.clone()),
        ("API version", info.api_version.to_string()),
        ("CPU vendor", info.vendor.clone()),
        ("vCPU mapping", format!("{} bytes", info.mmap_size)),
        ("CPUID entries", info.cpuid_entries.to_string()),
        ("MSRs", number(info.msrs)),
        ("feature MSRs", number(info.feature_msrs)),
    ] {
        let _ = writeln!(text, "{name:<14}{value}");
    }
    let _ = writeln!(text, "\n{:>3}  {:<32}value", "no.", "capability");
    for (name, number, value) in &info.capabilities {
        let value = if *value == 0 {
            "-".to_string()
        } else {
            value.to_string()
        };
        let _ = writeln!(text, "{number:>3}  {name:<32}{value}");
    }
    let _ = writeln!(text, "\n{:<18}features that a guest can have", "CPUID");
    for (word, bits) in &info.features {
        let _ = writeln!(text, "{word:<18}{}", bits.join(" "));
    }
    text
}

/// A JSON string. What it is used for has no control characters but those that a path may have.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn json(info: &Info) -> String {
    let null = |value: Option<usize>| value.map_or("null".to_string(), |n| n.to_string());
    let capabilities: Vec<String> = info
        .capabilities
        .iter()
        .map(|(name, _, value)| format!("    {}: {value}", quoted(name)))
        .collect();
    let features: Vec<String> = info
        .features
        .iter()
        .map(|(word, bits)| {
            let bits: Vec<String> = bits.iter().map(|bit| quoted(bit)).collect();
            format!("    {}: [{}]", quoted(word), bits.join(", "))
        })
        .collect();
    format!(
        "{{\n  \"device\": {},\n  \"api_version\": {},\n  \"vendor\": {},\n  \"vcpu_mmap_size\": {},\n  \
         \"cpuid_entries\": {},\n  \"msrs\": {},\n  \"feature_msrs\": {},\n  \"capabilities\": {{\n{}\n  }},\n  \
         \"features\": {{\n{}\n  }}\n}}\n",
        quoted(&info.device),
        info.api_version,
        quoted(&info.vendor),
        info.mmap_size,
        info.cpuid_entries,
        null(info.msrs),
        null(info.feature_msrs),
        capabilities.join(",\n"),
        features.join(",\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Info {
        Info {
            device: "/dev/\"kvm\\".to_string(),
            api_version: 12,
            vendor: "GenuineIntel".to_string(),
            mmap_size: 12288,
            cpuid_entries: 2,
            msrs: Some(3),
            feature_msrs: None,
            capabilities: vec![("IRQCHIP", 0, 0), ("USER_MEMORY", 3, 1)],
            features: vec![(
                "0x1.edx".to_string(),
                vec!["fpu".to_string(), "tsc".to_string()],
            )],
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_fact() {
        let text = table(&sample());
        for line in [
            "API version   12",
            "feature MSRs  not offered",
            "  0  IRQCHIP                         -",
            "  3  USER_MEMORY                     1",
            "0x1.edx           fpu tsc",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn json_is_json() {
        let text = json(&sample());
        assert!(text.contains("\"device\": \"/dev/\\\"kvm\\\\\""), "{text}");
        assert!(text.contains("\"feature_msrs\": null"));
        assert!(text.contains("    \"IRQCHIP\": 0,\n    \"USER_MEMORY\": 1\n  }"));
        assert!(text.contains("\"0x1.edx\": [\"fpu\", \"tsc\"]"));
        assert_eq!(quoted("a\n"), "\"a\\u000a\"");
    }
}
