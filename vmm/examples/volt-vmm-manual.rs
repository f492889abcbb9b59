//! Writes volt-vmm's manual pages and shell completions into a directory: `volt-vmm-manual DIRECTORY`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let directory = std::env::args_os().nth(1).expect("a directory to write into");
    write(directory.as_ref())
}

fn write(directory: &Path) -> std::io::Result<()> {
    volt_manual::write(volt_vmm::cli::command(), include_str!("volt-vmm-manual.roff"), directory)
}

#[test]
fn the_reference_is_that_of_the_command_line() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/volt-vmm.md");
    volt_manual::reference::check(page.as_ref(), volt_vmm::cli::command());
}

#[test]
fn the_manual_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path()).unwrap();
    let page = volt_manual::checked(directory.path(), "volt-vmm", &["SIGNALS", "FILES"]);
    assert!(page.contains(r"\fB\-\-hugepages\fR"), "{page}");
    assert!(directory.path().join("volt-vmm-ctl-add-disk.1").exists());
}
