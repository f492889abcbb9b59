//! Feature bits (virtio 1.2, section 2.2), and their names for logs and errors.
//!
//! This file has the bits of every device. Each device class has a file with its own bits, whose names begin
//! with the class: `VIRTIO_NET_F_MTU` is [`Features::NET_MTU`]. The same number has different meanings in
//! different classes. So [`Features::named`] needs the class.

use std::fmt;

use bitflags::bitflags;

/// Declares the bits of a class and a table of their names.
macro_rules! class {
    ($($(#[$doc:meta])* $constant:ident $name:ident = $bit:literal;)*) => {
        impl $crate::features::Features {
            $($(#[$doc])* pub const $constant: $crate::features::Features =
                $crate::features::Features::from_bits_retain(1 << $bit);)*
        }

        pub(super) const NAMES: $crate::features::Names =
            &[$(($crate::features::Features::$constant, stringify!($name)),)*];
    };
}
mod blk;
mod net;

bitflags! {
    /// A set of feature bits: bit N of the `u64` for feature N.
    #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// vhost only: log written pages.
        const VHOST_LOG_ALL = 1 << 26;
        /// A descriptor may point to a table of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// `used_event` and `avail_event` are in use.
        const EVENT_IDX = 1 << 29;
        /// vhost-user only: the front-end understands protocol features.
        const PROTOCOL_FEATURES = 1 << 30;
        /// The device follows virtio 1.0 or later.
        const VERSION_1 = 1 << 32;
        /// The device is behind an IOMMU.
        const ACCESS_PLATFORM = 1 << 33;
        /// Packed virtqueue layout.
        const RING_PACKED = 1 << 34;
        /// Buffers are used in the order in which they were made available.
        const IN_ORDER = 1 << 35;
        /// Notifications carry extra data.
        const NOTIFICATION_DATA = 1 << 38;
        /// A single queue can be reset.
        const RING_RESET = 1 << 40;
        /// Bits of device classes.
        const _ = !0;
    }
}

/// Bits with their names.
type Names = &'static [(Features, &'static str)];

/// A device class, for the names of its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Network device (5.1).
    Net,
    /// Block device (5.2).
    Blk,
    /// Entropy device (5.4), which has no bits of its own.
    Entropy,
}

impl Class {
    fn names(self) -> Names {
        match self {
            Class::Net => net::NAMES,
            Class::Blk => blk::NAMES,
            Class::Entropy => &[],
        }
    }
}

impl Features {
    /// Returns the set as text: names separated by spaces, `bit N` for a bit without a name, `none` for the
    /// empty set.
    pub fn named(self, class: Class) -> Named {
        Named(self, class)
    }
}

/// The text form of a set, from [`Features::named`].
#[derive(Clone, Copy, Debug)]
pub struct Named(Features, Class);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named(features, class) = *self;
        if features.is_empty() {
            return f.write_str("none");
        }
        let of_class =
            |one: Features| class.names().iter().find(|(bit, _)| *bit == one).map(|(_, name)| *name);
        let of_all = |one: Features| one.iter_names().next().map(|(name, _)| name);
        let mut space = "";
        for bit in (0..u64::BITS).filter(|bit| features.bits() >> bit & 1 == 1) {
            let one = Features::from_bits_retain(1 << bit);
            match of_class(one).or_else(|| of_all(one)) {
                Some(name) => write!(f, "{space}{name}")?,
                None => write!(f, "{space}bit {bit}")?,
            }
            space = " ";
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_the_names_of_their_class() {
        assert_eq!(Features::empty().named(Class::Net).to_string(), "none");
        let features = Features::NET_MTU | Features::NET_MAC | Features::VERSION_1;
        assert_eq!(features.named(Class::Net).to_string(), "MTU MAC VERSION_1");
        assert_eq!(features.named(Class::Blk).to_string(), "bit 3 RO VERSION_1");
        assert_eq!(features.named(Class::Entropy).to_string(), "bit 3 bit 5 VERSION_1");
    }
}
