//! volt-vmm as a library: the parts of the monitor, for its binary and for its tests.
//!
//! ```text
//! main
//!  |- cli                         the command line, and 'volt-vmm ctl'
//!  |- api                         the API socket
//!  |- machine                     built, run, paused, ended
//!  |   |- boot, vcpu              what runs in it
//!  |   |- virtio - pci            its devices
//!  |   `- console - serial        the user's end of COM1
//!  |- signals
//!  `- config, board               what all of them stand on; opener, sandbox, files, faults
//! ```
//!
//! Each uses only what stands below it. The command line becomes a [`config::VmConfig`];
//! [`machine::builder::build`] makes a [`machine::Machine`] of it, whose [`machine::handle::MachineHandle`]
//! the [`api::Api`] serves; [`machine::Machine::run`] runs it until something asks the
//! [`board::exit::ExitEvent`] for the end.

pub mod api;
pub mod board;
pub mod boot;
pub mod cli;
pub mod config;
pub mod console;
pub mod faults;
pub mod files;
pub mod host;
pub mod machine;
pub mod opener;
pub mod pci;
pub mod sandbox;
pub mod serial;
pub mod signals;
pub mod vcpu;
pub mod virtio;
