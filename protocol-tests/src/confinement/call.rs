//! System calls as filters see them, and what becomes of them.

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
pub const X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`.
pub const I386: u32 = 0x4000_0003;
/// Set in the number of a call of the x32 ABI, whose architecture is [`X86_64`].
pub const X32: u32 = 0x4000_0000;

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: u32,
    /// The ABI.
    pub arch: u32,
    /// What it is called with.
    pub arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It ends the process, as it is of another architecture.
    Kills,
    /// It is trapped.
    Trapped,
    /// It fails with this error.
    Fails(u32),
    /// It is made.
    Made,
}
