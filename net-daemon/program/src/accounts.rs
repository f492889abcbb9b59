//! The system's users and groups, wherever it keeps them.
#![expect(unsafe_code, reason = "users and groups are asked for by libc")]

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr;

/// Bytes that are enough for a group's members, unless they are tens of thousands.
const ROOM: usize = 1 << 20;

/// A user's number, and that of the group that the user is first of all in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

/// The user `name`, if there is one.
pub fn user(name: &str) -> Option<User> {
    let name = CString::new(name).ok()?;
    let (mut entry, mut found) = (MaybeUninit::<libc::passwd>::uninit(), ptr::null_mut());
    let mut room = vec![0; ROOM];
    // SAFETY: the name ends in a zero, and the buffer has the bytes that it is said to have.
    let result = unsafe {
        libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), room.as_mut_ptr(), room.len(), &raw mut found)
    };
    // SAFETY: a user that was found is in `entry`.
    let entry = (result == 0 && !found.is_null()).then(|| unsafe { entry.assume_init() })?;
    Some(User { user: entry.pw_uid, group: entry.pw_gid })
}

/// The number of the group `name`, if there is one.
pub(crate) fn group(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let (mut group, mut found) = (MaybeUninit::<libc::group>::uninit(), ptr::null_mut());
    let mut room = vec![0; ROOM];
    // SAFETY: the name ends in a zero, and the buffer has the bytes that it is said to have.
    let result = unsafe {
        libc::getgrnam_r(name.as_ptr(), group.as_mut_ptr(), room.as_mut_ptr(), room.len(), &raw mut found)
    };
    // SAFETY: a group that was found is in `group`.
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
