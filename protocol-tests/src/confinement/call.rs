//! System calls as filters see them, and their fates.

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
pub const X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`.
pub const I386: u32 = 0x4000_0003;
/// Set in the number of a call of the x32 ABI, whose architecture is [`X86_64`].
pub const X32: u32 = 0x4000_0000;

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The number.
    pub number: u32,
    /// The ABI.
    pub arch: u32,
    /// The arguments.
    pub arguments: [u64; 6],
}

/// The fate of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// The process is killed, because the call is of another architecture.
    Kills,
    /// The call is trapped.
    Trapped,
    /// The call fails with this error.
    Fails(u32),
    /// The call is made.
    Made,
}
