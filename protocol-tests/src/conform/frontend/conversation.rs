//! The messages of a front-end to a well-behaved back-end: all these checks read one conversation.

use super::front_checks;
use super::stage::{Stage, long};
use crate::backend::{Recorded, Script};
use crate::conform::{Finding, ensure};
use crate::wire::{feature, flags, protocol, request, request_name};

type Checked = Result<(), Finding>;

front_checks! {
    "conversation/headers", Must, Control, "vhost-user, Header",
    "Every message has version 1, no reply flag and no unknown flag.", headers;
    "conversation/body-lengths", Must, Control, "vhost-user, Front-end message types",
    "Every body has the length of its request.", body_lengths;
    "conversation/owner", Must, Control, "vhost-user, VHOST_USER_SET_OWNER",
    "SET_OWNER comes before anything is set up.", owner;
    "conversation/features-offered", Must, Control, "virtio 1.2, 2.2.1; vhost-user, VHOST_USER_SET_FEATURES",
    "Acknowledged features are offered by GET_FEATURES and include VERSION_1.", features_offered;
    "conversation/protocol-offered", Must, Control, "vhost-user, VHOST_USER_SET_PROTOCOL_FEATURES",
    "Acknowledged protocol features are offered by GET_PROTOCOL_FEATURES.", protocol_offered;
    "conversation/need-reply", Must, Control, "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
    "NEED_REPLY is not set before the message that negotiates REPLY_ACK.", need_reply;
    "conversation/requests-negotiated", Must, Control, "vhost-user, Protocol features",
    "Requests of a protocol feature come only after its negotiation.", requests_negotiated;
    "conversation/memory-descriptors", Must, Control,
    "vhost-user, VHOST_USER_SET_MEM_TABLE, VHOST_USER_ADD_MEM_REG",
    "Each memory region comes with its descriptor.", memory_descriptors;
    "conversation/memory-files", Must, Control, "vhost-user, Memory region description",
    "Each memory region lies within its file, has a length, and overlaps no other.", memory_files;
    "conversation/vring-complete", Robust, Control,
    "vhost-user, Ring states; back-ends in use start a ring by its descriptor",
    "A ring has its memory, size, base and addresses before its kick descriptor starts it.", vring_complete;
    "conversation/vring-size", Must, Control, "virtio 1.2, 2.7",
    "Ring sizes are powers of two from 1 to 32768.", vring_size;
    "conversation/vring-addresses", Must, Control, "vhost-user, A vring address description; virtio 1.2, 2.7",
    "The parts of a ring lie completely in shared memory, aligned to 16, 2 and 4.", vring_addresses;
    "conversation/vring-index", Robust, Control, "vhost-user, Multiple queue support (should)",
    "Requests name only vrings that the back-end has.", vring_index;
    "conversation/kick-descriptors", Must, Control,
    "vhost-user, VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_CALL",
    "Kick and call come with one pollable descriptor, or with bit 8 and none.",
    kick_descriptors;
    "conversation/enable", Must, Control, "vhost-user, Ring states",
    "With VHOST_USER_F_PROTOCOL_FEATURES each started ring of the first pair is enabled by a message.",
    enable;
}

/// Returns the messages for `wanted`, with their positions.
fn all(talk: &[Recorded], wanted: u32) -> impl Iterator<Item = (usize, &Recorded)> {
    talk.iter().enumerate().filter(move |(_, message)| message.request == wanted)
}

fn said(message: &Recorded) -> String {
    format!("{} with body {:02x?}", request_name(message.request), message.body)
}

fn headers(stage: &mut Stage) -> Checked {
    for message in stage.conversation()? {
        let good = message.flags & !flags::NEED_REPLY == flags::VERSION;
        ensure!(good, "{} has flags {:#x}", said(&message), message.flags);
    }
    Ok(())
}

fn body_lengths(stage: &mut Stage) -> Checked {
    for message in stage.conversation()? {
        let len = message.body.len();
        let good = match message.request {
            request::GET_FEATURES
            | request::GET_PROTOCOL_FEATURES
            | request::GET_QUEUE_NUM
            | request::GET_MAX_MEM_SLOTS
            | request::SET_OWNER
            | request::SET_BACKEND_REQ_FD
            | request::RESET_OWNER
            | request::RESET_DEVICE => len == 0,
            request::SET_MEM_TABLE => len == 8 + 32 * message.fds,
            request::ADD_MEM_REG | request::REM_MEM_REG | request::SET_VRING_ADDR => len == 40,
            request::GET_CONFIG | request::SET_CONFIG => {
                let size = message.body.get(4..8).and_then(|bytes| bytes.try_into().ok());
                size.is_some_and(|size| len == 12 + u32::from_le_bytes(size) as usize)
            }
            _ => len == 8,
        };
        ensure!(good, "{}: {len} bytes", said(&message));
    }
    Ok(())
}

