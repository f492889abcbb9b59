//! Checks of the kernel's support for sandboxes.
#![expect(unsafe_code, reason = "system calls without a public wrapper")]

use std::ptr;

/// Returns whether system calls can be filtered, and forbidden ones trapped (seccomp(2)).
pub fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: SECCOMP_GET_ACTION_AVAIL reads the action, and changes nothing.
    let said =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    said == 0
}

/// Returns the version of Landlock's interface; `None` if Landlock is missing or disabled.
pub fn landlock_version() -> Option<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    let nothing = ptr::null::<libc::c_void>();
    // SAFETY: with this flag, the call reads no structure and creates nothing.
    let said = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    u32::try_from(said).ok().filter(|version| *version > 0)
}
