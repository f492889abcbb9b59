//! What volt-netd and volt-vmm have in common as programs, and no library below them knows of: the [log](logging), what is
//! said on [standard output](output), and [signals].

pub mod logging;
pub mod output;
pub mod signals;