fn owner(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    let owner = all(&talk, request::SET_OWNER).next().map(|(at, _)| at);
    let Some(owner) = owner else { return Err(Finding::Fail("no SET_OWNER".to_owned())) };
    for late in [request::SET_FEATURES, request::SET_MEM_TABLE, request::ADD_MEM_REG, request::SET_VRING_KICK]
    {
        let early = all(&talk, late).next().is_some_and(|(at, _)| at < owner);
        ensure!(!early, "{} comes before SET_OWNER", request_name(late));
    }
    Ok(())
}

fn features_offered(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    let offered = Script::default().features;
    let asked = all(&talk, request::GET_FEATURES).next().map(|(at, _)| at);
    for (at, message) in all(&talk, request::SET_FEATURES) {
        let surplus = long(message) & !offered;
        ensure!(asked.is_some_and(|asked| asked < at), "SET_FEATURES without GET_FEATURES");
        ensure!(surplus == 0, "SET_FEATURES acknowledges {surplus:#x}, which was not offered");
        ensure!(long(message) & feature::VERSION_1 != 0, "SET_FEATURES {:#x} lacks VERSION_1", long(message));
    }
    Ok(())
}

/// Returns the protocol features after the last message.
fn negotiated(talk: &[Recorded]) -> u64 {
    all(talk, request::SET_PROTOCOL_FEATURES).last().map_or(0, |(_, message)| long(message))
}

fn protocol_offered(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    let asked = all(&talk, request::GET_PROTOCOL_FEATURES).next().map(|(at, _)| at);
    for (at, message) in all(&talk, request::SET_PROTOCOL_FEATURES) {
        let surplus = long(message) & !Script::default().protocol;
        ensure!(asked.is_some_and(|asked| asked < at), "SET_PROTOCOL_FEATURES without GET_PROTOCOL_FEATURES");
        ensure!(surplus == 0, "SET_PROTOCOL_FEATURES acknowledges {surplus:#x}, which was not offered");
    }
    Ok(())
}

fn need_reply(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    for (at, message) in talk.iter().enumerate().filter(|(_, message)| message.flags & flags::NEED_REPLY != 0)
    {
        // User-mode Linux sets it on the message that acknowledges REPLY_ACK itself.
        let acked = (negotiated(&talk[..at]) | negotiated(&talk[..=at])) & protocol::REPLY_ACK != 0;
        ensure!(acked, "{} wants a reply before REPLY_ACK was negotiated", said(message));
    }
    Ok(())
}

fn requests_negotiated(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    for (at, message) in talk.iter().enumerate() {
        let needed = match message.request {
            request::GET_CONFIG | request::SET_CONFIG => protocol::CONFIG,
            request::GET_MAX_MEM_SLOTS | request::ADD_MEM_REG | request::REM_MEM_REG => {
                protocol::CONFIGURE_MEM_SLOTS
            }
            request::SET_BACKEND_REQ_FD => protocol::BACKEND_REQ,
            request::RESET_DEVICE => protocol::RESET_DEVICE,
            number if request_name(number) == "?" => return Err(Finding::Fail(format!("request {number}"))),
            _ => 0,
        };
        ensure!(negotiated(&talk[..at]) & needed == needed, "{} was not negotiated", said(message));
    }
    Ok(())
}

/// Guest address, length, front-end's address, offset.
type Region = [u64; 4];

/// Returns all shared regions, with the length of each one's file.
fn regions(talk: &[Recorded]) -> Vec<(Region, u64)> {
    let mut found = Vec::new();
    for message in talk {
        let start = match message.request {
            request::SET_MEM_TABLE | request::ADD_MEM_REG => 8,
            _ => continue,
        };
        let (bodies, _) = message.body[start.min(message.body.len())..].as_chunks::<32>();
        let regions = bodies.iter().map(|body| {
            let mut words = body.as_chunks().0.iter().copied().map(u64::from_le_bytes);
            [(); 4].map(|()| words.next().unwrap_or_default())
        });
        found.extend(regions.zip(message.files.iter().map(|(_, len)| *len)));
    }
    found
}

fn memory_descriptors(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    for (_, message) in all(&talk, request::SET_MEM_TABLE) {
        let count = message.body.first().copied().unwrap_or_default();
        ensure!(usize::from(count) == message.fds, "{count} regions with {} descriptors", message.fds);
    }
    for (_, message) in all(&talk, request::ADD_MEM_REG) {
        ensure!(message.fds == 1, "{} with {} descriptors", said(message), message.fds);
    }
    ensure!(!regions(&talk).is_empty(), "no memory was shared");
    Ok(())
}

