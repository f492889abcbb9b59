//! What a verdict costs, in nanoseconds: `cargo run --release -p volt-filter --example cost`.
//!
//! Frames are judged one after the other, without system calls in between. `scripts/bench filter` measures a
//! whole daemon.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use volt_filter::Way;
use volt_filter::setup::{FLOWS_RANGE, Setup};
use volt_filter::verdict::Filter;

const POLICY: &str = "
[network]
gateways = ['192.0.2.1']
gateway-mac = '02:00:00:00:00:02'
[[allow]]
to = '198.51.100.0/24'
";
const FRAMES: u32 = 200_000;

/// Memory of this process only.
struct Words(Vec<AtomicU64>);

impl AsRef<[AtomicU64]> for Words {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

fn filter(policy: Option<&str>) -> Result<Filter, Box<dyn Error>> {
    let setup = Setup {
        mac: [2, 0, 0, 0, 0, 1],
        addresses: vec!["192.0.2.10".parse()?],
        learn: None,
        flows: *FLOWS_RANGE.end(),
        policy: policy.map(str::to_owned),
    };
    let words = Words((0..Filter::words(&setup)).map(|_| AtomicU64::new(0)).collect());
    Ok(Filter::new(setup, Arc::new(words), [1, 2])?)
}

/// A datagram of 64 bytes of the guest, with a virtio-net header.
fn datagram(peer: [u8; 4], number: u32) -> [u8; 76] {
    let mut frame = [0; 76];
    let [_, a, b, c] = number.to_be_bytes();
    frame[12..24].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame[24..38].copy_from_slice(&[8, 0, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame[38..42].copy_from_slice(&[192, 0, 2, 10]);
    frame[42..46].copy_from_slice(&peer);
    // The number is in the ports, so that each number is a flow.
    frame[46..52].copy_from_slice(&[a, b, c, 53, 0, 30]);
    frame
}

fn measure(name: &str, filter: &Filter, frame: impl Fn(u32) -> [u8; 76]) {
    let mut frames: Vec<_> = (0..FRAMES).map(frame).collect();
    let began = Instant::now();
    for frame in &mut frames {
        black_box(filter.judge(Way::Out, frame, 76, 1));
    }
    println!("{name}: {:.0} ns", began.elapsed().as_nanos() as f64 / f64::from(FRAMES));
}

fn main() -> Result<(), Box<dyn Error>> {
    let (guard, policy) = (filter(None)?, filter(Some(POLICY))?);
    let allowed = [198, 51, 100, 7];
    measure("guard", &guard, |_| datagram(allowed, 1));
    measure("policy, a new flow with each frame", &policy, |number| datagram(allowed, number));
    measure("policy, one known flow", &policy, |_| datagram(allowed, 1));
    measure("policy, known flows, another with each frame", &policy, |number| datagram(allowed, number));
    measure("policy, refused", &policy, |number| datagram([203, 0, 113, 7], number));
    Ok(())
}
