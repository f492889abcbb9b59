//! The virtio network device (virtio 1.2, section 5.1).

pub mod config;
pub mod ctrl;
