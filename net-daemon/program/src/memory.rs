//! Memory that is needed once, and not for the whole life of a process.
#![expect(unsafe_code, reason = "mallopt(3) and malloc_trim(3) are the C library's")]

/// Has all threads share one area of the allocator's. Those of a daemon allocate once in a while, and not by
/// the frame; an area of each one's own is pages that hold little. Before the first thread is made.
pub fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Runs `act`, which frees much memory, in a thread of its own. The allocator's cache of that thread goes
/// with it, so that there are whole pages to [give back](give_back).
pub fn apart<T: Send + 'static>(act: fn() -> T) -> T {
    std::thread::spawn(act).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Gives pages back to the system that hold nothing any more. What reads a command line leaves many,
/// which each process of a daemon would keep for its whole life.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no memory from anybody; the allocator's own locks are all it relies on.
    unsafe {
        libc::malloc_trim(0);
    }
}
