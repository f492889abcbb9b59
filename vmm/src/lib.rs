//! volt-vmm as a library: the parts of the monitor, for its binary and for its tests.
//!
//! ```text
//! main -> cli -> config -> builder -> machine -> vcpu -> bus -> devices
//!                            |           |
//!                            boot        console, exit
//! ```
//!
//! The command line becomes a [`config::VmConfig`]; [`builder::build`] makes a [`machine::Machine`] of it;
//! [`machine::Machine::run`] runs that until something asks the [`exit::ExitEvent`] for the end.

pub mod api;
pub mod boot;
pub mod builder;
pub mod bus;
pub mod cli;
pub mod config;
pub mod console;
pub mod devices;
pub mod exit;
pub mod files;
pub mod gate;
pub mod irq;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod pause;
pub mod pci;
pub mod power;
pub mod serial;
pub mod signals;
pub mod terminal;
pub mod vcpu;
pub mod virtio;
