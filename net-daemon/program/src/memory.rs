//! Memory that is needed once, and not for the whole life of a process.
#![expect(unsafe_code, reason = "malloc_trim(3) is the C library's")]

/// Gives pages back to the system that hold nothing any more. What reads a command line or compiles filters
/// leaves many, which each process of a daemon would keep for its whole life.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no memory from anybody; the allocator's own locks are all it relies on.
    unsafe {
        libc::malloc_trim(0);
    }
}
