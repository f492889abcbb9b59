//! Tables become filters while a program is built: a program that starts a hundred times on a host has
//! nothing to compile then, and its filters are in pages that all of them share.
//!
//! Called by a program's build script, whose product the program includes as its
//! [`Sandbox`](crate::enter::Sandbox).

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, iter};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::allow::{Arg, Is};
use crate::role::Role;
use crate::table::Table;

/// Writes the filters of `table` to `sandbox.rs` in the build's output directory, as an expression.
///
/// # Errors
///
/// When a table makes no filter, which is a fault of the table, or the file cannot be written.
pub fn write(table: &Table) -> Result<(), Box<dyn Error>> {
    let mut text = String::from("::volt_sandbox::enter::Sandbox(&[\n");
    for role in table.0 {
        write_role(&mut text, role)
            .map_err(|error| format!("the system calls of role '{}' make no filter: {error}", role.name))?;
    }
    text.push_str("])\n");
    let directory = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: only a build script writes filters")?;
    Ok(fs::write(Path::new(&directory).join("sandbox.rs"), text)?)
}

fn write_role(text: &mut String, role: &Role) -> Result<(), Box<dyn Error>> {
    writeln!(text, "(\"{}\", &[", role.name)?;
    // Whatever differs between the filters of two processes is the process.
    for (program, other) in iter::zip(programs(role, 0)?, programs(role, u32::MAX)?) {
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

/// The filters of `role` for process `process`, all of which are to be in force: first what may be called at
/// all, then what fails, one filter for each error.
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
    // No rules are any arguments.
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
