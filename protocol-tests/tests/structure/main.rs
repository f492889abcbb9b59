//! Checks the repository itself. Files import each other without circles. Lines fit a screen. Licences and
//! sources of dependencies are those that `deny.toml` allows. Log events are documented. Pages name files,
//! headings, options and requests that exist.
//!
//! The tests only read files and run `cargo metadata` and `--help`.

mod circles;
mod columns;
mod commands;
mod events;
mod graph;
mod links;
mod modules;
mod pages;
mod routes;
mod supply;
mod tokens;

use std::path::Path;
use std::process::Command;

use protocol_tests::lab::repository;
use serde_json::Value;

/// The answer of `cargo metadata` for a manifest of the repository, from what is on the machine already.
fn metadata(manifest: &str, options: &[&str]) -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--locked", "--offline", "--manifest-path"]);
    let output = command.arg(repository().join(manifest)).args(options).output().expect("cargo");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A path as it is written in the repository.
fn relative(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}
