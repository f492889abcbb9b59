//! Drivers with invalid rings. The back-end may return the bad chain or stop the ring. It must survive, write
//! nothing outside writable buffers, and serve the next session.

use super::bench::{Bench, QUIET};
use super::{Finding, checks, ensure};
use crate::ring::{Desc, desc_flags};
use crate::session::Setup;

type Result = std::result::Result<(), Finding>;

const NEXT: u16 = desc_flags::NEXT;
const WRITE: u16 = desc_flags::WRITE;
const INDIRECT: u16 = desc_flags::INDIRECT;
/// An address outside every region.
const NOWHERE: u64 = 0x7_0000_0000;
/// The last of the ring's descriptors, away from the driver's own chains.
const LAST: u16 = 255;

checks! {
    "hostile/header-short", Robust, Completion, "virtio 1.2, 5.1.6.2",
        "A transmit chain shorter than its header does no harm.", |b| chain(b, |at| vec![desc(at, 11, 0, 0)]);
    "hostile/empty", Robust, Completion, "virtio 1.2, 2.7.5",
        "A transmit chain of no bytes does no harm.", |b| chain(b, |at| vec![desc(at, 0, 0, 0)]);
    "hostile/runt", Robust, Completion, "virtio 1.2, 5.1.6.2",
        "A frame of 13 bytes does no harm.", |b| chain(b, |at| vec![desc(at, 25, 0, 0)]);
    "hostile/nowhere", Robust, Completion, "virtio 1.2, 2.7.5",
        "A buffer outside memory does no harm.", |b| chain(b, |_| vec![desc(NOWHERE, 100, 0, 0)]);
    "hostile/address-wrap", Robust, Completion, "virtio 1.2, 2.7.5",
        "A buffer that wraps around the address space does no harm.",
        |b| chain(b, |_| vec![desc(u64::MAX - 10, 100, 0, 0)]);
    "hostile/length-4-gib", Robust, Completion, "virtio 1.2, 2.7.5",
        "A buffer of 4 GiB does no harm.", |b| chain(b, |at| vec![desc(at, u32::MAX, 0, 0)]);
    "hostile/jumbo", Robust, Completion, "virtio 1.2, 5.1.6.2",
        "An oversized frame of 100,000 bytes does no harm.",
        |b| chain(b, |at| vec![desc(at, 100_000, 0, 0)]);
    "hostile/loop", Robust, Completion, "virtio 1.2, 2.7.5.2 (no loops)",
        "A chain that loops does no harm.",
        |b| chain(b, |at| vec![desc(at, 40, NEXT, LAST), desc(at, 40, NEXT, LAST - 1)]);
    "hostile/next-beyond", Robust, Completion, "virtio 1.2, 2.7.5",
        "A next field beyond the table does no harm.", |b| chain(b, |at| vec![desc(at, 40, NEXT, 65_535)]);
    "hostile/device-writable", Robust, Completion, "virtio 1.2, 5.1.6.2",
        "The back-end does not write to a device-writable transmit chain.", writable;
    "hostile/table-odd", Robust, Completion, "virtio 1.2, 2.7.5.3",
        "An indirect table of 17 bytes does no harm.", |b| chain(b, |at| vec![desc(at, 17, INDIRECT, 0)]);
    "hostile/table-nowhere", Robust, Completion, "virtio 1.2, 2.7.5.3",
        "An indirect table outside memory does no harm.",
        |b| chain(b, |_| vec![desc(NOWHERE, 32, INDIRECT, 0)]);
    "hostile/table-4-gib", Robust, Completion, "virtio 1.2, 2.7.5.3",
        "An indirect table of 4 GiB does no harm.",
        |b| chain(b, |at| vec![desc(at, 0xffff_fff0, INDIRECT, 0)]);
    "hostile/head-beyond", Robust, Completion, "virtio 1.2, 2.7.6",
        "A head beyond the table does no harm.", head_beyond;
    "hostile/index-jump", Robust, Completion, "virtio 1.2, 2.7.6",
        "An available index that jumps by more than the ring size does no harm.", index_jump;
    "hostile/ring-nowhere", Robust, Completion, "vhost-user, SET_VRING_ADDR",
        "A transmit ring outside memory, enabled alone, does no harm.", |b| ring_nowhere(b, &[1]);
    "hostile/pair-nowhere", Robust, Completion, "vhost-user, SET_VRING_ADDR",
        "A pair of rings outside memory does no harm.", |b| ring_nowhere(b, &[0, 1]);
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

/// Offers these descriptors, made for a buffer of 4 KiB, waits a moment, and serves another session.
fn chain(bench: &mut Bench, make: fn(u64) -> Vec<Desc>) -> Result {
    let mut session = bench.session(&Setup::default())?;
    let queue = session.tx(0);
    let at = queue.alloc(4096);
    let first = LAST + 1 - 2;
    for (place, desc) in (first..).zip(make(at)) {
        queue.ring.set_desc(place, desc);
    }
    queue.ring.offer(first);
    queue.kick_always()?;
    // The used index may follow or stay, but must not run ahead.
    std::thread::sleep(QUIET / 4);
    let used = queue.ring.used_idx();
    ensure!(used <= 1, "used.idx is {used} after one chain");
    drop(session);
    bench.serves()
}

fn writable(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    let mem = session.nic.mem.clone();
    let queue = session.tx(0);
    let at = queue.alloc(4096);
    mem.write(at, &[0x5a; 200]);
    queue.ring.set_desc(LAST, desc(at, 112, WRITE, 0));
    queue.ring.offer(LAST);
    queue.kick_always()?;
    std::thread::sleep(QUIET / 4);
    let bytes = mem.read(at, 200);
    ensure!(bytes == [0x5a; 200], "the buffer of a transmit ring was written: {:02x?}", &bytes[..16]);
    drop(session);
    bench.serves()
}

fn head_beyond(bench: &mut Bench) -> Result {
    for head in [256, 65_535] {
        let mut session = bench.session(&Setup::default())?;
        session.tx(0).ring.offer(head);
        session.tx(0).kick_always()?;
        std::thread::sleep(QUIET / 4);
    }
    bench.serves()
}

fn index_jump(bench: &mut Bench) -> Result {
    for index in [257, 40_000, 65_535] {
        let session = bench.session(&Setup::default())?;
        session.nic.queues[1].ring.set_avail_idx(index);
        rustix::io::write(&session.nic.queues[1].kick, &1u64.to_ne_bytes()).map_err(std::io::Error::from)?;
        std::thread::sleep(QUIET / 4);
        let used = session.nic.queues[1].ring.used_idx();
        ensure!(used <= 256, "used.idx is {used} after available index {index}");
    }
    bench.serves()
}

fn ring_nowhere(bench: &mut Bench, vrings: &[u32]) -> Result {
    for wrong in [NOWHERE, u64::MAX - 0xf] {
        let session =
            crate::session::Session::start(bench.connect()?, &Setup { enabled: 0, ..Setup::default() })?;
        // The back-end may refuse it here or at its start, or never start it.
        for &vring in vrings {
            let _ = session.frontend.set_vring_addr_raw(vring, 0, wrong, wrong, wrong);
        }
        for &vring in vrings {
            let _ = session.frontend.set_vring_enable(vring, true);
            let _ = rustix::io::write(&session.nic.queues[vring as usize].kick, &1u64.to_ne_bytes());
        }
        std::thread::sleep(QUIET / 4);
    }
    bench.serves()
}
