//! The filters in force, compared with the published table.

use libc::sock_filter;
use serde_json::Value;

use super::Thread;
use super::call::{Call, Fate, I386, X32, X86_64};
use super::table::Table;
use crate::trace::Traced;

/// Beyond the last system call number of any kernel.
const NUMBERS: u32 = 600;

/// Returns the fate of a call under several filters: the strictest of their results.
fn fate(filters: &[Vec<sock_filter>], call: &Call) -> Fate {
    filters.iter().map(|filter| said(run(filter, call))).min().unwrap_or(Fate::Made)
}

fn said(action: u32) -> Fate {
    match action & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW => Fate::Made,
        libc::SECCOMP_RET_ERRNO => Fate::Fails(action & libc::SECCOMP_RET_DATA),
        libc::SECCOMP_RET_TRAP => Fate::Trapped,
        libc::SECCOMP_RET_KILL_PROCESS => Fate::Kills,
        other => panic!("action {other:#x}"),
    }
}

/// Runs a filter. Supports the instructions of classic BPF that the filters use, and panics at any other.
fn run(filter: &[sock_filter], call: &Call) -> u32 {
    let mut data = Vec::new();
    data.extend(call.number.to_le_bytes());
    data.extend(call.arch.to_le_bytes());
    data.extend([0; 8]);
    data.extend(call.arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let sock_filter { code, jt, jf, k } = filter[at];
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        at += 1;
        match code {
            // BPF_LD | BPF_W | BPF_ABS
            0x20 => {
                let from = k as usize;
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().expect("four bytes"));
            }
            // BPF_ALU | BPF_AND | BPF_K
            0x54 => accumulator &= k,
            // BPF_JMP: JA, JEQ, JGT, JGE with a constant
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            // BPF_RET | BPF_K
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// Compares the filters of a running thread with the strictest table entry of `roles`. Each role comes with
/// the process whose thread has it.
///
/// # Panics
/// If they differ, or the thread cannot be traced.
#[track_caller]
pub fn assert_as_published(table: &Table, thread: &Thread, roles: &[(&str, u32)]) {
    let traced = Traced::seize(thread.id).expect("it can be traced");
    let filters: Vec<_> = (0..).map_while(|index| traced.filter(index).expect("it can be read")).collect();
    traced.detach().expect("it stood still");
    let lists: Vec<_> = roles.iter().map(|(role, process)| (table.list(role), *process)).collect();
    let mut made = 0;
    for call in calls(table, thread.process) {
        let published = lists.iter().map(|(list, process)| list.fate(&call, *process));
        let published = published.min().expect("a role");
        assert_eq!(fate(&filters, &call), published, "{roles:?}: {call:x?}");
        made += usize::from(published == Fate::Made);
    }
    assert!(made > 20, "{roles:?}: too few calls are allowed");
}

/// Returns every number of every ABI, and each call of a table with accepted arguments and with others.
fn calls(table: &Table, process: u32) -> Vec<Call> {
    let mut calls = Vec::new();
    for number in 0..NUMBERS {
        for (arch, number) in [(X86_64, number), (X86_64, number | X32), (I386, number)] {
            for argument in [0, u64::MAX, process.into()] {
                calls.push(Call { number, arch, arguments: [argument; 6] });
            }
        }
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for line in table.roles().into_iter().flat_map(|role| table.calls(role)) {
        let number = line["number"].as_u64().expect("a number") as u32;
        for all in list(&line["only"]) {
            let mut together = [0; 6];
            for one in list(&all) {
                let at = one["argument"].as_u64().expect("a number") as usize;
                let value = one["value"].as_u64().unwrap_or(process.into());
                together[at] = value;
                for (value, rest) in [(value, u64::MAX), (!value, 0), (value ^ 1, 0), (value | 1 << 40, 0)] {
                    let mut arguments = [rest; 6];
                    arguments[at] = value;
                    calls.push(Call { number, arch: X86_64, arguments });
                }
            }
            calls.push(Call { number, arch: X86_64, arguments: together });
        }
    }
    calls
}
