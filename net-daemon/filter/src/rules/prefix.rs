//! Address prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Why a text is not a prefix.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PrefixError {
    /// Neither an address nor a prefix.
    #[error("'{0}' is not an address or prefix, like 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32")]
    Syntax(String),
    /// More bits than the address has.
    #[error("'{0}': a prefix of this family has at most {1} bits")]
    Length(String, u8),
    /// Bits beyond the prefix are set.
    #[error("'{0}' has bits beyond its length: did you mean {1}?")]
    HostBits(String, Prefix),
}

/// An address prefix of either family. A single address is a prefix of its full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// Creates the prefix of the first `len` bits of `address`. `None` if the family has fewer bits.
    pub const fn new(address: IpAddr, len: u8) -> Option<Prefix> {
        let (width, bits) = match address {
            IpAddr::V4(v4) => (32, v4.to_bits() as u128),
            IpAddr::V6(v6) => (128, v6.to_bits()),
        };
        if len > width {
            return None;
        }
        let kept = if len == 0 { 0 } else { bits >> (width - len) << (width - len) };
        let address = match address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(kept as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(kept)),
        };
        Some(Prefix { address, len })
    }

    /// Returns the number of bits.
    #[expect(clippy::len_without_is_empty, reason = "a length in bits")]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Returns the first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Whether `address` lies in this prefix.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                let differ = mine.to_bits() ^ other.to_bits();
                differ.checked_shr(32 - u32::from(self.len)).unwrap_or(0) == 0
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let differ = mine.to_bits() ^ other.to_bits();
                differ.checked_shr(128 - u32::from(self.len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether all of `other` lies in this prefix.
    pub fn covers(self, other: Prefix) -> bool {
        self.len <= other.len && self.contains(other.address)
    }

    /// Returns the two halves. `None` for a single address.
    pub fn halves(self) -> Option<[Prefix; 2]> {
        let len = self.len + 1;
        let second = match self.address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() | 1 << 32_u32.checked_sub(len.into())?).into(),
            IpAddr::V6(v6) => {
                Ipv6Addr::from_bits(v6.to_bits() | 1 << 128_u32.checked_sub(len.into())?).into()
            }
        };
        Some([Prefix { len, ..self }, Prefix { address: second, len }])
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Prefix {
        Prefix { address, len: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let syntax = || PrefixError::Syntax(text.to_owned());
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let Some(len) = len else { return Ok(address.into()) };
        let plain = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
        let len = len.parse().ok().filter(|_| plain).ok_or_else(syntax)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = Prefix::new(address, len).ok_or_else(|| PrefixError::Length(text.to_owned(), width))?;
        match prefix.address == address {
            true => Ok(prefix),
            false => Err(PrefixError::HostBits(text.to_owned(), prefix)),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(v4) if self.len == 32 => write!(f, "{v4}"),
            IpAddr::V6(v6) if self.len == 128 => write!(f, "{v6}"),
            address => write!(f, "{address}/{}", self.len),
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Prefix, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn texts_are_read_and_written() {
        for text in ["192.0.2.0/24", "192.0.2.7", "0.0.0.0/0", "2001:db8::/32", "::/0", "fe80::1"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("192.0.2.7/32").to_string(), "192.0.2.7");
        for (text, why) in [
            ("192.0.2", "is not an address"),
            ("192.0.2.0/", "is not an address"),
            ("192.0.2.0/+8", "is not an address"),
            ("192.0.2.0/33", "at most 32 bits"),
            ("::/129", "at most 128 bits"),
            ("192.0.2.7/24", "did you mean 192.0.2.0/24?"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_prefix_contains_its_addresses_and_no_others() {
        for (text, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::/0", "ffff::", "0.0.0.0"),
            ("::ffff:0:0/96", "::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert!(prefix(text).contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!prefix(text).contains(outside.parse().unwrap()), "{text} {outside}");
        }
        let halves = |text| prefix(text).halves().map(|halves| halves.map(|half| half.to_string()));
        assert_eq!(halves("0.0.0.0/0"), Some(["0.0.0.0/1", "128.0.0.0/1"].map(String::from)));
        assert_eq!(halves("2001:db8::/127"), Some(["2001:db8::", "2001:db8::1"].map(String::from)));
        assert_eq!((halves("192.0.2.7"), halves("::1")), (None, None));
        assert!(prefix("10.0.0.0/8").covers(prefix("10.1.0.0/16")));
        assert!(!prefix("10.1.0.0/16").covers(prefix("10.0.0.0/8")));
    }
}
