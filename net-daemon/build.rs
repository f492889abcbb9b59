//! Compiles the sandbox tables to filters.

use std::error::Error;

#[path = "src/sandbox/beside.rs"]
mod beside;
#[path = "src/sandbox/lists.rs"]
mod lists;
#[path = "src/sandbox/roles.rs"]
mod roles;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/sandbox");
    volt_sandbox::compile::write(&roles::TABLE)
}
