//! Commands of the control virtqueue (virtio 1.2, section 5.1.6.5).
//!
//! [`execute`] parses the bytes of a [`Command`] and carries it out, or returns the reason for a refusal. The
//! server of the queue takes the chain off the ring and writes the [`ack`] back. That is
//! [`ControlQueue`](super::queue::ControlQueue) for front-ends that leave the queue to the back-end, and
//! volt-vmm for all of its own devices.

use log::debug;
use thiserror::Error;
use volt_virtio::features::{Class, Features};

use crate::config::Mac;

/// `VIRTIO_NET_OK`: the command was carried out.
const ACK_OK: u8 = 0;
/// `VIRTIO_NET_ERR`: the command was refused.
const ACK_ERR: u8 = 1;

/// Maximum length of a command in bytes: a MAC table command with two full tables of [`MAX_MAC_TABLE`]
/// addresses.
pub const MAX_COMMAND_LEN: usize = 2 + 2 * (4 + MAX_MAC_TABLE * 6);
/// Maximum number of addresses in one MAC table. For more, the driver falls back to a receive mode.
pub const MAX_MAC_TABLE: usize = 512;

/// A setting of the receive filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxMode {
    /// Accept every frame.
    Promiscuous,
    /// Accept every multicast frame.
    AllMulticast,
    /// Accept every unicast frame.
    AllUnicast,
    /// Drop multicast frames.
    NoMulticast,
    /// Drop unicast frames.
    NoUnicast,
    /// Drop broadcast frames.
    NoBroadcast,
}

/// One command of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `VIRTIO_NET_CTRL_RX_*`.
    SetRxMode(RxMode, bool),
    /// `VIRTIO_NET_CTRL_MAC_ADDR_SET`.
    SetMac(Mac),
    /// `VIRTIO_NET_CTRL_MAC_TABLE_SET`: unicast and multicast addresses to accept.
    SetMacTable {
        /// Unicast addresses.
        unicast: Vec<[u8; 6]>,
        /// Multicast addresses.
        multicast: Vec<[u8; 6]>,
    },
    /// `VIRTIO_NET_CTRL_VLAN_ADD`.
    AddVlan(u16),
    /// `VIRTIO_NET_CTRL_VLAN_DEL`.
    DeleteVlan(u16),
    /// `VIRTIO_NET_CTRL_ANNOUNCE_ACK`.
    AckAnnounce,
    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`: pairs that the driver uses from now on.
    SetPairs(u16),
    /// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`: the `GUEST_*` bits in force from now on.
    SetGuestOffloads(Features),
}

/// The reason why a command is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CommandError {
    /// More bytes than any command has.
    #[error("command of {0} bytes is too long")]
    Long(usize),
    /// Fewer bytes than the command's header or data need.
    #[error("command of {0} bytes is too short")]
    Short(usize),
    /// No such class and command, or its feature was not acknowledged.
    #[error("class {class} command {command} is not served")]
    Unknown {
        /// `class` of the command.
        class: u8,
        /// `command` within the class.
        command: u8,
    },
    /// Not between 1 and the number of pairs.
    #[error("{asked} queue pairs: must be 1 to {max}")]
    Pairs {
        /// Pairs in the command.
        asked: u16,
        /// Pairs of the device.
        max: u16,
    },
    /// A group address, which cannot be the device's own.
    #[error("{0} cannot be the device's address")]
    Mac(Mac),
    /// More addresses than [`MAX_MAC_TABLE`], or more than the bytes contain.
    #[error("MAC table of {0} entries")]
    MacTable(u32),
    /// A VLAN number above 4095.
    #[error("VLAN {0} does not exist")]
    Vlan(u16),
    /// Offloads that were not acknowledged.
    #[error("guest offloads that were not negotiated: {}", .0.named(Class::Net))]
    Offloads(Features),
}

/// Limits for commands.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Features that the driver acknowledged.
    pub acked: Features,
    /// `max_virtqueue_pairs` of the configuration space.
    pub max_pairs: u16,
}

/// Receive offloads that [`Command::SetGuestOffloads`] can contain (virtio 1.2, 5.1.6.5.6.1).
pub const GUEST_OFFLOADS: Features = Features::NET_GUEST_CSUM
    .union(Features::NET_GUEST_TSO4)
    .union(Features::NET_GUEST_TSO6)
    .union(Features::NET_GUEST_ECN)
    .union(Features::NET_GUEST_UFO)
    .union(Features::NET_GUEST_USO4)
    .union(Features::NET_GUEST_USO6);