fn memory_files(stage: &mut Stage) -> Checked {
    let mut regions = regions(&stage.conversation()?);
    for ([guest, size, _, offset], len) in &regions {
        let end = offset.checked_add(*size);
        let inside = *size > 0 && end.is_some_and(|end| end <= *len);
        ensure!(inside, "the region at {guest:#x}: {size:#x} bytes at {offset:#x} of a file of {len:#x}");
    }
    regions.sort_unstable();
    // QEMU shares the same regions again for each vhost device.
    regions.dedup();
    for pair in regions.windows(2) {
        let ([first, size, ..], [second, ..]) = (pair[0].0, pair[1].0);
        ensure!(first + size <= second, "the regions at {first:#x} and {second:#x} overlap");
    }
    Ok(())
}

/// Returns the first word of a body, which is the vring's number; for kick, call and err without bit 8.
fn index(message: &Recorded) -> u32 {
    let word = message.body.first_chunk().copied().map_or(u32::MAX, u32::from_le_bytes);
    match message.request {
        request::SET_VRING_KICK | request::SET_VRING_CALL | request::SET_VRING_ERR => word & 0xff,
        _ => word,
    }
}

fn vring_complete(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    for (at, kick) in all(&talk, request::SET_VRING_KICK) {
        let before = &talk[..at];
        for needed in [request::SET_VRING_NUM, request::SET_VRING_BASE, request::SET_VRING_ADDR] {
            let there = all(before, needed).any(|(_, message)| index(message) == index(kick));
            ensure!(there, "vring {} is started without {}", index(kick), request_name(needed));
        }
        ensure!(!regions(before).is_empty(), "vring {} is started without memory", index(kick));
    }
    Ok(())
}

fn size(message: &Recorded) -> u32 {
    message.body.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn vring_size(stage: &mut Stage) -> Checked {
    for (_, message) in all(&stage.conversation()?, request::SET_VRING_NUM) {
        let good = size(message).is_power_of_two() && size(message) <= 32768;
        ensure!(good, "vring {} has {} entries", index(message), size(message));
    }
    Ok(())
}

fn vring_addresses(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    let regions = regions(&talk);
    for (at, message) in all(&talk, request::SET_VRING_ADDR) {
        let long = |at: usize| {
            let bytes = message.body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let same = |(_, other): &(usize, &Recorded)| index(other) == index(message);
        let entries =
            all(&talk[..at], request::SET_VRING_NUM).filter(same).last().map_or(0, |(_, num)| size(num));
        let entries = u64::from(entries);
        let parts = [(8, 16, 16 * entries), (16, 4, 4 + 8 * entries), (24, 2, 4 + 2 * entries)];
        for (field, align, len) in parts {
            let address = long(field);
            let inside = regions.iter().any(|([_, size, user, _], _)| {
                address
                    .checked_sub(*user)
                    .and_then(|offset| offset.checked_add(len))
                    .is_some_and(|end| end <= *size)
            });
            ensure!(
                address.is_multiple_of(align),
                "{address:#x} is no multiple of {align}: {}",
                said(message)
            );
            ensure!(inside, "{len} bytes at {address:#x} are not shared: {}", said(message));
        }
    }
    Ok(())
}

fn vring_index(stage: &mut Stage) -> Checked {
    for message in stage.conversation()? {
        let names_vring = matches!(
            message.request,
            request::SET_VRING_NUM
                | request::SET_VRING_BASE
                | request::SET_VRING_ADDR
                | request::SET_VRING_ENABLE
                | request::GET_VRING_BASE
                | request::SET_VRING_KICK
                | request::SET_VRING_CALL
                | request::SET_VRING_ERR
        );
        let there = u64::from(index(&message)) < Script::default().queue_num;
        ensure!(!names_vring || there, "{} of {} vrings", said(&message), Script::default().queue_num);
    }
    Ok(())
}

fn kick_descriptors(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    for wanted in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
        for (_, message) in all(&talk, wanted) {
            let expected = usize::from(long(message) & 0x100 == 0);
            ensure!(message.fds == expected, "{} with {} descriptors", said(message), message.fds);
            for (name, _) in &message.files {
                // An eventfd, or the socket pair of UML.
                let good = ["eventfd", "socket:", "pipe:"].iter().any(|kind| name.contains(kind));
                ensure!(good, "{} carries {name}", said(message));
            }
        }
    }
    Ok(())
}

fn enable(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    let acked = all(&talk, request::SET_FEATURES).last().map_or(0, |(_, message)| long(message));
    if acked & feature::PROTOCOL_FEATURES == 0 {
        return Err(Finding::NotOffered("VHOST_USER_F_PROTOCOL_FEATURES was not acknowledged".to_owned()));
    }
    for (_, kick) in all(&talk, request::SET_VRING_KICK).filter(|(_, kick)| index(kick) < 2) {
        let enabled = all(&talk, request::SET_VRING_ENABLE)
            .any(|(_, message)| (index(message), size(message)) == (index(kick), 1));
        ensure!(enabled, "vring {} is never enabled", index(kick));
    }
    Ok(())
}
