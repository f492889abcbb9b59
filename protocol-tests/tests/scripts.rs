//! The scripts' command lines: `--help` prints the usage and does nothing else, and usage errors end with
//! status 2. Also the results of `scripts/soak`, with a `cargo` whose tests fail as this test wants.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use protocol_tests::daemon::poll_until;
use protocol_tests::lab::repository;
use protocol_tests::rig::LIMIT;

fn scripts() -> Vec<PathBuf> {
    let entries =
        fs::read_dir(repository().join("scripts")).expect("scripts").map(|entry| entry.expect("an entry"));
    let runs = |path: &PathBuf| {
        path.is_file() && path.metadata().is_ok_and(|data| data.permissions().mode() & 1 != 0)
    };
    let scripts: Vec<_> = entries.map(|entry| entry.path()).filter(runs).collect();
    assert!(scripts.len() > 5, "{scripts:?}");
    scripts
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns a directory with links to these programs: a search path with nothing else to run.
fn only(programs: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for program in programs {
        let found = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(program));
        let found = found.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {program}"));
        symlink(found, directory.path().join(program)).expect("a link");
    }
    directory
}

/// Without any program that could install, build or start anything.
#[test]
fn help_is_told_and_nothing_done() {
    let programs = only(&["bash", "env", "dirname", "realpath", "sed"]);
    for script in scripts() {
        for option in ["--help", "-h"] {
            let mut command = Command::new(&script);
            let output =
                command.arg(option).current_dir("/").env("PATH", programs.path()).output().expect("a script");
            let (text, name) = (text(&output), script.file_name().expect("a name").to_string_lossy());
            assert_eq!(output.status.code(), Some(0), "{name} {option}: {text}");
            for word in [&format!("\n  scripts/{name}"), "second|minute|hour"] {
                let said = word.split('|').any(|word| text.contains(word));
                assert!(said, "{name} {option} does not mention '{word}':\n{text}");
            }
            assert!(!text.contains("shellcheck") && !text.contains("source "), "{name}: {text}");
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_status_2() {
    let programs = only(&["bash", "env", "dirname", "basename", "realpath", "sed", "grep", "mktemp", "rm"]);
    let wrong = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(repository().join("scripts").join(name));
        let output = command.args(arguments).env("PATH", programs.path()).output().expect("a script");
        let text = text(&output);
        assert_eq!(output.status.code(), Some(2), "{name} {arguments:?}: {text}");
        assert!(text.contains(&format!("{name} --help")), "{name} {arguments:?}: {text}");
    };
    for script in scripts() {
        wrong(&script.file_name().expect("a name").to_string_lossy(), &["--nonsense"]);
    }
    for arguments in [
        &["--repeat"][..],
        &["--repeat", "0"],
        &["--repeat", "two"],
        &["--load", "cpu"],
        &["--repeat", "1", "--load", "disk"],
        &["--repeat", "1", "--only", ""],
        &["--repeat", "1", "qemu"],
        &["--packages", "qemu"],
        &["everything"],
    ] {
        wrong("soak", arguments);
    }
    wrong("demo", &["--check", "--net", "wires"]);
    wrong("lab", &["--limit", "long", "true"]);
    wrong("lab", &[]);
    wrong("debian", &["/nonexistent", "true"]);
    wrong("package", &["--suffix", "2"]);
    wrong("fuzz", &["nonsense"]);
    wrong("bench", &["nonsense"]);
}

/// `cargo` for a soak: builds end at once, and the library's test `sometimes` fails in every other run.
const CARGO: &str = r#"#!/bin/bash
case "$*" in
    *" --lib "*)
        echo run >>"$RUNS"
        [ ! -e "$HOLD" ] || { echo "$PPID" >"$HOLD"; sleep 600; }
        [ $(($(wc -l <"$RUNS") % 2)) = 0 ] || exit 0
        printf 'failures:\n\n---- sometimes stdout ----\nno\n\nfailures:\n    deep::sometimes\n\n'
        echo 'test result: FAILED. 3 passed; 1 failed'
        exit 101 ;;
esac
"#;

/// An interrupted soak resumes with the remaining runs; failed tests are listed by name with their number of
/// failures.
#[test]
fn a_soak_is_resumed_and_counts() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("bin")).expect("a directory");
    for (name, body) in [("cargo", CARGO), ("apt-get", "#!/bin/sh\nexit 1\n")] {
        let path = at("bin").join(name);
        fs::write(&path, body).expect("a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }
    let path = std::env::var("PATH").expect("a path");
    let soak = |repeat: &str| {
        let mut command = Command::new(repository().join("scripts/soak"));
        command.args(["--repeat", repeat, "--load", "cpu", "--only", "peers", "--jobs", "1"]);
        command.env("PATH", format!("{}:{path}", at("bin").display())).env("CARGO_TARGET_DIR", at("target"));
        command.env("RUNS", at("runs")).env("HOLD", at("hold")).env("TMPDIR", directory.path());
        command
    };
    let runs = || fs::read_to_string(at("runs")).unwrap_or_default().lines().count();

    let first = soak("3").output().expect("a soak");
    let said = text(&first);
    assert_eq!(first.status.code(), Some(1), "{said}");
    assert!(said.contains("3 rounds, 3 runs of test programs, load cpu"), "{said}");
    assert!(said.contains("1 peers::deep::sometimes"), "{said}");

    // In the fourth round it is ended, with all its children.
    fs::write(at("hold"), "").expect("a file");
    let mut held =
        std::os::unix::process::CommandExt::process_group(&mut soak("5"), 0).spawn().expect("a soak");
    let group = rustix::process::Pid::from_child(&held);
    let began = poll_until(LIMIT, || (fs::read_to_string(at("hold")).ok()?.trim() != "").then_some(()));
    assert!(began.is_some(), "the fourth round did not begin");
    assert!(!in_group(group).is_empty());
    rustix::process::kill_process_group(group, rustix::process::Signal::TERM).expect("signalled");
    assert_eq!(held.wait().expect("its end").code(), Some(143));
    let left = poll_until(LIMIT, || in_group(group).is_empty().then_some(()));
    assert!(left.is_some(), "still there: {:?}", in_group(group));
    assert_eq!(runs(), 4);

    fs::remove_file(at("hold")).expect("removed");
    let last = soak("5").output().expect("a soak");
    let said = text(&last);
    assert!(said.contains("resuming after 3 runs"), "{said}");
    assert!(said.contains("5 rounds, 5 runs of test programs, load cpu"), "{said}");
    // Runs 2 and 6: the fourth did not finish and is not counted.
    assert!(said.contains("2 peers::deep::sometimes"), "{said}");
    assert_eq!(runs(), 6);
}

/// Returns the processes of a process group.
fn in_group(group: rustix::process::Pid) -> Vec<String> {
    let stats = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // State, parent and process group follow the name; a zombie has ended.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let its = fields.get(2)?.parse() == Ok(group.as_raw_nonzero().get());
        (its && fields.first() != Some(&"Z")).then_some(stat.clone())
    });
    stats.collect()
}
