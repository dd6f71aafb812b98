// SPDX-License-Identifier: GPL-2.0
//! String instructions and their repetitions, on memory and on ports.
use super::*;

#[test]
fn repeated_strings() {
    // rep movsb of 10 bytes
    let gpr = [(RCX, 10), (RSI, BASE), (RDI, BASE + 0x200)];
    let (end, regs, m) = long(&[0xf3, 0xa4], &gpr);
    assert_eq!((end, regs.get(RCX), regs.get(RSI)), (DONE, 0, BASE + 10));
    assert_eq!(m.ram[0x200..0x20a], m.ram[..10]);
    // None at all
    let (end, regs, m) = long(&[0xf3, 0xa4], &[(RSI, 1 << 60)]);
    assert_eq!((end, regs.rip, m.trace.len()), (DONE, 0x1002, 0));
    // A long one is interrupted with its progress committed, and can go on.
    let mut regs = start(&[(RCX, 1000), (RDI, BASE), (RAX, 0x5a)]);
    let (mut m, mut rounds) = (Machine::new(), 0);
    loop {
        let mut job = Job::new(&[0xf3, 0xaa], &regs, &flat(CpuMode::Bits64)).unwrap();
        let end = m.run(&mut job);
        regs = *job.regs();
        rounds += 1;
        match end {
            Need::Done(Done { repeat: true, .. }) => assert_eq!(regs.rip, 0x1000),
            _ => break assert_eq!(end, DONE),
        }
    }
    assert_eq!((rounds, regs.get(RCX), regs.rflags & rflags::RF), (4, 0, 0));
    assert!(m.ram[..1000].iter().all(|&b| b == 0x5a) && m.ram[1000] != 0x5a);
    // A fault in the middle keeps what was done.
    let (end, regs, _) = long(&[0xf3, 0xaa], &[(RCX, 100), (RDI, MMIO + 0xffe)]);
    assert_eq!(end, Need::Fault(Exception::page_fault(2, MMIO + 0x1000)));
    assert_eq!((regs.get(RCX), regs.rip), (98, 0x1000));
    // repne scasb stops at the byte; repe cmpsb at the difference
    let wanted = u64::from(Machine::new().ram[20]);
    let (_, regs, _) = long(&[0xf2, 0xae], &[(RCX, 100), (RDI, BASE), (RAX, wanted)]);
    assert_eq!((regs.get(RCX), regs.get(RDI)), (79, BASE + 21));
    let (_, regs, _) = long(&[0xf3, 0xa6], &[(RCX, 100), (RDI, BASE), (RSI, BASE + 1)]);
    assert_eq!(regs.get(RCX), 99);
    // Single-stepping: one iteration a time
    let mut regs = start(&[(RCX, 3), (RDI, BASE)]);
    regs.rflags |= rflags::TF;
    let mut job = Job::new(&[0xf3, 0xaa], &regs, &flat(CpuMode::Bits64)).unwrap();
    assert!(matches!(
        m.run(&mut job),
        Need::Done(Done {
            repeat: true,
            trap: true,
            ..
        })
    ));
    assert_eq!(job.regs().get(RCX), 2);
    // rep insb, too
    let mut regs = start(&[(RCX, 3), (RDX, 0x1f0), (RDI, BASE)]);
    regs.rflags |= rflags::TF;
    let mut job = Job::new(&[0xf3, 0x6c], &regs, &flat(CpuMode::Bits64)).unwrap();
    let end = m.run(&mut job);
    assert!(
        matches!(end, Need::Done(d) if d.repeat && d.trap),
        "{end:?}"
    );
    assert_eq!(job.regs().get(RCX), 2);
}

/// As [`long`], executing the instruction again as long as it says that it is to be repeated.
fn to_the_end(code: &[u8], set: &[(u8, u64)]) -> (Need, Regs, Machine) {
    let (mut regs, mut m) = (start(set), Machine::new());
    loop {
        let mut job = Job::new(code, &regs, &flat(CpuMode::Bits64)).unwrap();
        let end = m.run(&mut job);
        regs = *job.regs();
        if !matches!(end, Need::Done(Done { repeat: true, .. })) {
            return (end, regs, m);
        }
    }
}

#[test]
fn string_ports_go_in_batches() {
    // rep insb of 5000 bytes: to the end of the page, then whole pages, each batch an execution of its own
    let (end, regs, m) = to_the_end(
        &[0xf3, 0x6c],
        &[(RCX, 5000), (RDX, 0x1f0), (RDI, BASE + 0xf00)],
    );
    assert_eq!(
        (end, regs.get(RCX), regs.get(RDI)),
        (DONE, 0, BASE + 0xf00 + 5000)
    );
    let counts: Vec<u16> = m
        .trace
        .iter()
        .filter_map(|need| {
            if let Need::In { count, .. } = need {
                Some(*count)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(counts, [256, 4096, 648]);
    assert_eq!(m.ram[0xf00], 0xa0);
    // To MMIO one by one, through the value
    let (_, _, m) = to_the_end(&[0xf3, 0x6d], &[(RCX, 2), (RDX, 0x1f0), (RDI, MMIO)]);
    assert!(m.trace.contains(&Need::Write {
        at: MMIO + 4,
        len: 4,
        value: 0x4433_2211
    }));
    // The destination faults before the port is read.
    let (end, _, m) = long(
        &[0xf3, 0x6d],
        &[(RCX, 2), (RDX, 0x1f0), (RDI, MMIO + 0x1000)],
    );
    assert!(matches!(end, Need::Fault(_)) && m.trace.len() == 1);
    // rep outsw of 3; downwards one by one
    let (_, _, m) = long(&[0xf3, 0x66, 0x6f], &[(RCX, 3), (RDX, 0x80), (RSI, BASE)]);
    assert!(m.trace.contains(&Need::Out {
        port: 0x80,
        size: 2,
        count: 3,
        value: 0
    }));
    assert_eq!(m.pio[..6], m.ram[..6]);
    let mut regs = start(&[(RCX, 3), (RDX, 0x80), (RSI, BASE + 8)]);
    regs.rflags |= rflags::DF;
    let mut m = Machine::new();
    for _ in 0..3 {
        let mut job = Job::new(&[0xf3, 0x6e], &regs, &flat(CpuMode::Bits64)).unwrap();
        m.run(&mut job);
        regs = *job.regs();
    }
    assert_eq!((regs.get(RSI), regs.get(RCX)), (BASE + 5, 0));
    let outs: Vec<_> = m
        .trace
        .iter()
        .filter(|n| matches!(n, Need::Out { count: 1, .. }))
        .collect();
    assert_eq!(outs.len(), 3);
}