/// Carries out one command of `len` bytes. `read` copies them from the driver's buffers: `class`, `command`
/// and the data, without the `ack` byte (see [`ack`]).
///
/// # Errors
///
/// See [`CommandError`]. Nothing was carried out then.
pub fn execute(
    len: usize,
    read: impl FnOnce(&mut [u8]) -> usize,
    limits: Limits,
    carry_out: impl FnOnce(Command),
) -> Result<(), CommandError> {
    if len > MAX_COMMAND_LEN {
        return Err(CommandError::Long(len));
    }
    let mut bytes = vec![0; len];
    let read = read(&mut bytes);
    bytes.truncate(read);
    let command = parse(&bytes, limits)?;
    debug!("control queue: {command:?}");
    carry_out(command);
    Ok(())
}

/// Returns the answer for the driver's buffer (`ack`, 5.1.6.5).
pub fn ack<E>(result: &Result<(), E>) -> u8 {
    if result.is_ok() { ACK_OK } else { ACK_ERR }
}

/// Parses the driver's part of a command: `class`, `command` and the data, without the `ack` byte.
///
/// # Errors
///
/// Fails for a command that gets [`ACK_ERR`]. The error is for the log.
fn parse(bytes: &[u8], limits: Limits) -> Result<Command, CommandError> {
    let [class, command, data @ ..] = bytes else {
        return Err(CommandError::Short(bytes.len()));
    };
    let unknown = CommandError::Unknown { class: *class, command: *command };
    let needed = match class {
        0 => Features::NET_CTRL_RX,
        1 if *command == 1 => Features::NET_CTRL_MAC_ADDR,
        1 => Features::NET_CTRL_RX,
        2 => Features::NET_CTRL_VLAN,
        3 => Features::NET_GUEST_ANNOUNCE,
        4 => Features::NET_MQ,
        5 => Features::NET_CTRL_GUEST_OFFLOADS,
        _ => return Err(unknown),
    };
    if !limits.acked.contains(needed) {
        return Err(unknown);
    }
    match (class, command) {
        (0, mode) => rx_mode(*mode, data, unknown),
        (1, 0) => mac_table(data),
        (1, 1) => match Mac(array(data)?) {
            mac if mac.is_multicast() || mac.0 == [0; 6] => Err(CommandError::Mac(mac)),
            mac => Ok(Command::SetMac(mac)),
        },
        (2, 0) => vlan(data).map(Command::AddVlan),
        (2, 1) => vlan(data).map(Command::DeleteVlan),
        (3, 0) => Ok(Command::AckAnnounce),
        (4, 0) => match u16::from_le_bytes(array(data)?) {
            asked if asked == 0 || asked > limits.max_pairs => {
                Err(CommandError::Pairs { asked, max: limits.max_pairs })
            }
            pairs => Ok(Command::SetPairs(pairs)),
        },
        (5, 0) => {
            let asked = Features::from_bits_retain(u64::from_le_bytes(array(data)?));
            let surplus = asked.difference(GUEST_OFFLOADS.intersection(limits.acked));
            if surplus.is_empty() {
                Ok(Command::SetGuestOffloads(asked))
            } else {
                Err(CommandError::Offloads(surplus))
            }
        }
        _ => Err(unknown),
    }
}

/// Returns the first `N` bytes of a command's data. More may follow: the specification lets structures grow.
fn array<const N: usize>(data: &[u8]) -> Result<[u8; N], CommandError> {
    data.first_chunk().copied().ok_or(CommandError::Short(data.len() + 2))
}

fn rx_mode(command: u8, data: &[u8], unknown: CommandError) -> Result<Command, CommandError> {
    let mode = match command {
        0 => RxMode::Promiscuous,
        1 => RxMode::AllMulticast,
        2 => RxMode::AllUnicast,
        3 => RxMode::NoMulticast,
        4 => RxMode::NoUnicast,
        5 => RxMode::NoBroadcast,
        _ => return Err(unknown),
    };
    let [on] = array(data)?;
    Ok(Command::SetRxMode(mode, on != 0))
}

fn vlan(data: &[u8]) -> Result<u16, CommandError> {
    match u16::from_le_bytes(array(data)?) {
        id if id > 4095 => Err(CommandError::Vlan(id)),
        id => Ok(id),
    }
}

/// Parses two tables, each a 32-bit count and its addresses.
fn mac_table(data: &[u8]) -> Result<Command, CommandError> {
    let (unicast, rest) = one_mac_table(data)?;
    let (multicast, _) = one_mac_table(rest)?;
    Ok(Command::SetMacTable { unicast, multicast })
}

