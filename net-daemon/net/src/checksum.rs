//! Checksums of the Internet protocols (RFC 1071).

/// Returns the ones' complement sum of the 16-bit words of at most 128 KiB, the last one filled up with a
/// zero byte.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    // At most 65,536 words: no overflow.
    let sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    fold(sum + rest.first().map_or(0, |last| u32::from(*last) << 8))
}

/// Returns the ones' complement sum of sums.
pub(crate) fn add(sums: &[u16]) -> u16 {
    fold(sums.iter().map(|sum| u32::from(*sum)).sum())
}

/// Returns the checksum field for data with this sum. In UDP, 0 means no checksum; its complement is
/// equivalent.
pub(crate) fn checksum(sum: u16) -> [u8; 2] {
    match !sum {
        0 => [0xff; 2],
        sum => sum.to_be_bytes(),
    }
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
