//! Headers and bodies as bytes.

use super::*;

fn header(words: [u32; 3]) -> Result<Header, MessageError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Header::decode(bytes.try_into().unwrap())
}

#[test]
fn headers() {
    assert!(header([1, 9, 8]).unwrap().needs_reply());
    assert_eq!(header([1, 2, 8]), Err(MessageError::Version(2)));
    assert_eq!(header([1, 1, 4097]), Err(MessageError::TooLong(4097)));
    let reply = Header::reply(11, &[1, 2]);
    assert_eq!(header([11, 5, 2]), Header::decode(reply[..12].try_into().unwrap()));
    assert_eq!(reply[12..], [1, 2]);
}

#[test]
fn memory_tables() {
    let mut body = vec![0; 8 + 2 * 32];
    body[0] = 1;
    body[8..16].copy_from_slice(&0x1000u64.to_ne_bytes());
    let one = MemoryRegion { guest: 0x1000, size: 0, user: 0, offset: 0 };
    assert_eq!(MemoryRegion::decode_table(&body), Ok(vec![one]));
    body[0] = 2;
    assert_eq!(MemoryRegion::decode_table(&body).unwrap().len(), 2);
    body[0] = 3;
    assert_eq!(MemoryRegion::decode_table(&body), Err(MessageError::Body { len: 72, min: 104, max: 104 }));
    body[0] = 9;
    assert_eq!(MemoryRegion::decode_table(&body), Err(MessageError::Regions(9)));
}

#[test]
fn a_descriptor_must_come_if_and_only_if_the_body_says_so() {
    let decode = |value: u64, fds: usize| {
        let fd = || std::fs::File::open("/dev/null").unwrap().into();
        let header = header([12, 1, 8]).unwrap();
        let body = value.to_ne_bytes().to_vec();
        VringFd::decode(Message { header, body, fds: (0..fds).map(|_| fd()).collect() })
            .map(|vring| (vring.index, vring.fd.is_some()))
    };
    assert_eq!(decode(3, 1), Ok((3, true)));
    assert_eq!(decode(NO_FD | 3, 0), Ok((3, false)));
    assert_eq!(decode(3, 0), Err(MessageError::Fds { got: 0, expected: 1 }));
    assert_eq!(decode(NO_FD, 1), Err(MessageError::Fds { got: 1, expected: 0 }));
    assert_eq!(decode(3, 2), Err(MessageError::Fds { got: 2, expected: 1 }));
}
