// SPDX-License-Identifier: GPL-2.0
//! `lodge`, a small virtual machine monitor: boots a Linux guest on a KVM device.
#![deny(unsafe_code)]

mod asm;
mod boot;
mod caps;
mod cpuid;
mod devices;
mod error;
mod features;
mod info;
mod input;
mod machine;
mod memory;
mod narrow;
mod run;
mod state;
mod status;
mod sys;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A small virtual machine monitor: boots a Linux guest on a KVM device
#[derive(Parser)]
#[command(version, after_help = status::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a Linux kernel, its serial console on standard input and output; Ctrl-A X ends it
    #[command(after_help = status::HELP)]
    Run(run::RunArgs),
    /// Print what a KVM device offers
    Info(info::InfoArgs),
    /// Run a flat binary and print its exits and final registers
    #[command(after_help = status::HELP)]
    Asm(asm::AsmArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Asm(args) => asm::run(&args),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("lodge: error: {error:#}");
            ExitCode::from(status::ERROR)
        }
    }
}
