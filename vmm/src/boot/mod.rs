//! Everything that the guest finds in memory and registers when its first instruction runs.
//!
//! The builder calls, in this order: [`kernel::KernelImage::open`] and [`load`](load()) (kernel, initramfs,
//! command line and the boot protocol's own tables), [`acpi::write`] once the devices are known, and for each
//! vCPU [`cpuid`] and [`regs`].
//!
//! | module | holds |
//! |---|---|
//! | [`kernel`] | what kind of file the kernel is, and loading it |
//! | `load` | kernel, initramfs and command line into memory |
//! | `data` | what the two boot protocols share |
//! | [`error`] | why a guest cannot be made ready |
//! | [`linux`] | the 64-bit Linux boot protocol: zero page |
//! | [`pvh`] | the PVH boot protocol: start info |
//! | [`acpi`] | the tables that describe the machine |
//! | [`cpuid`] | what the processor says about itself |
//! | [`regs`] | registers, segments, page tables, local APIC |
#![forbid(unsafe_code)]

pub mod acpi;
pub mod cpuid;
mod data;
pub mod error;
pub mod kernel;
pub mod linux;
mod load;
pub mod pvh;
pub mod regs;

pub use data::{Entry, Initramfs};
pub use error::BootError;
pub use load::load;
