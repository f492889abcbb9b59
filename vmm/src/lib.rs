//! volt-vmm as a library.
