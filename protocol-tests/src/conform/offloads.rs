//! Offload headers of every kind, both ways and compared with their frames, and invalid headers.

use super::bench::{Bench, LIMIT};
use super::{Finding, checks, ensure};
use crate::frame::{NetHeader, gso, tcp, udp, uso_header};
use crate::session::Setup;
use crate::wire::feature;

type Result = std::result::Result<(), Finding>;

/// Features that let each side leave checksums to the other.
const CHECKSUM: u64 = feature::CSUM | feature::GUEST_CSUM;
const TSO4: u64 = CHECKSUM | feature::HOST_TSO4 | feature::GUEST_TSO4;
const TSO6: u64 = CHECKSUM | feature::HOST_TSO6 | feature::GUEST_TSO6;
const ECN: u64 = TSO4 | feature::HOST_ECN | feature::GUEST_ECN;
const USO: u64 = CHECKSUM | feature::HOST_USO | feature::GUEST_USO4 | feature::GUEST_USO6;

checks! {
    "offloads/checksum", Robust, Frames, "virtio 1.2, 5.1.6.2 and 5.1.6.4.1 (MAY)",
        "A frame without its checksum stays marked as such, both ways.", |b| {
            let header = NetHeader { gso_type: gso::NONE, hdr_len: 0, gso_size: 0, ..uso_header(0) };
            passes(b, CHECKSUM, &header, &udp((1, 1111), (2, 2222), &[0x5a; 700]))
        };
    "offloads/tso4", Robust, Frames, "virtio 1.2, 5.1.6.2 and 5.1.6.4.1 (MAY)",
        "TCP over IPv4 passes unsegmented, with its segment size, both ways.",
        |b| segmented(b, TSO4, gso::TCPV4, false);
    "offloads/tso4-ecn", Robust, Frames, "virtio 1.2, 5.1.6.2 and 5.1.6.4.1 (MAY)",
        "The mark for explicit congestion notification passes with the segment, both ways.",
        |b| segmented(b, ECN, gso::TCPV4 | gso::ECN, false);
    "offloads/tso6", Robust, Frames, "virtio 1.2, 5.1.6.2 and 5.1.6.4.1 (MAY)",
        "TCP over IPv6 passes unsegmented, with its segment size, both ways.",
        |b| segmented(b, TSO6, gso::TCPV6, true);
    "offloads/uso", Robust, Frames, "virtio 1.2, 5.1.6.2 and 5.1.6.4.1 (MAY; USO is later than 1.2)",
        "UDP passes unsegmented, with its segment size, both ways.",
        |b| passes(b, USO, &uso_header(1000), &udp((1, 1111), (2, 2222), &[0x5a; 4000]));
    "offloads/senseless", Robust, Completion, "virtio 1.2, 5.1.6.2.2 (fields are not to be relied on)",
        "Chains with invalid headers are returned, and the ring keeps running.", senseless;
}

fn segmented(bench: &mut Bench, features: u64, kind: u8, v6: bool) -> Result {
    let (frame, start) = tcp(v6, kind & gso::ECN != 0, &[0x5a; 4000]);
    let header = NetHeader {
        flags: gso::NEEDS_CSUM,
        gso_type: kind,
        hdr_len: start + 20,
        gso_size: 1000,
        csum_start: start,
        csum_offset: 16,
        num_buffers: 0,
    };
    passes(bench, features, &header, &frame)
}

fn passes(bench: &mut Bench, features: u64, header: &NetHeader, frame: &[u8]) -> Result {
    let base = Setup::default();
    let mut session = bench.started(&Setup { features: base.features | features, ..base })?;
    Bench::offered(&session, features, &format!("the features {features:#x} together"))?;
    session.rx(0).fill(16, &[8192])?;
    session.tx(0).send_cut(header, frame, &[12, 30], LIMIT)?;
    let left = bench.leaves_exactly(&mut session, frame)?;
    compare("left", header, &left)?;
    if let Some(arrived) = bench.arrives_with(&mut session, header, frame)? {
        compare("arrived", header, &arrived)?;
    }
    Ok(())
}

fn compare(how: &str, sent: &NetHeader, got: &NetHeader) -> Result {
    let fields = |header: &NetHeader| {
        let size = if header.gso_type == gso::NONE { 0 } else { header.gso_size };
        (header.flags & gso::NEEDS_CSUM, header.gso_type, size, header.csum_start, header.csum_offset)
    };
    ensure!(fields(sent) == fields(got), "the frame {how} with {got:?} for {sent:?}");
    Ok(())
}

fn senseless(bench: &mut Bench) -> Result {
    let plain = NetHeader::default();
    let wrong = [
        NetHeader { gso_type: 77, gso_size: 1000, ..plain },
        NetHeader { gso_type: gso::TCPV4, gso_size: 0, hdr_len: 54, ..plain },
        NetHeader { gso_type: gso::TCPV4, gso_size: 1000, hdr_len: 65_535, ..plain },
        NetHeader { flags: gso::NEEDS_CSUM, csum_start: 60_000, csum_offset: 6, ..plain },
        NetHeader { flags: gso::NEEDS_CSUM, csum_start: 100, csum_offset: 65_000, ..plain },
        NetHeader::decode(&[0xff; 12]),
    ];
    let mut session = bench.session(&Setup::default())?;
    for header in wrong {
        let frame = bench.frame(200);
        session.tx(0).send_cut(&header, &frame, &[], LIMIT)?;
    }
    drop(session);
    bench.serves()
}
