//! Less memory for the whole life of a process.
#![expect(unsafe_code, reason = "mallopt(3) and malloc_trim(3) are the C library's")]

/// Makes all threads share one arena of the allocator. A daemon's threads allocate rarely, and not for each
/// frame, so one arena per thread would waste pages. Call before the first thread is created.
pub fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a parameter of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Runs a function that frees much memory in its own thread. The allocator's cache for a thread ends with the
/// thread, which leaves whole pages to [give back](give_back).
pub fn apart<T: Send + 'static>(act: fn() -> T) -> T {
    std::thread::spawn(act).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns unused pages to the system. Reading a command line leaves many, which each process of a daemon
/// would otherwise keep for its whole life.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: releases unused memory only; the allocator's locks suffice.
    unsafe {
        libc::malloc_trim(0);
    }
}
