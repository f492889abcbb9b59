//! Feature bits of virtio and of its network device, and their names for logs and errors.
//!
//! This is the only list: what is offered is composed from it in [`crate::net::device`], what is
//! acknowledged is tested against it.

use std::fmt;

/// A set of virtio feature bits, bit N of the `u64` for feature N (virtio 1.2, 2.2 and 5.1.3).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u64);

/// Declares the constants and the table of their names from one list.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Features = Features(1 << $bit);)*
            const NAMES: &'static [(Features, &'static str)] = &[$((Self::$name, stringify!($name)),)*];
        }
    };
}

features! {
    /// Device takes frames with partial checksums from the driver.
    CSUM = 0;
    /// Driver takes frames with partial checksums.
    GUEST_CSUM = 1;
    /// Driver may change its receive offloads at run time by the control queue.
    CTRL_GUEST_OFFLOADS = 2;
    /// `mtu` of the configuration space is valid.
    MTU = 3;
    /// `mac` of the configuration space is valid.
    MAC = 5;
    /// Driver takes TCP segmentation over IPv4.
    GUEST_TSO4 = 7;
    /// Driver takes TCP segmentation over IPv6.
    GUEST_TSO6 = 8;
    /// Driver takes TCP segmentation with ECN.
    GUEST_ECN = 9;
    /// Driver takes UDP fragmentation (obsolete).
    GUEST_UFO = 10;
    /// Device takes TCP segmentation over IPv4.
    HOST_TSO4 = 11;
    /// Device takes TCP segmentation over IPv6.
    HOST_TSO6 = 12;
    /// Device takes TCP segmentation with ECN.
    HOST_ECN = 13;
    /// Device takes UDP fragmentation (obsolete).
    HOST_UFO = 14;
    /// Driver merges several receive buffers into one frame.
    MRG_RXBUF = 15;
    /// `status` of the configuration space is valid.
    STATUS = 16;
    /// There is a control virtqueue.
    CTRL_VQ = 17;
    /// Control queue takes receive-mode commands.
    CTRL_RX = 18;
    /// Control queue takes VLAN filter commands.
    CTRL_VLAN = 19;
    /// Driver can send gratuitous frames when asked.
    GUEST_ANNOUNCE = 21;
    /// Several queue pairs, chosen by the control queue.
    MQ = 22;
    /// Control queue takes a MAC address.
    CTRL_MAC_ADDR = 23;
    /// vhost only: log written pages.
    VHOST_LOG_ALL = 26;
    /// A descriptor may point to a table of descriptors.
    INDIRECT_DESC = 28;
    /// `used_event` and `avail_event` are in use.
    EVENT_IDX = 29;
    /// vhost-user only: the front-end understands protocol features.
    PROTOCOL_FEATURES = 30;
    /// The device follows virtio 1.0 or later.
    VERSION_1 = 32;
    /// The device is behind an IOMMU.
    ACCESS_PLATFORM = 33;
    /// Packed virtqueue layout.
    RING_PACKED = 34;
    /// Buffers are used in the order in which they were made available.
    IN_ORDER = 35;
    /// Notifications carry extra data.
    NOTIFICATION_DATA = 38;
    /// A single queue can be reset.
    RING_RESET = 40;
    /// Driver takes UDP segmentation over IPv4.
    GUEST_USO4 = 54;
    /// Driver takes UDP segmentation over IPv6.
    GUEST_USO6 = 55;
    /// Device takes UDP segmentation.
    HOST_USO = 56;
    /// Device can report flow hashes.
    HASH_REPORT = 57;
    /// `hdr_len` of the frame header is exact.
    GUEST_HDRLEN = 59;
    /// Device takes a receive-steering table.
    RSS = 60;
    /// Device reports coalesced segments.
    RSC_EXT = 61;
    /// The device is one of a failover pair.
    STANDBY = 62;
    /// `speed` and `duplex` of the configuration space are valid.
    SPEED_DUPLEX = 63;
}

impl Features {
    /// The empty set.
    pub const NONE: Features = Features(0);

    /// Whether every bit of `other` is in `self`.
    pub const fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether at least one bit of `other` is in `self`.
    pub const fn has_any(self, other: Features) -> bool {
        self.0 & other.0 != 0
    }

    /// Bits of `self` or of `other`.
    pub const fn with(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// Bits of `self` that are not in `other`.
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// Bits of `self` and of `other`.
    pub const fn common(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }

    /// Whether no bit is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Features {
    /// Names joined by spaces, `bit N` for a bit without a name, `none` for the empty set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut space = "";
        for bit in (0..64).filter(|bit| self.0 >> bit & 1 == 1) {
            let one = Features(1 << bit);
            match Self::NAMES.iter().find(|(feature, _)| *feature == one) {
                Some((_, name)) => write!(f, "{space}{name}")?,
                None => write!(f, "{space}bit {bit}")?,
            }
            space = " ";
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ({self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_known_and_unknown_bits() {
        assert_eq!(Features::NONE.to_string(), "none");
        assert_eq!(Features::MTU.with(Features::VERSION_1).to_string(), "MTU VERSION_1");
        assert_eq!(Features(1 << 6).to_string(), "bit 6");
    }

    #[test]
    fn sets() {
        let a = Features::CSUM.with(Features::MAC);
        assert!(a.has(Features::CSUM) && a.has(a) && !Features::CSUM.has(a));
        assert!(a.has_any(Features::MAC.with(Features::MTU)));
        assert_eq!(a.without(Features::CSUM), Features::MAC);
    }
}
