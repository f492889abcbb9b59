//! Runs the command blocks of the pages that are marked `<!-- tested -->`. Each must succeed in a network
//! namespace, a working directory and a runtime directory of its own, with this build's programs first in the
//! path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use protocol_tests::lab::{program, repository};
use protocol_tests::netns::Netns;

const MARK: &str = "<!-- tested -->\n```sh\n";

/// Time limit of a block, in seconds.
const LIMIT: &str = "30";

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
}

/// Returns the marked blocks of a page.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    text.split(MARK).skip(1).map(|rest| rest.split("```").next().unwrap_or_default())
}

/// Runs a block in a process id namespace, whose end also ends all processes that the block left.
fn run(netns: &Netns, block: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a directory");
    let programs = program("volt-netd").parent().expect("a folder").to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a path"));
    let mut command = netns.command("timeout");
    command.args([
        "--kill-after=5",
        LIMIT,
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command.args(["bash", "-euo", "pipefail", "-c"]).arg(format!("mount -t tmpfs none /run; {block}"));
    command.current_dir(directory.path()).env("PATH", path).env("XDG_RUNTIME_DIR", directory.path());
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("a shell");
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

#[test]
fn marked_blocks_succeed() {
    let mut found = vec![repository().join("README.md")];
    pages(&repository().join("docs"), &mut found);
    let mut ran = 0;
    for page in found {
        for block in blocks(&fs::read_to_string(&page).expect("a page")) {
            let netns = Netns::new().expect("a namespace");
            if let Err(why) = run(&netns, block) {
                panic!("{}: this block\n{block}ends with {why}", page.display());
            }
            ran += 1;
        }
    }
    assert!(ran >= 5, "only {ran} blocks are marked");
}

#[test]
fn a_failing_block_is_reported() {
    let netns = Netns::new().expect("a namespace");
    assert_eq!(
        blocks(&format!("a\n{MARK}true\n```\n```sh\nfalse\n```\n{MARK}false\n```")).collect::<Vec<_>>(),
        ["true\n", "false\n"]
    );
    let failed = run(&netns, "volt-netd --version\nfalse | true\n").expect_err("no error");
    assert!(failed.contains("exit status: 1") && failed.contains("volt-netd 0."), "{failed}");
    assert!(run(&netns, "volt-netd --version\n").is_ok());
}
