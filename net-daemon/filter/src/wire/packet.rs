//! IP packets of both families.

use std::net::IpAddr;

/// An IP address as words: high, low. An IPv4 address is the low half of the low one. Words are moved and
/// compared as they are; the bytes of an [`IpAddr`] are at odd places, which takes a frame some ten ns more.
pub type Words = [u64; 2];

/// Returns the words of `address`.
pub fn words(address: IpAddr) -> Words {
    match address {
        IpAddr::V4(v4) => [0, v4.to_bits().into()],
        IpAddr::V6(v6) => [(v6.to_bits() >> 64) as u64, v6.to_bits() as u64],
    }
}

/// Returns the address with these words.
pub fn address([high, low]: Words, is_ipv4: bool) -> IpAddr {
    match is_ipv4 {
        true => IpAddr::V4((low as u32).into()),
        false => IpAddr::V6((u128::from(high) << 64 | u128::from(low)).into()),
    }
}

/// What the headers of an IP packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Whether it is of IPv4, otherwise of IPv6.
    pub is_ipv4: bool,
    /// The source address.
    pub source_words: Words,
    /// The destination address.
    pub destination_words: Words,
    /// Protocol number of what the packet carries, behind extension headers.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Offset of what it carries, in the frame.
    pub transport: usize,
    /// Offset of its end, in the frame.
    pub end: usize,
    /// The place within a fragmented packet.
    pub fragment: Option<Fragment>,
    /// Whether there are IPv4 options or IPv6 extension headers, except fragment headers.
    pub options: bool,
    /// Whether it passes other hosts than its destination: a source route or routing header.
    pub rerouted: bool,
}

/// A fragment's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in bytes. 0: the first fragment, with the transport header.
    pub offset: usize,
}

impl Packet {
    /// Returns the source address.
    pub fn source(&self) -> IpAddr {
        address(self.source_words, self.is_ipv4)
    }

    /// Returns the destination address.
    pub fn destination(&self) -> IpAddr {
        address(self.destination_words, self.is_ipv4)
    }

    /// Returns the number of bytes that it carries.
    pub fn payload(&self) -> usize {
        self.end - self.transport
    }

    /// Whether it is a fragment other than the first.
    pub fn is_continuation(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset > 0)
    }
}
