//! Writes volt-netd's manual pages and shell completions into a directory: `volt-netd-manual DIRECTORY`.

use std::path::Path;

use clap::CommandFactory;

#[path = "../src/cli.rs"]
#[expect(dead_code, reason = "the command line is described here, and not used")]
mod cli;

// Parts of the command line.
#[path = "../src/capture"]
#[expect(dead_code, reason = "the same")]
mod capture {
    pub(crate) mod options;
}
#[path = "../src/filter"]
#[cfg_attr(not(test), expect(dead_code, reason = "the same"))]
mod filter {
    pub(crate) mod options;
}
#[path = "../src/policy"]
mod policy {
    pub(crate) mod options;
}
#[path = "../src/metrics"]
#[cfg_attr(not(test), expect(dead_code, reason = "the same"))]
mod metrics {
    pub(crate) mod address;
}

#[path = "../src/xdp"]
#[expect(dead_code, reason = "the same")]
mod xdp {
    pub(crate) mod options;
}

fn main() -> std::io::Result<()> {
    let directory = std::env::args_os().nth(1).expect("a directory to write into");
    write(directory.as_ref())
}

fn write(directory: &Path) -> std::io::Result<()> {
    volt_manual::write(cli::Cli::command(), include_str!("volt-netd-manual.roff"), directory)
}

#[test]
fn the_reference_is_that_of_the_command_line() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/volt-netd.md");
    volt_manual::reference::check(page.as_ref(), cli::Cli::command());
}

#[test]
fn the_manual_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path()).unwrap();
    let page = volt_manual::checked(directory.path(), "volt-netd", &["SIGNALS", "FILES", "ENVIRONMENT"]);
    assert!(
        page.contains(r"\fB\-\-take\-over\fR") && page.contains("/etc/volt/netd/INTERFACE.conf"),
        "{page}"
    );
    assert!(directory.path().join("volt-netd-ctl-limits.1").exists());
}
