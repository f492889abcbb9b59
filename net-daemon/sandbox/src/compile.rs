//! Compiles tables to filters when a program is built. A program then has nothing to compile at its start,
//! and all of its processes on a host share the pages with the filters.
//!
//! A program's build script calls this, and the program includes the result as its
//! [`Sandbox`](crate::enter::Sandbox).

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, iter};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::allow::{Arg, Is};
use crate::role::Role;
use crate::table::Table;

/// Mask of the class of a classic BPF instruction (`linux/bpf_common.h`).
const CLASS: u16 = 0x07;
/// Class of jumps.
const BRANCH: u16 = 0x05;
/// Class of returns.
const RETURN: u16 = 0x06;
/// Unconditional jump.
const JUMP: u16 = 0x05;

/// Writes the filters of `table` to `sandbox.rs` in the build's output directory, as an expression.
///
/// # Errors
///
/// A table cannot be compiled, which is a fault of the table, or the file cannot be written.
pub fn write(table: &Table) -> Result<(), Box<dyn Error>> {
    let mut text = String::from("::volt_sandbox::enter::Sandbox(&[\n");
    for role in table.0 {
        write_role(&mut text, role)
            .map_err(|error| format!("cannot compile the system calls of role '{}': {error}", role.name))?;
    }
    text.push_str("])\n");
    let directory = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: only a build script writes filters")?;
    Ok(fs::write(Path::new(&directory).join("sandbox.rs"), text)?)
}

fn write_role(text: &mut String, role: &Role) -> Result<(), Box<dyn Error>> {
    writeln!(text, "(\"{}\", &[", role.name)?;
    // The filters of two processes differ only in the process numbers.
    for (program, other) in iter::zip(tight(role, 0)?, tight(role, u32::MAX)?) {
        writeln!(text, "::volt_sandbox::filter::Filter {{ instructions: &[")?;
        for op in &program {
            writeln!(
                text,
                "::volt_sandbox::filter::Instruction {{ code: {}, jt: {}, jf: {}, k: {} }},",
                op.code, op.jt, op.jf, op.k
            )?;
        }
        let differs = |(at, (one, other))| (one != other).then_some(at);
        let of_process: Vec<usize> = iter::zip(&program, &other).enumerate().filter_map(differs).collect();
        writeln!(text, "], of_process: &{of_process:?} }},")?;
    }
    writeln!(text, "]),")?;
    Ok(())
}

/// Like [`programs`], but without instructions that decide nothing.
fn tight(role: &Role, process: u32) -> Result<Vec<BpfProgram>, BackendError> {
    let programs = programs(role, process)?.into_iter();
    Ok(programs.map(|program| tighten(&program).unwrap_or(program)).collect())
}

/// Returns the filters of `role` for process `process`, which apply together: first that of all allowed
/// calls, then one for each error with which calls fail.
fn programs(role: &Role, process: u32) -> Result<Vec<BpfProgram>, BackendError> {
    let mut rules = BTreeMap::<_, Vec<_>>::new();
    let mut anyhow: Vec<i64> = Vec::new();
    for allow in role.calls() {
        let alternatives = rules.entry(allow.number).or_default();
        if allow.only.is_empty() {
            anyhow.push(allow.number);
        }
        for all in allow.only {
            let conditions = all.iter().map(|one| condition(one, process)).collect::<Result<_, _>>()?;
            alternatives.push(SeccompRule::new(conditions)?);
        }
    }
    // An empty list of rules allows any arguments.
    anyhow.iter().for_each(|number| drop(rules.insert(*number, Vec::new())));
    let mut programs = vec![program(rules, SeccompAction::Trap, SeccompAction::Allow)?];
    let mut refused = BTreeMap::<i32, BTreeMap<_, _>>::new();
    for allow in role.calls() {
        if let Some(error) = allow.refused {
            refused.entry(error).or_default().insert(allow.number, Vec::new());
        }
    }
    for (error, calls) in refused {
        let fails = SeccompAction::Errno(error.unsigned_abs());
        programs.push(program(calls, SeccompAction::Allow, fails)?);
    }
    Ok(programs)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, then, TargetArch::x86_64)?.try_into()
}

