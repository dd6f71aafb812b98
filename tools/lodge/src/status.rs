// SPDX-License-Identifier: GPL-2.0
//! The exit status, the same for `run` and `asm`.

use crate::machine::End;
use crate::sys::signals::Stop;

/// Set-up failed, or an ioctl did.
pub const ERROR: u8 = 1;
const TRIPLE_FAULT: u8 = 3;
const FAILED: u8 = 4;
const INTERRUPTED: u8 = 5;
const TIMED_OUT: u8 = 6;

/// For the help text; the numbers above are the same.
pub const HELP: &str = "Exit status:
  0  the guest ended by intent: it reset the machine, or halted with interrupts off
  1  lodge could not set up or go on: the message names the file, or the ioctl and its error
  2  wrong use of the command line
  3  triple fault: the vCPU's state is printed
  4  KVM gave up (internal error, failed entry, unknown exit): the vCPU's state is printed
  5  interrupted: Ctrl-A X, or SIGINT, SIGTERM or SIGHUP
  6  the time limit of --timeout has passed
A guest's kernel that panics with panic=-1 resets the machine too: look at what it prints.";

/// The number of an end.
pub fn of(end: &End) -> u8 {
    match end {
        End::Reset(_) | End::Halted => 0,
        End::TripleFault => TRIPLE_FAULT,
        End::Failed(_) => FAILED,
        End::Stopped(Stop::Interrupted) => INTERRUPTED,
        End::Stopped(Stop::TimedOut) => TIMED_OUT,
    }
}

/// An end in words.
pub fn text(end: &End) -> String {
    match end {
        End::Reset(reset) => format!("the guest reset the machine ({reset:?})"),
        End::Halted => "the guest halted".to_string(),
        End::TripleFault => "triple fault".to_string(),
        End::Failed(why) => why.clone(),
        End::Stopped(Stop::Interrupted) => "interrupted".to_string(),
        End::Stopped(Stop::TimedOut) => "the time limit has passed".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Reset;

    #[test]
    fn only_an_end_by_intent_is_a_success() {
        assert_eq!((of(&End::Reset(Reset::Keyboard)), of(&End::Halted)), (0, 0));
        let others = [
            End::TripleFault,
            End::Failed(String::new()),
            End::Stopped(Stop::Interrupted),
            End::Stopped(Stop::TimedOut),
        ];
        for (end, number) in others.iter().zip(3..) {
            assert_eq!(of(end), number);
            assert!(HELP.contains(&format!("\n  {number}  ")));
        }
    }
}
