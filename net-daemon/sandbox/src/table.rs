//! The tables as text and as JSON, for `--print-sandbox`.

use std::fmt::{self, Write};

use serde_json::{Value, json};

use crate::allow::{Allow, Arg, Class, Is};
use crate::role::{Part, Role};

/// Writes what each role may do: a line a call.
///
/// # Errors
///
/// The writer's.
pub fn write(to: &mut impl Write, roles: &[&Role]) -> fmt::Result {
    for (at, role) in roles.iter().enumerate() {
        if at > 0 {
            writeln!(to)?;
        }
        writeln!(to, "{}: {}", role.name, role.what)?;
        for part in role.parts {
            writeln!(to, "  {}", part.name)?;
            for allow in part.calls {
                let class = match allow.class {
                    Class::Seen(test) => format!("seen in {test}"),
                    Class::Kept => "kept".to_owned(),
                };
                writeln!(to, "    {:<18} {:<24} {}: {}", allow.name, class, arguments(allow), allow.why)?;
            }
        }
    }
    Ok(())
}

/// What each role may do, as JSON: roles with their parts, and of each call name, number, what its arguments
/// must be (all of one of `only`; `value` `"process"` is the number of the process that asks), the error that
/// it fails with, if any, the test that has seen it in use, if one has, and what it is for.
pub fn json(roles: &[&Role]) -> Value {
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
    let part =
        |part: &&Part| json!({ "part": part.name, "calls": part.calls.iter().map(call).collect::<Vec<_>>() });
    let role = |role: &&Role| {
        let parts: Vec<_> = role.parts.iter().map(part).collect();
        json!({ "role": role.name, "what": role.what, "parts": parts })
    };
    roles.iter().map(role).collect::<Vec<_>>().into()
}

/// What is asked of the arguments.
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
