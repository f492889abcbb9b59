//! volt-vmm as a library: the parts of the monitor, for its binary and for its tests.

pub mod bus;
pub mod config;
pub mod irq;
pub mod virtio;
