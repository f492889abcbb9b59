use super::*;

/// A frame of a driver: its header of virtio, protocol headers, and payload.
struct Frame {
    bytes: Vec<u8>,
    network: usize,
    transport: usize,
    payload: usize,
}

/// Returns a frame of TCP or UDP in `payload` bytes, with `tags` VLAN tags, to be cut into `size` bytes.
fn frame(is_v6: bool, is_tcp: bool, tags: usize, payload: usize, size: u16) -> Frame {
    let mut ethernet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    (0..tags).for_each(|_| ethernet.extend([0x81, 0, 0, 5]));
    ethernet.extend(if is_v6 { IPV6 } else { IPV4 }.to_be_bytes());
    let network = ethernet.len();
    let protocol = if is_tcp { TCP } else { UDP };
    let ip: Vec<u8> = match is_v6 {
        false => [&[0x46, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0][..], &[10; 8], &[1; 4]].concat(),
        true => [&[0x60, 0, 0, 0, 0, 0, protocol, 64][..], &[0xfd; 32]].concat(),
    };
    let transport = network + ip.len();
    let header = match is_tcp {
        true => [&[0; 4][..], &u32::MAX.to_be_bytes(), &[0; 4], &[0x60, 0x99], &[0; 6], &[1; 4]].concat(),
        false => vec![0; 8],
    };
    let kind = if !is_tcp { GSO_UDP_L4 } else { [GSO_TCPV4, GSO_TCPV6][usize::from(is_v6)] | GSO_ECN };
    let mut virtio = vec![F_NEEDS_CSUM, kind, 0, 0];
    let checksum = if is_tcp { TCP_CHECKSUM } else { UDP_CHECKSUM } as u16;
    [size, transport as u16, checksum, 0].iter().for_each(|field| virtio.extend(field.to_le_bytes()));
    let data = (0..payload).map(|i| (i * 31 + i / 256) as u8).collect();
    let start = transport + header.len();
    Frame { bytes: [virtio, ethernet, ip, header, data].concat(), network, transport, payload: start }
}

/// Cuts the frame, given in parts of `step` bytes.
fn cut(bytes: &mut [u8], step: usize) -> Result<Vec<Vec<u8>>, SegmentError> {
    let len = bytes.len();
    let parts: Vec<_> = bytes.chunks_mut(step).map(IoPart::from_slice).collect();
    let segments = match Outgoing::new(&parts, len)? {
        Outgoing::Whole(whole) => {
            let mut frame = vec![0xee; whole.len];
            whole.write(&parts, IoPart::from_slice(&mut frame));
            return Ok(vec![frame]);
        }
        Outgoing::Segmented(what) => Segments::new(what, &parts)?,
    };
    let segment = |index| {
        let mut frame = vec![0xee; segments.len(index)];
        segments.write(index, &parts, IoPart::from_slice(&mut frame));
        frame
    };
    Ok((0..segments.count()).map(segment).collect())
}

/// Asserts that IP's and the transport's checksums and lengths are right.
fn check(segment: &[u8], is_v6: bool, is_tcp: bool, network: usize, transport: usize) {
    let (ip, rest) = (&segment[network..transport], &segment[transport..]);
    let len = rest.len() as u16;
    if is_v6 {
        assert_eq!(get(ip, 4), (ip.len() - 40) as u16 + len);
    } else {
        assert_eq!(get(ip, 2), ip.len() as u16 + len);
        assert_eq!(sum(ip), 0xffff);
    }
    if !is_tcp {
        assert_eq!(get(rest, 4), len);
    }
    let addresses = if is_v6 { &ip[8..40] } else { &ip[12..20] };
    let protocol = u16::from(if is_tcp { TCP } else { UDP });
    assert_eq!(add(&[sum(addresses), protocol, len, sum(rest)]), 0xffff);
}

#[test]
fn segments_are_whole_frames_of_the_same_bytes() {
    for (is_v6, is_tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        for (tags, payload, size) in [(0, 1, 1448), (1, 1448, 1448), (2, 4000, 999), (0, 65_000, 1448)] {
            let mut all = frame(is_v6, is_tcp, tags, payload, size);
            let Frame { network, transport, payload: start, .. } = all;
            let whole = all.bytes[HEADER_LEN..].to_vec();
            for step in [all.bytes.len(), 61] {
                let segments = cut(&mut all.bytes, step).unwrap();
                assert_eq!(segments.len(), payload.div_ceil(size.into()));
                let data: Vec<_> = segments.iter().flat_map(|segment| &segment[start..]).copied().collect();
                assert!(data == whole[start..], "{is_v6} {is_tcp} {tags} {payload}");
                for (index, segment) in segments.iter().enumerate() {
                    check(segment, is_v6, is_tcp, network, transport);
                    assert_eq!(segment[..network], whole[..network]);
                    if !is_v6 {
                        assert_eq!(get(segment, network + 4), 0xfffe_u16.wrapping_add(index as u16));
                    }
                    if is_tcp {
                        let number = u32::MAX.wrapping_add((index * usize::from(size)) as u32);
                        assert_eq!(segment[transport + 4..transport + 8], number.to_be_bytes());
                        let (first, last) = (index == 0, index + 1 == segments.len());
                        let flags = segment[transport + 13];
                        assert_eq!((flags & CWR != 0, flags & FIN_AND_PSH != 0), (first, last));
                        assert_eq!(flags & 0x10, 0x10);
                    }
                }
            }
        }
    }
}

