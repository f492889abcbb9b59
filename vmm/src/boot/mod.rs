//! The contents of memory and registers at the guest's first instruction.
//!
//! The builder calls, in this order: [`kernel::KernelImage::open`] and [`load`](load()) (kernel, initramfs,
//! command line and the boot protocol's own tables), [`acpi::write`] once the devices are known, and for each
//! vCPU [`cpuid`] and [`regs`].
//!
//! | module | holds |
//! |---|---|
//! | [`kernel`] | recognizing and loading the kernel file |
//! | `load` | loading kernel, initramfs and command line into memory |
//! | `data` | code shared by the two boot protocols |
//! | [`error`] | why a guest cannot be prepared |
//! | [`linux`] | the 64-bit Linux boot protocol: zero page |
//! | [`pvh`] | the PVH boot protocol: start info |
//! | [`acpi`] | the tables that describe the machine |
//! | [`cpuid`] | the leaves of each processor |
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
