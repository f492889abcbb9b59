//! Values in a policy file: addresses, ports, protocols and MAC addresses, alone or in a list.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr};

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

use super::prefix::{Prefix, PrefixError};
use super::protocol::Protocol;
use super::rule::Ports;

/// A value that is written as a text, or also as a number.
pub(super) trait Item: Sized {
    /// What to write.
    const EXPECTED: &'static str;

    fn from_text(text: &str) -> Result<Self, String>;

    fn from_number(_number: i64) -> Option<Self> {
        None
    }
}

/// One value.
#[derive(Debug)]
pub(super) struct One<T>(pub(super) T);

/// One value, or a list of them.
#[derive(Debug)]
pub(super) struct Many<T>(pub(super) Vec<T>);

impl<T> Default for Many<T> {
    fn default() -> Many<T> {
        Many(Vec::new())
    }
}

struct OneVisitor<T>(PhantomData<T>);

impl<T: Item> Visitor<'_> for OneVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        T::from_number(number).ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }
}

impl<'de, T: Item> Deserialize<'de> for One<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<One<T>, D::Error> {
        from.deserialize_any(OneVisitor(PhantomData)).map(One)
    }
}

struct ManyVisitor<T>(PhantomData<T>);

impl<'de, T: Item> Visitor<'de> for ManyVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list", T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
        OneVisitor(PhantomData).visit_str(text).map(|one| vec![one])
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Vec<T>, E> {
        OneVisitor(PhantomData).visit_i64(number).map(|one| vec![one])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(One(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(items)
    }
}

impl<'de, T: Item> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Many<T>, D::Error> {
        from.deserialize_any(ManyVisitor(PhantomData)).map(Many)
    }
}

impl Item for Prefix {
    const EXPECTED: &'static str = "an address or prefix like \"192.0.2.0/24\"";

    fn from_text(text: &str) -> Result<Prefix, String> {
        text.parse().map_err(|error: PrefixError| error.to_string())
    }
}

/// Whom a rule is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    Any,
    Prefix(Prefix),
}

impl Peer {
    /// Returns the prefixes.
    pub(super) fn prefixes(self) -> Vec<Prefix> {
        match self {
            Peer::Prefix(prefix) => vec![prefix],
            Peer::Any => {
                let unspecified: [IpAddr; 2] = [[0; 4].into(), [0; 16].into()];
                unspecified.into_iter().filter_map(|address| Prefix::new(address, 0)).collect()
            }
        }
    }
}

impl Item for Peer {
    const EXPECTED: &'static str = "an address or prefix like \"192.0.2.0/24\", or \"any\"";

    fn from_text(text: &str) -> Result<Peer, String> {
        if text == "any" {
            return Ok(Peer::Any);
        }
        Prefix::from_text(text).map(Peer::Prefix)
    }
}

impl Item for IpAddr {
    const EXPECTED: &'static str = "an IP address like \"192.0.2.1\"";

    fn from_text(text: &str) -> Result<IpAddr, String> {
        text.parse().map_err(|_| format!("'{text}' is not an IP address, like 192.0.2.1 or fe80::1"))
    }
}

impl Item for Ipv4Addr {
    const EXPECTED: &'static str = "an IPv4 address like \"192.0.2.1\"";

    fn from_text(text: &str) -> Result<Ipv4Addr, String> {
        text.parse().map_err(|_| format!("'{text}' is not an IPv4 address, like 192.0.2.1"))
    }
}

impl Item for Protocol {
    const EXPECTED: &'static str = "a protocol: a name like \"tcp\", or a number from 0 to 255";

    fn from_text(text: &str) -> Result<Protocol, String> {
        Protocol::from_text(text).map_err(|error| error.to_string())
    }

    fn from_number(number: i64) -> Option<Protocol> {
        number.try_into().ok().map(Protocol::Number)
    }
}

impl Item for Ports {
    const EXPECTED: &'static str = "a port from 1 to 65535, or a range like \"8000-8100\"";

    fn from_text(text: &str) -> Result<Ports, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|port: &u16| is_plain && *port > 0)
        };
        let wrong = || format!("'{text}' is not {}", Self::EXPECTED);
        let (first, last) = port(first).zip(port(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(format!("'{text}' is empty: did you mean \"{last}-{first}\"?"));
        }
        Ok(Ports(first..=last))
    }

    fn from_number(number: i64) -> Option<Ports> {
        let port = number.try_into().ok().filter(|port| *port > 0)?;
        Some(Ports(port..=port))
    }
}

/// A MAC address of one host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mac(pub(super) [u8; 6]);

impl Item for Mac {
    const EXPECTED: &'static str = "a MAC address like \"52:54:00:00:00:01\"";

    fn from_text(text: &str) -> Result<Mac, String> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
            let part = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = part.ok_or_else(|| format!("'{text}' is not {}", Self::EXPECTED))?;
        }
        if parts.next().is_some() {
            return Err(format!("'{text}' is not {}", Self::EXPECTED));
        }
        if mac == [0; 6] || mac[0] & 1 == 1 {
            return Err(format!("'{text}' is not the MAC address of one host"));
        }
        Ok(Mac(mac))
    }
}
