//! What this kernel has of what a sandbox is made of.
#![expect(unsafe_code, reason = "system calls that libraries make for themselves only")]

use std::ptr;

/// Whether calls can be filtered, and one that is not in a list be trapped (seccomp(2)).
pub fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: SECCOMP_GET_ACTION_AVAIL reads the action, and changes nothing.
    let said =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    said == 0
}

/// The version of Landlock's interface; `None` for a kernel without it, or where it is switched off.
pub fn landlock_version() -> Option<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    let nothing = ptr::null::<libc::c_void>();
    // SAFETY: with this flag there is no structure, and nothing is made.
    let said = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    u32::try_from(said).ok().filter(|version| *version > 0)
}
