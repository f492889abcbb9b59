//! volt-vmm as a library: the parts of the VMM, for its binary and its tests.
//!
//! ```text
//! main
//!  |- cli                         the command line, and 'volt-vmm ctl'
//!  |- api                         the API socket
//!  |- host                        'volt-vmm check'
//!  |- machine                     build, run, pause, end
//!  |   |- boot, vcpu              loading the kernel, running it
//!  |   |- virtio - pci            the devices
//!  |   `- console - serial        the user's end of COM1
//!  |- signals
//!  `- config, board               used by all of them, like opener, sandbox, files and faults
//! ```
//!
//! Each part uses only the parts below it. The command line becomes a [`config::VmConfig`].
//! [`machine::builder::build`] turns it into a [`machine::Machine`], whose [`machine::handle::MachineHandle`]
//! the [`api::Api`] serves. [`machine::Machine::run`] runs the machine until something requests its end
//! through [`board::exit::ExitEvent`].

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
