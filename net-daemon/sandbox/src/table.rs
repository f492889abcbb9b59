//! The tables as text, for `--print-sandbox`.

use std::fmt::{self, Write};

use crate::allow::{Allow, Class, Is};
use crate::role::Role;

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

/// What is asked of the arguments.
fn arguments(allow: &Allow) -> String {
    if let Some(error) = allow.refused {
        return format!("fails with error {error}");
    }
    if allow.only.is_empty() {
        return "any arguments".to_owned();
    }
    let one = |arg: &crate::allow::Arg| match arg.is {
        Is::Equal(value) => format!("{} = {value:#x}", arg.index),
        Is::Masked { mask, value } => format!("{} & {mask:#x} = {value:#x}", arg.index),
        Is::Null => format!("{} = null", arg.index),
        Is::OwnProcess => format!("{} = this process", arg.index),
    };
    let all = |all: &&[_]| all.iter().map(one).collect::<Vec<_>>().join(" and ");
    format!("argument {}", allow.only.iter().map(all).collect::<Vec<_>>().join(", or "))
}
