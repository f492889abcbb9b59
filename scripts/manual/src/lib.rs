//! Generates manual pages, shell completions and a reference page from a program's command line.
//!
//! The examples `volt-netd-manual` and `volt-vmm-manual` call [`write()`]; `scripts/package` runs both. An
//! example sees the program's command line without being part of the program, so the program contains none of
//! this code.
//!
//! Options, subcommands, exit status and examples of a page come from `--help`. Other sections (DESCRIPTION,
//! SIGNALS, FILES, ...) are man(7) text beside the example.
#![forbid(unsafe_code)]

pub mod reference;

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Sections after the options, in the order of man-pages(7); all others come before EXAMPLES.
const LAST: [&str; 3] = ["EXAMPLES", "NOTES", "SEE ALSO"];

/// Writes into `directory`: `PROGRAM.1`, a page for each subcommand, and `PROGRAM.bash`, `_PROGRAM` and
/// `PROGRAM.fish` for bash, zsh and fish. `sections` is man(7) text for the program's own page; each section
/// begins with `.SH`.
///
/// # Errors
///
/// Returns the error of a file that could not be written.
pub fn write(command: Command, sections: &str, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let name = command.get_name().to_owned();
    let mut command = command.disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, directory)?;
    }
    command.build();
    pages(&command, None, sections, directory)
}

/// Returns the page of `program` in `directory`, for a test.
///
/// # Panics
/// If the page lacks a section of `sections` or one that each page has, or if a shell's completion is
/// missing.
pub fn checked(directory: &Path, program: &str, sections: &[&str]) -> String {
    let read = |name: String| {
        fs::read_to_string(directory.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let page = read(format!("{program}.1"));
    let always = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"];
    for heading in always.iter().chain(sections) {
        let here = page
            .lines()
            .any(|line| line.strip_prefix(".SH ").is_some_and(|has| has.trim_matches('"') == *heading));
        assert!(here, "no {heading} in:\n{page}");
    }
    for completion in [format!("{program}.bash"), format!("_{program}"), format!("{program}.fish")] {
        assert!(read(completion.clone()).contains("--help"), "{completion} completes nothing");
    }
    page
}

/// Writes the page of a command and those of its subcommands.
fn pages(command: &Command, parent: Option<&str>, sections: &str, directory: &Path) -> io::Result<()> {
    let name = page_name(command);
    fs::write(directory.join(format!("{name}.1")), page(command, parent, sections)?)?;
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.into_iter().try_for_each(|command| pages(command, Some(&name), "", directory))
}

/// Returns `volt-netd-ctl` for `volt-netd ctl`.
fn page_name(command: &Command) -> String {
    command.get_display_name().unwrap_or(command.get_name()).replace(' ', "-")
}

fn page(command: &Command, parent: Option<&str>, sections: &str) -> io::Result<Vec<u8>> {
    let version = command.get_version().unwrap_or(env!("CARGO_PKG_VERSION"));
    let man =
        Man::new(command.clone()).title(page_name(command).to_uppercase()).source(format!("volt {version}"));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    let (description, mut others): (Vec<_>, _) =
        split(sections).into_iter().partition(|(heading, _)| heading == "DESCRIPTION");
    match description.first() {
        Some((_, text)) => page.extend(section("DESCRIPTION", text)),
        None => man.render_description_section(&mut page)?,
    }
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    others.extend(from_help(&help));
    if let Some(parent) = parent {
        others.push(("SEE ALSO".to_owned(), format!("{}(1)\n", escape(parent))));
    }
    others.sort_by_key(|(heading, _)| LAST.iter().position(|last| last == heading).map_or(0, |at| at + 1));
    for (heading, text) in &others {
        page.extend(section(heading, text));
    }
    Ok(page)
}

fn section(heading: &str, text: &str) -> Vec<u8> {
    format!(".SH \"{heading}\"\n{text}").into_bytes()
}

/// Splits man(7) text into headings and texts.
fn split(sections: &str) -> Vec<(String, String)> {
    let parts = sections.split(".SH ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(heading, text)| (heading.trim_matches('"').to_owned(), text.to_owned())).collect()
}

/// Splits the text below the options of `--help` into sections: a paragraph that begins with `Heading:`
/// starts the section of that name, others are notes. Indented lines are kept as lines.
fn from_help(help: &str) -> Vec<(String, String)> {
    let mut sections: Vec<(String, String)> = Vec::new();
    for paragraph in help.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        let is_heading = |heading: &&str| {
            heading.starts_with(char::is_uppercase) && heading.chars().all(|c| c.is_alphabetic() || c == ' ')
        };
        let (heading, rest) = match paragraph.split_once(':').filter(|(heading, _)| is_heading(heading)) {
            Some((heading, rest)) => (heading.to_uppercase(), rest),
            None => ("NOTES".to_owned(), paragraph),
        };
        let (mut text, mut indented) = (String::new(), false);
        for line in rest.lines().filter(|line| !line.trim().is_empty()) {
            if indented != line.starts_with("  ") {
                indented = !indented;
                text += if indented { ".RS 4\n.nf\n" } else { ".fi\n.RE\n" };
            }
            text += &format!("{}\n", escape(line.strip_prefix("  ").unwrap_or(line.trim())));
        }
        text += if indented { ".fi\n.RE\n" } else { "" };
        match sections.iter_mut().find(|(known, _)| *known == heading) {
            Some((_, known)) => *known += &format!(".PP\n{text}"),
            None => sections.push((heading, text)),
        }
    }
    sections
}

/// Escapes text for man(7).
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}
