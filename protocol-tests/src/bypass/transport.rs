//! TCP, UDP and ICMP, without checksums: [`super::packet`] fills them in.

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// TCP flag: no more data.
pub const FIN: u8 = 1;
/// TCP flag: opens a connection.
pub const SYN: u8 = 2;
/// TCP flag: resets it.
pub const RST: u8 = 4;
/// TCP flag: push.
pub const PSH: u8 = 8;
/// TCP flag: the acknowledgement counts.
pub const ACK: u8 = 16;
/// TCP flag: urgent data.
pub const URG: u8 = 32;

/// Returns a datagram.
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = (8 + data.len()) as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], data].concat()
}

/// Returns a segment with a window of 8192 bytes, from and to these ports, with sequence number and
/// acknowledgement.
pub fn tcp(ports: (u16, u16), flags: u8, numbers: (u32, u32), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend(numbers.0.to_be_bytes());
    bytes.extend(numbers.1.to_be_bytes());
    bytes.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    bytes.extend(data);
    bytes
}

/// Returns an echo request or reply.
pub fn echo(is_v6: bool, is_request: bool, identifier: u16, data: &[u8]) -> Vec<u8> {
    let kind = match (is_v6, is_request) {
        (false, true) => 8,
        (false, false) => 0,
        (true, true) => 128,
        (true, false) => 129,
    };
    let [high, low] = identifier.to_be_bytes();
    [&[kind, 0, 0, 0, high, low, 0, 1], data].concat()
}

/// Returns an ICMP message of this type and code, whose header is followed by `rest`.
pub fn icmp(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], rest].concat()
}

/// Returns an ICMP error of this type and code, which quotes `packet`.
pub fn error(kind: u8, code: u8, packet: &[u8]) -> Vec<u8> {
    icmp(kind, code, &[&[0; 4], packet].concat())
}

/// Returns "port unreachable" of the packet's family, which quotes `packet`.
pub fn unreachable(is_v6: bool, packet: &[u8]) -> Vec<u8> {
    if is_v6 { error(1, 4, packet) } else { error(3, 3, packet) }
}
