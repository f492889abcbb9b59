//! Checks that commands in pages use options that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::pages::pages;
use protocol_tests::lab::{program, repository};

/// Returns the programs of the workspace, by their names.
fn programs() -> [(&'static str, PathBuf); 4] {
    [
        ("volt-netd", program("volt-netd")),
        ("volt-vmm", program("volt-vmm")),
        ("volt-bench", env!("CARGO_BIN_EXE_volt-bench").into()),
        ("volt-conform", env!("CARGO_BIN_EXE_volt-conform").into()),
    ]
}

type Options = BTreeMap<String, BTreeSet<String>>;

/// Returns the long options in a text. A trailing `-` belongs to a dash of the sentence.
fn options_in(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let options = words.filter(|word| word.len() > 3 && word.starts_with("--"));
    options
        .filter(|word| word.as_bytes()[2].is_ascii_lowercase())
        .map(|word| word.trim_end_matches('-').to_owned())
}

/// Collects the options in `--help` of a command and of its subcommands.
fn help(program: &Path, path: &mut Vec<String>, options: &mut BTreeSet<String>) {
    let output = Command::new(program).args(&*path).arg("--help").output();
    let output = output.unwrap_or_else(|error| panic!("{program:?}: {error}: cargo build --workspace"));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("Usage:"), "{program:?} {path:?} --help: {text}");
    options.extend(options_in(&text));
    let commands = text.lines().skip_while(|line| *line != "Commands:").skip(1);
    for line in commands.take_while(|line| !line.is_empty()) {
        // The texts of commands are indented further.
        let Some(command) = line.strip_prefix("  ").filter(|line| !line.starts_with(' ')) else { continue };
        let command = command.split_whitespace().next().expect("a name");
        if command == "help" {
            continue;
        }
        path.push(command.to_owned());
        help(program, path, options);
        path.pop();
    }
}

/// Returns the options of each program and script.
fn known() -> Options {
    let mut known = Options::new();
    for (name, program) in programs() {
        let options = known.entry(name.to_owned()).or_default();
        help(&program, &mut Vec::new(), options);
    }
    for entry in fs::read_dir(repository().join("scripts")).expect("scripts").flatten() {
        if let Ok(text) = fs::read_to_string(entry.path()) {
            let name = format!("scripts/{}", entry.file_name().display());
            known.insert(name, options_in(&text).collect());
        }
    }
    // It passes its options on.
    let bench = known["volt-bench"].clone();
    known.get_mut("scripts/bench").expect("scripts/bench").extend(bench);
    known
}

/// Returns the commands of a block. A quoted text is a command of its own.
fn commands(block: &str) -> Vec<String> {
    let whole = block.replace("\\\n", " ");
    let lines = whole.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut commands = Vec::new();
    for line in lines {
        for (at, part) in line.split('\'').enumerate() {
            let parts = part.split(['|', ';', '&']).map(|part| part.trim().to_owned());
            match at {
                0 => commands.extend(parts),
                // The command continues after the quoted text.
                _ if at % 2 == 0 => *commands.last_mut().expect("a command") += part,
                _ => {
                    let own = commands.len().saturating_sub(1);
                    commands.splice(own..own, parts);
                }
            }
        }
    }
    commands.retain(|command| !command.is_empty());
    commands
}

/// Returns the options that the program of a command does not have. Ignores other programs.
fn unknown(command: &str, known: &Options) -> Vec<String> {
    // After `cargo`, the names are those of packages.
    if command.starts_with("cargo ") {
        return Vec::new();
    }
    // `sudo`, `VAR=value` or a path may precede the name.
    let named = command.split_whitespace().enumerate().find_map(|(at, word)| {
        let name = word.rsplit_once("release/").map_or(word, |(_, name)| name);
        known.get_key_value(name).map(|(_, options)| (at, options))
    });
    let Some((at, options)) = named else { return Vec::new() };
    let rest: Vec<_> = command.split_whitespace().skip(at + 1).collect();
    options_in(&rest.join(" ")).filter(|option| !options.contains(option)).collect()
}

#[test]
fn options_in_pages_are_those_of_the_programs() {
    let known = known();
    let mut said = String::new();
    let mut seen = 0;
    for page in pages() {
        let texts = page.commands.iter().chain(page.code.iter().filter(|(_, code)| !code.starts_with('-')));
        for (line, command) in
            texts.flat_map(|(line, text)| commands(text).into_iter().map(move |one| (*line, one)))
        {
            seen += options_in(&command).count();
            for option in unknown(&command, &known) {
                said += &format!("{}: {command}: there is no {option}\n", page.place(line));
            }
        }
    }
    assert!(said.is_empty(), "{said}");
    assert!(seen > 100, "only {seen} options were seen");
}

/// An option that a text names alone belongs to one of the programs or scripts.
#[test]
fn options_by_themselves_are_somebodys() {
    let known = known();
    let all: BTreeSet<_> = known.values().flatten().collect();
    let mut said = String::new();
    for page in pages() {
        for (line, code) in page.code.iter().filter(|(_, code)| code.starts_with("--")) {
            for option in options_in(code).filter(|option| !all.contains(option)) {
                said += &format!("{}: no program here has {option}\n", page.place(*line));
            }
        }
    }
    assert!(said.is_empty(), "{said}");
}

#[test]
fn what_no_program_has_is_found() {
    let known = Options::from([("volt-netd".to_owned(), ["--tap".to_owned()].into())]);
    let block = "# volt-netd --comment\nsudo volt-netd --tap a \\\n  --tip b && ip --tup | \
                 target/release/volt-netd --top=c\n";
    let said: Vec<_> = commands(block).iter().flat_map(|command| unknown(command, &known)).collect();
    assert_eq!(said, ["--tip", "--top"]);
    let quoted = commands("volt-netd --tap 'volt-netd --tup; a' --tip");
    let said: Vec<_> = quoted.iter().flat_map(|command| unknown(command, &known)).collect();
    assert_eq!(said, ["--tup", "--tip"]);
    assert!(options_in("a -- b --- c --help--").eq(["--help".to_owned()]));
}
