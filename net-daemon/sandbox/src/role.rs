//! Roles: the calls that threads of one kind may make, in parts that roles share.

use crate::allow::Allow;

/// A group of calls with one purpose.
#[derive(Debug)]
pub struct Part {
    /// Their purpose.
    pub name: &'static str,
    /// The calls.
    pub calls: &'static [Allow],
}

/// The calls that threads of one kind may make.
#[derive(Debug)]
pub struct Role {
    /// Name of the threads in the table.
    pub name: &'static str,
    /// Their task.
    pub what: &'static str,
    /// Their calls.
    pub parts: &'static [&'static Part],
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The call is carried out.
    Allowed,
    /// The call fails with this error.
    Refused(i32),
    /// The call ends the process: see [`violation`](crate::violation).
    Ends,
}

impl Role {
    /// Returns its calls, part by part.
    pub fn calls(&self) -> impl Iterator<Item = &'static Allow> + use<> {
        self.parts.iter().flat_map(|part| part.calls)
    }

    /// Returns the result of call `number` of the x86-64 ABI with `arguments`, made by process `process`.
    pub fn judge(&self, number: i64, arguments: &[u64; 6], process: u32) -> Verdict {
        let calls = || self.calls().filter(|allow| allow.number == number);
        if !calls().any(|allow| allow.allows(arguments, process)) {
            return Verdict::Ends;
        }
        calls().find_map(|allow| allow.refused).map_or(Verdict::Allowed, Verdict::Refused)
    }
}
