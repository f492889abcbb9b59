//! The page of the reference that describes a command line, as Markdown.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::{Arg, Command};

/// Compares a page with the command line, for a test.
///
/// # Panics
/// If they differ. With `VOLT_UPDATE` in the environment, writes the page instead.
pub fn check(page: &Path, command: Command) {
    let wanted = markdown(command);
    if std::env::var_os("VOLT_UPDATE").is_some() {
        fs::write(page, &wanted).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    }
    let found = fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    assert!(found == wanted, "{} is outdated: run this test again with VOLT_UPDATE=1", page.display());
}

/// Returns the page: a section for the program and for each of its subcommands.
pub fn markdown(command: Command) -> String {
    let mut command = command.disable_help_subcommand(true).term_width(100);
    command.build();
    let name = command.get_name().to_owned();
    let mut page = format!("# Command line of {name}\n\nThis page is generated from `{name} --help`.\n");
    section(&mut page, &mut command);
    page
}

fn section(page: &mut String, command: &mut Command) {
    let usage = command.render_usage().to_string();
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(page, "\n## {name}\n\n{}.\n\n```text\n{}\n```\n", wrapped(&about), plain(&usage));
    let (options, arguments): (Vec<_>, Vec<_>) =
        command.get_arguments().filter(|one| !one.is_hide_set()).partition(|one| !one.is_positional());
    table(page, "argument", &arguments);
    table(page, "option", &options);
    if let Some(help) = command.get_after_help() {
        let _ = write!(page, "\n```text\n{}\n```\n", plain(&help.to_string()));
    }
    command.get_subcommands_mut().for_each(|command| section(page, command));
}

/// Usage and notes without the space at the ends of their lines.
fn plain(text: &str) -> String {
    text.trim().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn table(page: &mut String, title: &str, rows: &[&Arg]) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(page, "\n| {title} | meaning |\n|---|---|\n");
    for arg in rows {
        // A bar would end the cell.
        let _ = writeln!(
            page,
            "| `{}` | {} |",
            arg.to_string().replace('|', "\\|"),
            meaning(arg).replace('|', "\\|")
        );
    }
}

fn meaning(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if let Some(short) = arg.get_short() {
        let _ = write!(text, "; short: `-{short}`");
    }
    if let Some(aliases) = arg.get_visible_aliases() {
        let _ = write!(text, "; alias: `--{}`", aliases.join("`, `--"));
    }
    let takes_value = arg.get_action().takes_values();
    let values: Vec<_> = arg.get_possible_values().into_iter().filter(|_| takes_value).collect();
    if !values.is_empty() {
        let names: Vec<_> = values.iter().map(clap::builder::PossibleValue::get_name).collect();
        let _ = write!(text, "; one of `{}`", names.join("`, `"));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes_value && !defaults.is_empty() && !arg.is_hide_default_value_set() {
        let _ = write!(text, "; default: `{}`", defaults.join(","));
    }
    text
}

/// Breaks a paragraph into lines of a page.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("a line");
        if !line.is_empty() && line.len() + 1 + word.len() > 105 {
            lines.push(word.to_owned());
        } else {
            let space = if line.is_empty() { "" } else { " " };
            let _ = write!(line, "{space}{word}");
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction, Command};

    use super::markdown;

    #[test]
    fn a_page_has_commands_options_and_notes() {
        let level = Arg::new("level").long("level").value_parser(["low", "high"]).default_value("low");
        let quiet = Arg::new("quiet").long("quiet").short('q').action(ArgAction::SetTrue).help("Say a|b");
        let sub = Command::new("sub").about("Do less").arg(Arg::new("file").required(true).help("A file"));
        let program = Command::new("prog").about("Do it").args([level.help("How much"), quiet]);
        let page = markdown(program.subcommand(sub).after_help("Examples:\n  prog --quiet"));
        for part in [
            "# Command line of prog\n",
            "\n## prog\n\nDo it.\n\n```text\nUsage: prog [OPTIONS] [COMMAND]\n```\n",
            "\n| `--level <level>` | How much; one of `low`, `high`; default: `low` |\n",
            "\n| `--quiet` | Say a\\|b; short: `-q` |\n",
            "\n```text\nExamples:\n  prog --quiet\n```\n",
            "\n## prog sub\n\nDo less.\n",
            "\n| argument | meaning |\n|---|---|\n| `<file>` | A file |\n",
        ] {
            assert!(page.contains(part), "{part}\n--- is not in\n{page}");
        }
    }
}
