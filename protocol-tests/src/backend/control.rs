//! The control queue of the scripted back-end (virtio 1.2, 5.1.6.5): it sets only the number of pairs.

use super::fault::Fault;

/// Class and command that set the number of pairs.
const PAIRS_SET: [u8; 2] = [4, 0];
/// Answers of the device.
const OK: u8 = 0;
const ERR: u8 = 1;

/// Returns the index of its vring: after all pairs if MQ was negotiated, otherwise after the first.
pub(super) fn vring(mq: bool, pairs: u16, fault: Option<Fault>) -> u32 {
    if mq && fault != Some(Fault::ControlFixed) { 2 * u32::from(pairs) } else { 2 }
}

/// Returns whether the device knows a command.
pub(super) fn known(command: &[u8]) -> bool {
    command.starts_with(&PAIRS_SET)
}

/// Returns the answer to a command of a device with this many pairs.
pub(super) fn answer(command: &[u8], mq: bool, pairs: u16, fault: Option<Fault>) -> u8 {
    let number = match command {
        [class, number, low, high] if [*class, *number] == PAIRS_SET => u16::from_le_bytes([*low, *high]),
        _ => return ERR,
    };
    let can_be = (1..=pairs).contains(&number) || fault == Some(Fault::AnyPairs);
    let negotiated = mq || fault == Some(Fault::PairsUnasked);
    if can_be && negotiated { OK } else { ERR }
}
