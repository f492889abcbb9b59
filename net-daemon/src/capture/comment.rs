//! A frame's comments: its offloads, and why it was dropped.

use volt_net::capture::ring::Fate;

/// Flags and segment types of `struct virtio_net_hdr` (virtio 1.2, 5.1.6).
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const TCPV4: u8 = 1;
const UDP: u8 = 3;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

/// Returns why a frame was dropped or refused, if it was.
pub(super) fn fate(fate: Fate) -> Option<String> {
    match fate {
        Fate::Passed => None,
        Fate::Dropped(reason) => Some(format!("dropped: {}", reason.key())),
        Fate::Refused(reason) => Some(format!("refused: {} ({})", reason.name(), reason.text())),
        Fate::Noted(reason) => Some(format!("would be refused: {} ({})", reason.name(), reason.text())),
        Fate::DroppedSomehow => Some("dropped: unknown reason".to_owned()),
    }
}

/// Describes the offloads in a frame's header, if any.
pub(super) fn offloads(header: &[u8]) -> Option<String> {
    let ([flags, kind, rest @ ..], _) = header.split_first_chunk::<10>()?;
    let [hdr_len, size, start, offset] = [0, 2, 4, 6].map(|at| u16::from_le_bytes([rest[at], rest[at + 1]]));
    let mut said = Vec::new();
    if flags & NEEDS_CSUM != 0 {
        let at = u32::from(start) + u32::from(offset);
        said.push(format!("checksum from byte {start} on to be written at byte {at}"));
    }
    if flags & DATA_VALID != 0 {
        said.push("checksum verified".to_owned());
    }
    let others = flags & !(NEEDS_CSUM | DATA_VALID);
    if others != 0 {
        said.push(format!("flags {others:#x}"));
    }
    let name = match kind & !ECN {
        0 => None,
        TCPV4 => Some("TCP/IPv4 segments".to_owned()),
        TCPV6 => Some("TCP/IPv6 segments".to_owned()),
        UDP => Some("fragments of a UDP datagram".to_owned()),
        UDP_L4 => Some("UDP datagrams".to_owned()),
        other => Some(format!("segments of type {other}")),
    };
    if let Some(name) = name {
        said.push(format!("to be split into {name} of {size} bytes, each after {hdr_len} bytes of headers"));
    }
    if kind & ECN != 0 {
        said.push("ECN".to_owned());
    }
    (!said.is_empty()).then(|| format!("offload: {}", said.join(", ")))
}

#[cfg(test)]
mod tests {
    use volt_filter::reason::Reason;
    use volt_net::counters::DropReason;

    use super::*;

    fn said(flags: u8, kind: u8, fields: [u16; 4]) -> Option<String> {
        let fields = fields.map(u16::to_le_bytes).concat();
        offloads(&[&[flags, kind], &fields[..], &[9, 9]].concat())
    }

    #[test]
    fn a_header_is_described() {
        assert_eq!(said(0, 0, [0; 4]), None);
        // Without a flag or a type, the other fields mean nothing.
        assert_eq!(said(0, 0, [9; 4]), None);
        for (flags, kind, expected) in [
            (1, 0, "offload: checksum from byte 34 on to be written at byte 50"),
            (2, 0, "offload: checksum verified"),
            (4, 0, "offload: flags 0x4"),
            (
                1,
                0x81,
                "offload: checksum from byte 34 on to be written at byte 50, to be split into TCP/IPv4 \
                 segments of 1448 bytes, each after 66 bytes of headers, ECN",
            ),
            (
                0,
                4,
                "offload: to be split into TCP/IPv6 segments of 1448 bytes, each after 66 bytes of headers",
            ),
            (0, 5, "offload: to be split into UDP datagrams of 1448 bytes, each after 66 bytes of headers"),
            (
                0,
                9,
                "offload: to be split into segments of type 9 of 1448 bytes, each after 66 bytes of headers",
            ),
        ] {
            assert_eq!(said(flags, kind, [66, 1448, 34, 16]).as_deref(), Some(expected));
        }
        assert_eq!(offloads(&[1; 9]), None, "half a header has no description");
    }

    #[test]
    fn a_drop_is_named_like_its_counter() {
        assert_eq!(fate(Fate::Passed), None);
        let refused = Fate::Dropped(DropReason::TxRefused);
        assert_eq!(fate(refused).as_deref(), Some("dropped: tx_refused"));
    }

    #[test]
    fn a_refused_frame_has_the_filters_reason() {
        let because = "source_mac (the source MAC address is not the guest's)";
        let refused = fate(Fate::Refused(Reason::SourceMac));
        assert_eq!(refused, Some(format!("refused: {because}")));
        let noted = fate(Fate::Noted(Reason::SourceMac));
        assert_eq!(noted, Some(format!("would be refused: {because}")));
    }
}
