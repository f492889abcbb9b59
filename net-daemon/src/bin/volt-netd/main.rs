//! volt-netd.
fn main() {}