#[test]
fn a_missing_checksum_is_completed() {
    let mut all = frame(false, false, 0, 333, 0);
    all.bytes[1] = GSO_NONE;
    let Frame { network, transport, .. } = all;
    let at = HEADER_LEN + transport;
    let len = (all.bytes.len() - at) as u16;
    put(&mut all.bytes, at + 4, len);
    let pseudo = add(&[sum(&[10; 8]), u16::from(UDP), len]);
    put(&mut all.bytes, at + UDP_CHECKSUM, pseudo);
    let frames = cut(&mut all.bytes, 7).unwrap();
    assert_eq!(frames.len(), 1);
    let rest = &frames[0][transport..];
    assert_eq!(add(&[pseudo, sum(rest)]), 0xffff);
    assert_eq!(frames[0][network..transport], all.bytes[HEADER_LEN + network..at]);
    all.bytes[0] = 0;
    assert_eq!(cut(&mut all.bytes, 5000).unwrap(), [&all.bytes[HEADER_LEN..]]);
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let refusal = |change: &dyn Fn(&mut Frame)| {
        let mut all = frame(false, true, 0, 5000, 1448);
        change(&mut all);
        cut(&mut all.bytes, 100_000).unwrap_err()
    };
    assert_eq!(refusal(&|all| all.bytes[0] = 0), SegmentError::Checksum);
    assert_eq!(refusal(&|all| all.bytes[7] = 0xff), SegmentError::Checksum);
    assert_eq!(refusal(&|all| all.bytes[1] = 3), SegmentError::Kind);
    assert_eq!(refusal(&|all| all.bytes[4..6].fill(0)), SegmentError::Headers, "segments of nothing");
    assert_eq!(refusal(&|all| all.bytes[1] = GSO_TCPV6), SegmentError::Headers);
    assert_eq!(refusal(&|all| all.bytes[1] = GSO_UDP_L4), SegmentError::Headers);
    assert_eq!(refusal(&|all| all.bytes[8] = 6), SegmentError::Headers, "the place of the checksum");
    assert_eq!(refusal(&|all| all.bytes[6] += 4), SegmentError::Headers, "where TCP begins");
    assert_eq!(refusal(&|all| all.bytes[HEADER_LEN + 12] = 0x88), SegmentError::Headers);
    assert_eq!(refusal(&|all| all.bytes[HEADER_LEN + all.network] = 0x4f), SegmentError::Headers);
    assert_eq!(refusal(&|all| all.bytes[HEADER_LEN + all.transport + 12] = 0x40), SegmentError::Headers);
    assert_eq!(refusal(&|all| all.bytes[4..6].copy_from_slice(&[3, 0])), SegmentError::TooMany);
    let mut extended = frame(true, true, 0, 100, 50);
    extended.bytes[HEADER_LEN + extended.network + 6] = DESTINATION;
    assert_eq!(cut(&mut extended.bytes, 999), Err(SegmentError::Headers), "it leads nowhere");
    let at = HEADER_LEN + extended.transport;
    extended.bytes.splice(at..at, [TCP, 0, 0, 0, 0, 0, 0, 0]);
    extended.bytes[6] += 8;
    assert_eq!(cut(&mut extended.bytes, 999).map(|segments| segments.len()), Ok(2));
    extended.bytes[HEADER_LEN + extended.network + 6] = 43;
    assert_eq!(cut(&mut extended.bytes, 999), Err(SegmentError::Headers), "a route");
    let cut_short = |len| {
        let mut all = frame(true, true, 1, 5000, 1448);
        all.bytes.truncate(len);
        cut(&mut all.bytes, 100_000).map(|segments| segments.len())
    };
    // To the end of TCP's header, which has 24 bytes.
    assert_eq!(cut_short(HEADER_LEN + 18 + 40 + 24), Ok(1));
    assert_eq!(cut_short(HEADER_LEN + 18 + 40 + 23), Err(SegmentError::Headers));
    assert_eq!(cut_short(HEADER_LEN + 14), Err(SegmentError::Checksum));
}

/// Whatever a driver writes, segments keep to their lengths.
#[test]
fn any_bytes_are_cut_or_refused() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let mut done = 0;
    for round in 0..20_000 {
        let (is_v6, is_tcp) = (round % 2 == 0, round % 3 == 0);
        let mut all = frame(is_v6, is_tcp, next() % 3, next() % 3000, (next() % 2000) as u16);
        for _ in 0..next() % 3 {
            let at = next() % all.payload;
            all.bytes[at] = next() as u8;
        }
        let len = HEADER_LEN + next() % (all.bytes.len() - HEADER_LEN) + 1;
        all.bytes.truncate(if next() % 4 == 0 { len } else { all.bytes.len() });
        done += usize::from(cut(&mut all.bytes, 1 + next() % 4000).is_ok());
    }
    assert!((5_000..19_000).contains(&done), "{done}");
}
