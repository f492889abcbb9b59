//! Configuration space of the network device (virtio 1.2, section 5.1.4).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// `VIRTIO_NET_S_LINK_UP`: the link is up.
pub const STATUS_LINK_UP: u16 = 1;
/// `VIRTIO_NET_S_ANNOUNCE`: the driver is asked to announce itself.
pub const STATUS_ANNOUNCE: u16 = 2;
/// Smallest valid `mtu` (virtio 1.2, 5.1.4.1).
pub const MIN_MTU: u16 = 68;
/// `speed` when it is unknown.
pub const SPEED_UNKNOWN: u32 = u32::MAX;
/// `duplex` when it is unknown.
pub const DUPLEX_UNKNOWN: u8 = 0xff;

/// Length in bytes of the part of the configuration space that this device provides.
pub const CONFIG_LEN: usize = 17;

/// The reason why a text is not a usable MAC address.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MacError {
    /// Not six hexadecimal bytes.
    #[error("'{0}' is not a MAC address: six bytes in hexadecimal, like 52:54:00:12:34:56")]
    Syntax(String),
    /// A group address, which an interface cannot have.
    #[error("{0} is a multicast address: the lowest bit of the first byte must be 0")]
    Multicast(Mac),
    /// All bytes zero.
    #[error("00:00:00:00:00:00 is not a valid address: choose another, or omit it for a random one")]
    Zero,
}

/// A unicast Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Returns a random, locally administered unicast address.
    ///
    /// # Errors
    ///
    /// Fails if the system provides no random numbers.
    pub fn random() -> Result<Mac, getrandom::Error> {
        let mut bytes = [0; 6];
        getrandom::fill(&mut bytes)?;
        bytes[0] = bytes[0] & !1 | 2;
        Ok(Mac(bytes))
    }

    /// Whether this is a group address.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let syntax = || MacError::Syntax(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| matches!(part.len(), 1 | 2)).ok_or_else(syntax)?;
            // `from_str_radix` would accept a sign.
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        let mac = Mac(bytes);
        match parts.next() {
            Some(_) => Err(syntax()),
            None if bytes == [0; 6] => Err(MacError::Zero),
            None if mac.is_multicast() => Err(MacError::Multicast(mac)),
            None => Ok(mac),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `struct virtio_net_config`, decoded. The feature bits say which fields are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The device's address.
    pub mac: Mac,
    /// `STATUS_*` bits.
    pub status: u16,
    /// Queue pairs, 1 to 32,768.
    pub max_pairs: u16,
    /// Largest payload of a frame in bytes.
    pub mtu: u16,
    /// Mbit/s, or [`SPEED_UNKNOWN`].
    pub speed: u32,
    /// 0 half, 1 full, or [`DUPLEX_UNKNOWN`].
    pub duplex: u8,
}

impl NetConfig {
    /// Encodes it as the little-endian bytes that the driver reads.
    pub fn to_bytes(self) -> [u8; CONFIG_LEN] {
        let mut bytes = [0; CONFIG_LEN];
        bytes[0..6].copy_from_slice(&self.mac.0);
        bytes[6..8].copy_from_slice(&self.status.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.max_pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.speed.to_le_bytes());
        bytes[16] = self.duplex;
        bytes
    }

    /// The inverse of [`NetConfig::to_bytes`].
    pub fn from_bytes(bytes: &[u8; CONFIG_LEN]) -> NetConfig {
        let [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, t0, t1, v0, v1, v2, v3, duplex] = *bytes;
        NetConfig {
            mac: Mac([m0, m1, m2, m3, m4, m5]),
            status: u16::from_le_bytes([s0, s1]),
            max_pairs: u16::from_le_bytes([p0, p1]),
            mtu: u16::from_le_bytes([t0, t1]),
            speed: u32::from_le_bytes([v0, v1, v2, v3]),
            duplex,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text() {
        assert_eq!("52:54:0:12:34:56".parse(), Ok(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        assert_eq!("52-54-00-12-34-56".parse::<Mac>().unwrap().to_string(), "52:54:00:12:34:56");
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
        assert!(matches!("01:00:5e:00:00:01".parse::<Mac>(), Err(MacError::Multicast(_))));
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:+6", "52:54:00:12:34:567"] {
            assert!(matches!(bad.parse::<Mac>(), Err(MacError::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn random_mac_is_local_unicast() {
        let mac = Mac::random().unwrap();
        assert_eq!(mac.0[0] & 3, 2);
        assert_ne!(mac, Mac::random().unwrap());
    }

    #[test]
    fn config_bytes_round_trip() {
        let config = NetConfig {
            mac: Mac([2, 3, 4, 5, 6, 7]),
            status: STATUS_LINK_UP,
            max_pairs: 4,
            mtu: 9000,
            speed: 10_000,
            duplex: 1,
        };
        let bytes = config.to_bytes();
        assert_eq!(&bytes[..12], &[2, 3, 4, 5, 6, 7, 1, 0, 4, 0, 0x28, 0x23]);
        assert_eq!(NetConfig::from_bytes(&bytes), config);
    }
}
