//! The system's groups, wherever it keeps them.
#![expect(unsafe_code, reason = "the system's groups are asked for by libc")]

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr;

/// Bytes that are enough for a group's members, unless they are tens of thousands.
const ROOM: usize = 1 << 20;

/// The number of the group `name`, if there is one.
pub(crate) fn number(name: &str) -> Option<u32> {
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
    fn groups_have_numbers() {
        assert_eq!(number("root"), Some(0));
        assert_eq!(number("no such group"), None);
        assert_eq!(number("ro\0ot"), None);
    }
}