/// Removes jumps to jumps, about half of the program. When a filter is installed, the kernel runs it for
/// every system call number, so its length costs time at the start. Returns `None` if a jump would be too
/// long.
fn tighten(program: &[sock_filter]) -> Option<BpfProgram> {
    let end = |mut at: usize| {
        while program[at].code == JUMP {
            at += 1 + program[at].k as usize;
        }
        at
    };
    let next = |at: usize| match program[at].code & CLASS {
        RETURN => Vec::new(),
        BRANCH => [program[at].jt, program[at].jf].map(|jump| end(at + 1 + usize::from(jump))).to_vec(),
        _ => vec![end(at + 1)],
    };
    // All jumps go forward, so one pass finds every reachable instruction.
    let mut reached = BTreeSet::from([end(0)]);
    for at in 0..program.len() {
        if reached.contains(&at) {
            reached.extend(next(at));
        }
    }
    let places: BTreeMap<usize, usize> = reached.iter().zip(0..).map(|(at, place)| (*at, place)).collect();
    let placed = |(at, place): (&usize, &usize)| {
        let jumps: Vec<_> = next(*at).iter().map(|target| places[target] - place - 1).collect();
        match jumps[..] {
            [jt, jf] => {
                Some(sock_filter { jt: jt.try_into().ok()?, jf: jf.try_into().ok()?, ..program[*at].clone() })
            }
            [over] if over > 0 => None,
            _ => Some(program[*at].clone()),
        }
    };
    places.iter().map(placed).collect()
}

fn condition(arg: &Arg, process: u32) -> Result<SeccompCondition, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let (len, compare, value) = match arg.is {
        Is::Equal(value) => (Dword, Eq, value),
        Is::Masked { mask, value } => (Dword, MaskedEq(mask.into()), value),
        Is::Null => (Qword, Eq, 0),
        Is::OwnProcess => (Dword, Eq, process),
    };
    SeccompCondition::new(arg.index, len, compare, value.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allow::{Allow, equal, masked};
    use crate::parts::{ABORT, FRAMES, MEMORY, OWN, THREADS};
    use crate::role::Part;

    static OWN_CALLS: Part = Part {
        name: "own",
        calls: &[
            Allow::kept("ioctl", libc::SYS_ioctl, "two of one argument")
                .only(&[&[equal(1, 7)], &[equal(1, 9)]]),
            Allow::kept("kill", libc::SYS_kill, "two arguments").only(&[&[OWN, masked(1, 0xf0, 0x10)]]),
            Allow::kept("open", libc::SYS_open, "refused").refused(libc::EACCES),
        ],
    };
    static ROLE: Role =
        Role { name: "role", what: "tests", parts: &[&FRAMES, &MEMORY, &THREADS, &ABORT, &OWN_CALLS] };

    /// Runs `program` for a system call, like the kernel.
    fn run(program: &[sock_filter], number: u32, arguments: [u64; 6]) -> u32 {
        const X86_64: u32 = 0xc000_003e;
        let mut data = vec![number, X86_64, 0, 0];
        data.extend(arguments.iter().flat_map(|argument| [*argument as u32, (argument >> 32) as u32]));
        let (mut at, mut value) = (0, 0);
        loop {
            let op = &program[at];
            at += 1;
            match op.code {
                0x20 => value = data[op.k as usize / 4],
                0x54 => value &= op.k,
                JUMP => at += op.k as usize,
                0x15 => at += usize::from(if value == op.k { op.jt } else { op.jf }),
                RETURN => return op.k,
                code => panic!("code {code:#x}"),
            }
        }
    }

    #[test]
    fn a_tight_program_decides_as_before_in_half_the_instructions() {
        let values = [0, 1, 2, 7, 9, 0x10, 0x12, 4242, u64::from(u32::MAX), u64::MAX];
        for (program, tight) in iter::zip(programs(&ROLE, 4242).unwrap(), tight(&ROLE, 4242).unwrap()) {
            assert!(tight.len() * 4 < program.len() * 3, "{} of {}", tight.len(), program.len());
            for number in 0..512 {
                for (first, second) in values.iter().flat_map(|first| values.map(|second| (*first, second))) {
                    let arguments = [first, second, first, second, first, second];
                    let verdicts = [&program, &tight].map(|program| run(program, number, arguments));
                    assert_eq!(verdicts[0], verdicts[1], "call {number} with {arguments:?}");
                }
            }
        }
    }
}
