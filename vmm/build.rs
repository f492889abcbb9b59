//! Compiles the tables of system calls to filters.

use std::error::Error;

#[expect(unreachable_pub, reason = "public in the library, whose file this is")]
#[path = "src/sandbox/lists.rs"]
mod lists;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/sandbox");
    volt_sandbox::compile::write(&lists::TABLE)
}
