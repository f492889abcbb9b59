//! The system's users and groups, from any source that the C library uses.
#![expect(unsafe_code, reason = "libc looks up users and groups")]

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr;

/// Buffer size, enough for a group with fewer than tens of thousands of members.
const ROOM: usize = 1 << 20;

/// Numbers of a user and of the user's primary group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

/// Looks up the user `name`.
pub fn user(name: &str) -> Option<User> {
    let name = CString::new(name).ok()?;
    let (mut entry, mut found) = (MaybeUninit::<libc::passwd>::uninit(), ptr::null_mut());
    let mut room = vec![0; ROOM];
    // SAFETY: the name is null-terminated, and the buffer has the given length.
    let result = unsafe {
        libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), room.as_mut_ptr(), room.len(), &raw mut found)
    };
    // SAFETY: `entry` is initialised if a user was found.
    let entry = (result == 0 && !found.is_null()).then(|| unsafe { entry.assume_init() })?;
    Some(User { user: entry.pw_uid, group: entry.pw_gid })
}

/// Looks up the number of the group `name`.
pub(crate) fn group(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let (mut group, mut found) = (MaybeUninit::<libc::group>::uninit(), ptr::null_mut());
    let mut room = vec![0; ROOM];
    // SAFETY: the name is null-terminated, and the buffer has the given length.
    let result = unsafe {
        libc::getgrnam_r(name.as_ptr(), group.as_mut_ptr(), room.as_mut_ptr(), room.len(), &raw mut found)
    };
    // SAFETY: `group` is initialised if a group was found.
    (result == 0 && !found.is_null()).then(|| unsafe { group.assume_init() }.gr_gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_have_numbers() {
        assert_eq!(group("root"), Some(0));
        assert_eq!(group("no such group"), None);
        assert_eq!(group("ro\0ot"), None);
        assert_eq!(user("root"), Some(User { user: 0, group: 0 }));
        assert_eq!(user("no such user"), None);
    }
}
