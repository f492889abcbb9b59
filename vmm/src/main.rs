//! volt-vmm.
fn main() {}