fn one_mac_table(data: &[u8]) -> Result<(Vec<[u8; 6]>, &[u8]), CommandError> {
    let entries = u32::from_le_bytes(array(data)?);
    let len = usize::try_from(entries).ok().filter(|len| *len <= MAX_MAC_TABLE);
    let table = len.and_then(|len| data[4..].split_at_checked(len * 6));
    let (table, rest) = table.ok_or(CommandError::MacTable(entries))?;
    Ok((table.as_chunks().0.to_vec(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Limits = Limits { acked: Features::from_bits_retain(u64::MAX), max_pairs: 4 };

    #[test]
    fn pairs() {
        assert_eq!(parse(&[4, 0, 2, 0], ALL), Ok(Command::SetPairs(2)));
        assert_eq!(parse(&[4, 0, 4, 0, 9, 9], ALL), Ok(Command::SetPairs(4)));
        assert_eq!(parse(&[4, 0, 0, 0], ALL), Err(CommandError::Pairs { asked: 0, max: 4 }));
        assert_eq!(parse(&[4, 0, 5, 0], ALL), Err(CommandError::Pairs { asked: 5, max: 4 }));
        assert_eq!(parse(&[4, 0, 5], ALL), Err(CommandError::Short(3)));
        assert_eq!(parse(&[4, 1, 5, 0], ALL), Err(CommandError::Unknown { class: 4, command: 1 }));
    }

    /// A command is acknowledged if it was carried out, and not if the driver made an error.
    #[test]
    fn commands_are_carried_out_and_acknowledged() {
        let run = |len: usize, bytes: &[u8]| {
            let mut commands = Vec::new();
            let copy = |into: &mut [u8]| {
                into.copy_from_slice(bytes);
                bytes.len()
            };
            let result = execute(len, copy, ALL, |command| commands.push(command));
            (ack(&result), result, commands)
        };
        assert_eq!(run(4, &[4, 0, 2, 0]), (ACK_OK, Ok(()), vec![Command::SetPairs(2)]));
        assert_eq!(
            run(4, &[4, 0, 5, 0]),
            (ACK_ERR, Err(CommandError::Pairs { asked: 5, max: 4 }), Vec::new())
        );
        // A command that is too long is not even read.
        let long = MAX_COMMAND_LEN + 1;
        assert_eq!(run(long, &[]), (ACK_ERR, Err(CommandError::Long(long)), Vec::new()));
    }

    #[test]
    fn a_command_needs_its_feature() {
        let none = Limits { acked: Features::NET_CTRL_VQ, max_pairs: 4 };
        for class in 0..=255 {
            assert_eq!(
                parse(&[class, 0, 1, 0, 0, 0, 0, 0, 0, 0], none),
                Err(CommandError::Unknown { class, command: 0 })
            );
        }
    }

    #[test]
    fn mac_tables() {
        let two = [1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 1];
        let command = Command::SetMacTable {
            unicast: vec![[2, 0, 0, 0, 0, 1]],
            multicast: vec![[0x33, 0x33, 0, 0, 0, 1]],
        };
        assert_eq!(parse(&two, ALL), Ok(command));
        assert_eq!(parse(&two[..21], ALL), Err(CommandError::MacTable(1)));
        assert_eq!(parse(&[1, 0, 255, 255, 255, 255], ALL), Err(CommandError::MacTable(u32::MAX)));
        assert!(parse(&two[..13], ALL).is_err());
    }

    #[test]
    fn the_others() {
        assert_eq!(parse(&[0, 1, 1], ALL), Ok(Command::SetRxMode(RxMode::AllMulticast, true)));
        assert_eq!(parse(&[2, 1, 0xff, 0x0f], ALL), Ok(Command::DeleteVlan(4095)));
        assert_eq!(parse(&[2, 0, 0, 0x10], ALL), Err(CommandError::Vlan(4096)));
        assert_eq!(parse(&[3, 0], ALL), Ok(Command::AckAnnounce));
        assert_eq!(parse(&[1, 1, 3, 0, 0, 0, 0, 1], ALL), Err(CommandError::Mac(Mac([3, 0, 0, 0, 0, 1]))));
        let offloads = Features::NET_GUEST_CSUM.union(Features::NET_GUEST_TSO4);
        let mut bytes = vec![5, 0];
        bytes.extend(offloads.bits().to_le_bytes());
        assert_eq!(parse(&bytes, ALL), Ok(Command::SetGuestOffloads(offloads)));
        let less =
            Limits { acked: Features::NET_CTRL_GUEST_OFFLOADS.union(Features::NET_GUEST_CSUM), max_pairs: 1 };
        assert_eq!(parse(&bytes, less), Err(CommandError::Offloads(Features::NET_GUEST_TSO4)));
    }
}
