//! A role: what threads of one kind may do, as parts that roles share.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::allow::{Allow, Arg, Is};

/// Calls that belong together.
#[derive(Debug)]
pub struct Part {
    /// What they are for.
    pub name: &'static str,
    /// The calls.
    pub calls: &'static [Allow],
}

/// What threads of one kind may do.
#[derive(Debug)]
pub struct Role {
    /// What the threads are called in the table.
    pub name: &'static str,
    /// What they do.
    pub what: &'static str,
    /// What they may.
    pub parts: &'static [&'static Part],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Allowed,
    /// It fails with this error.
    Refused(i32),
    /// It ends the process: [`violation`](crate::violation).
    Ends,
}

impl Role {
    /// Its calls, part by part.
    pub fn calls(&self) -> impl Iterator<Item = &'static Allow> + use<> {
        self.parts.iter().flat_map(|part| part.calls)
    }

    /// What becomes of call `number` of the x86-64 ABI with `arguments`, made by process `process`.
    pub fn judge(&self, number: i64, arguments: &[u64; 6], process: u32) -> Verdict {
        let calls = || self.calls().filter(|allow| allow.number == number);
        if !calls().any(|allow| allow.allows(arguments, process)) {
            return Verdict::Ends;
        }
        calls().find_map(|allow| allow.refused).map_or(Verdict::Allowed, Verdict::Refused)
    }

    /// The filters for process `process`, all of which are to be in force: first what may be called at all,
    /// then what fails, one filter for each error.
    pub(crate) fn programs(&self, process: u32) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
        let mut rules = BTreeMap::<_, Vec<_>>::new();
        let mut anyhow: Vec<i64> = Vec::new();
        for allow in self.calls() {
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
        for allow in self.calls() {
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
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, otherwise, then, TargetArch::x86_64)?.try_into()
}

fn condition(arg: &Arg, process: u32) -> Result<SeccompCondition, seccompiler::BackendError> {
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
