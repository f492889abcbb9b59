//! A role: what threads of one kind may do, as parts that roles share.

use crate::allow::Allow;

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
}
