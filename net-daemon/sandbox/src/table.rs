//! The tables as text and as JSON, for `--print-sandbox`.

use std::fmt;

use serde_json::{Value, json};

use crate::allow::{Allow, Arg, Class, Is};
use crate::role::{Part, Role};

/// The calls of each role of a program. The text has one line for each call.
#[derive(Clone, Copy, Debug)]
pub struct Table(pub &'static [&'static Role]);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, role) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            writeln!(f, "{}: {}", role.name, role.what)?;
            for part in role.parts {
                writeln!(f, "  {}", part.name)?;
                for allow in part.calls {
                    let class = match allow.class {
                        Class::Seen(test) => format!("seen in {test}"),
                        Class::Kept => "kept".to_owned(),
                    };
                    writeln!(f, "    {:<18} {:<24} {}: {}", allow.name, class, arguments(allow), allow.why)?;
                }
            }
        }
        Ok(())
    }
}

impl Table {
    /// Returns the table as JSON: roles with their parts and calls. A call has its name and number, its
    /// allowed arguments (all conditions in one set of `only` must hold; `value` `"process"` is the calling
    /// process's number), the error that it fails with, if any, the test that has seen it in use, if any, and
    /// its purpose.
    pub fn json(&self) -> Value {
        let role = |role: &&Role| {
            let parts: Vec<_> = role.parts.iter().map(|part| json_of(part)).collect();
            json!({ "role": role.name, "what": role.what, "parts": parts })
        };
        self.0.iter().map(role).collect()
    }
}

fn json_of(part: &Part) -> Value {
    let arg = |arg: &Arg| match arg.is {
        Is::Equal(value) => json!({ "argument": arg.index, "mask": u32::MAX, "value": value }),
        Is::Masked { mask, value } => json!({ "argument": arg.index, "mask": mask, "value": value }),
        Is::Null => json!({ "argument": arg.index, "mask": u64::MAX, "value": 0 }),
        Is::OwnProcess => json!({ "argument": arg.index, "mask": u32::MAX, "value": "process" }),
    };
    let call = |allow: &Allow| {
        let only = allow.only.iter().map(|all| all.iter().map(arg).collect::<Vec<_>>());
        json!({
            "name": allow.name,
            "number": allow.number,
            "only": only.collect::<Vec<_>>(),
            "fails": allow.refused,
            "seen": match allow.class { Class::Seen(test) => Some(test), Class::Kept => None },
            "why": allow.why,
        })
    };
    json!({ "part": part.name, "calls": part.calls.iter().map(call).collect::<Vec<_>>() })
}

/// Describes the allowed arguments.
fn arguments(allow: &Allow) -> String {
    if let Some(error) = allow.refused {
        return format!("fails with error {error}");
    }
    if allow.only.is_empty() {
        return "any arguments".to_owned();
    }
    let one = |arg: &Arg| match arg.is {
        Is::Equal(value) => format!("{} = {value:#x}", arg.index),
        Is::Masked { mask, value } => format!("{} & {mask:#x} = {value:#x}", arg.index),
        Is::Null => format!("{} = null", arg.index),
        Is::OwnProcess => format!("{} = this process", arg.index),
    };
    let all = |all: &&[_]| all.iter().map(one).collect::<Vec<_>>().join(" and ");
    format!("argument {}", allow.only.iter().map(all).collect::<Vec<_>>().join(", or "))
}
