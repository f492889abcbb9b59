//! The sections of the specifications that checks name as sources. Tests check that each named section
//! exists; `--explain` shows their titles.

use crate::wire::request_name;

/// Sections of virtio 1.2 by their numbers.
const VIRTIO: &[(&str, &str)] = &[
    ("2.2", "Feature Bits"),
    ("2.2.1", "Driver Requirements: Feature Bits"),
    ("2.7", "Split Virtqueues"),
    ("2.7.4.1", "Device Requirements: Message Framing"),
    ("2.7.5", "The Virtqueue Descriptor Table"),
    ("2.7.5.2", "Driver Requirements: The Virtqueue Descriptor Table"),
    ("2.7.5.3", "Indirect Descriptors"),
    ("2.7.5.3.2", "Device Requirements: Indirect Descriptors"),
    ("2.7.6", "The Virtqueue Available Ring"),
    ("2.7.7.2", "Device Requirements: Used Buffer Notification Suppression"),
    ("2.7.8", "The Virtqueue Used Ring"),
    ("2.7.8.2", "Device Requirements: The Virtqueue Used Ring"),
    ("2.7.10.2", "Device Requirements: Available Buffer Notification Suppression"),
    ("2.7.14", "Receiving Used Buffers From The Device"),
    ("5.1.2", "Virtqueues (of the network device)"),
    ("5.1.4", "Device configuration layout (of the network device)"),
    ("5.1.6", "Device Operation (of the network device)"),
    ("5.1.6.2", "Packet Transmission"),
    ("5.1.6.2.2", "Device Requirements: Packet Transmission"),
    ("5.1.6.3", "Setting Up Receive Buffers"),
    ("5.1.6.4", "Processing of Incoming Packets"),
    ("5.1.6.4.1", "Device Requirements: Processing of Incoming Packets"),
    ("5.1.6.5", "Control Virtqueue"),
    ("5.1.6.5.5", "Device operation in multiqueue mode"),
    ("6", "Reserved Feature Bits"),
];

/// Sections of the vhost-user protocol that do not describe one message.
const VHOST_USER: &[&str] = &[
    "Header",
    "Payload",
    "A vring address description",
    "Memory region description",
    "Multiple Memory regions description",
    "Log description",
    "Communication",
    "Ring states",
    "Multiple queue support",
    "Migration",
    "Protocol features",
    "Front-end message types",
    "VHOST_USER_PROTOCOL_F_REPLY_ACK",
];

/// Returns a source without its remark in parentheses or after a colon.
fn bare(reference: &str) -> &str {
    reference.split(['(', ':']).next().unwrap_or_default().trim()
}

/// Returns the titles of the sections that `source` names, in its order; none if it names no specification.
///
/// # Errors
///
/// Returns a reference that names no section.
pub fn titles(source: &'static str) -> Result<Vec<&'static str>, &'static str> {
    let mut found = Vec::new();
    for reference in source.split("; ") {
        if let Some(numbers) = reference.strip_prefix("virtio 1.2, ") {
            for number in bare(numbers).split(" and ") {
                let section = VIRTIO.iter().find(|(known, _)| *known == number);
                found.push(section.ok_or(reference)?.1);
            }
        } else if let Some(names) = reference.strip_prefix("vhost-user, ") {
            for name in bare(names).split([',', '/']).flat_map(|part| part.split(" and ")).map(str::trim) {
                let message = name.strip_prefix("VHOST_USER_").unwrap_or(name);
                let is_message = (1..=43).any(|request| request_name(request) == message);
                if !is_message && !VHOST_USER.contains(&name) {
                    return Err(reference);
                }
                found.push(name);
            }
        } else if reference.contains("virtio") && reference.contains(|c: char| c.is_ascii_digit())
            || reference.starts_with("vhost-user")
        {
            return Err(reference);
        }
    }
    Ok(found)
}
