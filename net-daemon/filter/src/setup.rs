//! The settings of a filter: who the guest is, and its policy. A state contains them.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::rules::prefix::Prefix;

/// Flows that the table holds by default.
pub const FLOWS: u32 = 16_384;
/// Smallest and largest number of flows.
pub const FLOWS_RANGE: std::ops::RangeInclusive<u32> = 64..=1_048_576;
/// Most addresses that a guest may have, given and learnt ones together.
pub const ADDRESSES: usize = 8;

/// The settings of a filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The guest's IP addresses, at most [`ADDRESSES`].
    pub addresses: Vec<IpAddr>,
    /// Where further addresses are learnt from.
    pub learn: Option<Learn>,
    /// Flows that the table holds, in [`FLOWS_RANGE`].
    pub flows: u32,
    /// The text of the policy file. `None`: the guard alone.
    pub policy: Option<String>,
}

/// How a guest's addresses are learnt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learn {
    /// The DHCP server whose answers count.
    pub dhcp: Option<Ipv4Addr>,
    /// Prefixes in which the guest may configure addresses by itself (SLAAC), first come.
    pub prefixes: Vec<Prefix>,
}
