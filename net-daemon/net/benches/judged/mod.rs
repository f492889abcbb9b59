//! A filter that knows one TCP connection, and frames of it.

use std::net::Ipv4Addr;

use volt_net::filter::DeviceFilter;
use volt_net::filter::volt_filter::Way;
use volt_net::filter::volt_filter::setup::{FLOWS, Setup};
use volt_net::filter::volt_filter::verdict::Verdict;

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];
const POLICY: &str = "
[network]
gateways = ['192.0.2.1']
gateway-mac = '02:00:00:00:00:02'
[[allow]]
to = '198.51.100.0/24'
";
const SYN: u8 = 2;
const ACK: u8 = 16;

/// What judges the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Nothing.
    Not,
    /// The guard.
    Guard,
    /// A policy, by which the connection is open.
    Policy,
}

impl Judged {
    /// Creates the filter, which has seen the handshake.
    pub(crate) fn filter(self) -> Option<DeviceFilter> {
        let policy = match self {
            Judged::Not => return None,
            Judged::Guard => None,
            Judged::Policy => Some(POLICY.to_owned()),
        };
        let addresses = vec![Ipv4Addr::new(192, 0, 2, 10).into()];
        let setup = Setup { mac: GUEST, addresses, learn: None, flows: FLOWS, policy };
        let filter = DeviceFilter::new(setup).expect("a filter");
        for (way, flags, numbers) in
            [(Way::Out, SYN, (99, 0)), (Way::In, SYN | ACK, (499, 100)), (Way::Out, ACK, (100, 500))]
        {
            let mut frame = segment(way, flags, numbers, 66);
            assert_eq!(filter.filter().judge(way, &mut frame, 66, uptime()), Verdict::Pass);
        }
        Some(filter)
    }
}

/// Returns the seconds since the machine started. valgrind hides the kernel's clock from rustix.
fn uptime() -> u32 {
    let text = std::fs::read_to_string("/proc/uptime").expect("the uptime");
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).expect("seconds")
}

/// Returns a frame with data of the open connection, of `len` bytes with its virtio-net header.
pub(crate) fn data(way: Way, len: usize) -> Vec<u8> {
    let numbers = if way == Way::Out { (100, 500) } else { (500, 100) };
    segment(way, ACK, numbers, len)
}

fn segment(way: Way, flags: u8, numbers: (u32, u32), len: usize) -> Vec<u8> {
    let (guest, peer) = ([192, 0, 2, 10], [198, 51, 100, 7]);
    let (macs, addresses, ports) = match way {
        Way::Out => ([GATEWAY, GUEST], [guest, peer], [1000u16, 443]),
        Way::In => ([GUEST, GATEWAY], [peer, guest], [443, 1000]),
    };
    let total = (len - 26) as u16;
    let mut frame = vec![0; 12];
    frame.extend(macs.as_flattened());
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(addresses.as_flattened());
    frame.extend(ports.map(u16::to_be_bytes).as_flattened());
    frame.extend([numbers.0, numbers.1].map(u32::to_be_bytes).as_flattened());
    frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(len, 7);
    frame
}
