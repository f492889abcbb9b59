//! Frames and commands.

use super::{Journey, Posted, SLOT};
use crate::frame::{NetHeader, number_of, numbered};
use crate::rig::LIMIT;
use crate::ring::{Part, Used};
use crate::wire::feature;

impl Journey {
    /// Sends frames to the guest, compares them, and posts new buffers.
    pub(super) fn receive(&mut self) -> &'static str {
        for _ in 0..=self.random.below(2) {
            let frame = self.frame();
            self.rig.wire.send(&frame).expect("sent");
            self.arrives(&frame);
        }
        "receive"
    }

    /// Returns a frame of random length that no other is like.
    pub(super) fn frame(&mut self) -> Vec<u8> {
        let number = self.rig.number();
        numbered(number, 60 + self.random.below(1400) as usize)
    }

    /// Waits for `frame` in a receive queue, and skips earlier ones, which a killed worker may have repeated.
    #[track_caller]
    pub(super) fn arrives(&mut self, frame: &[u8]) {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            if let Some((pair, used)) = self.used() {
                let got = self.take(pair, used);
                let is_it = got == frame;
                assert!(is_it || number_of(&got) < number_of(frame), "{got:02x?} instead of {frame:02x?}");
                self.tally.received += 1;
                self.check("receive");
                self.post(pair);
                if is_it {
                    return;
                }
            } else {
                assert!(std::time::Instant::now() < deadline, "no frame: {}", self.rig.daemon.log());
                self.wait();
            }
        }
    }

    /// Returns the first used chain of a receive queue, and its pair.
    pub(super) fn used(&mut self) -> Option<(usize, Used)> {
        (0..self.buffers.len()).find_map(|pair| {
            let used = self.session.rx(pair).try_used().expect("an intact ring");
            used.map(|used| (pair, used))
        })
    }

    /// Takes a frame out of its buffers, the first of which is `first`. Notes what was published.
    pub(super) fn take(&mut self, pair: usize, first: Used) -> Vec<u8> {
        let mut bytes = self.read(pair, first);
        let header = NetHeader::decode(bytes.first_chunk().expect("a header"));
        for _ in 1..header.num_buffers {
            let next = self.session.rx(pair).try_used().expect("an intact ring");
            let next = next.expect("a frame's buffers are published together");
            bytes.extend(self.read(pair, next));
        }
        self.tally.merged += u64::from(header.num_buffers > 1);
        bytes.split_off(12)
    }

    fn read(&mut self, pair: usize, used: Used) -> Vec<u8> {
        let buffers = &mut self.buffers[pair];
        let posted = buffers.posted.remove(&used.head).expect("a posted chain");
        buffers.free.push(posted.slot);
        let (mut bytes, mut left) = (Vec::new(), used.len);
        for part in posted.parts {
            let len = part.len.min(left);
            bytes.extend(self.session.nic.mem.read(part.addr, len as usize));
            self.published.push((part.addr, u64::from(len)));
            left -= len;
        }
        assert_eq!(left, 0, "more bytes than the chain has");
        bytes
    }

    /// Posts chains of random shape in all free slots of a pair, and kicks.
    pub(super) fn post(&mut self, pair: usize) {
        let indirect = self.session.nic.features & feature::INDIRECT_DESC != 0;
        // Room for a whole frame, unless frames are merged: then some have to be.
        let least = if self.is_mergeable() { 64 + self.random.below(400) as u32 } else { 1600 };
        while let Some(slot) = self.buffers[pair].free.pop() {
            let parts = self.parts(slot, least);
            let ring = &mut self.session.rx(pair).ring;
            if ring.free() < parts.len() + 1 {
                self.buffers[pair].free.push(slot);
                break;
            }
            let table = slot + SLOT - 0x100;
            let head = match indirect && self.random.chance(2) {
                true => ring.add_indirect(&parts, table),
                false => ring.add(&parts),
            };
            self.buffers[pair].posted.insert(head.expect("room"), Posted { slot, parts });
        }
        self.session.rx(pair).kick().expect("kicked");
    }

    /// Returns one to three parts in a slot, at least `least` bytes together, the first with room for the
    /// header alone or more.
    fn parts(&mut self, slot: u64, least: u32) -> Vec<Part> {
        let mut at = slot + self.random.below(0x800);
        let mut left = least + self.random.below(1000) as u32;
        let mut parts = Vec::new();
        for last in [false, false, true] {
            let len = if last { left } else { self.random.below(u64::from(left) + 1) as u32 };
            if len > 0 {
                parts.push(Part::into(at, len));
            }
            (at, left) = (at + u64::from(len) + self.random.below(0x200), left - len);
        }
        parts
    }

    /// Sends a burst from the guest, and compares it.
    pub(super) fn transmit(&mut self) -> &'static str {
        let frames: Vec<_> = (0..=self.random.below(3)).map(|_| self.frame()).collect();
        let pair = 0;
        for frame in &frames {
            let cuts = [1 + self.random.below(20) as usize, 1 + self.random.below(100) as usize];
            self.session.tx(pair).offer(&NetHeader::default(), frame, &cuts).expect("room");
        }
        self.session.tx(pair).kick().expect("kicked");
        for frame in &frames {
            let used = self.session.tx(pair).used(LIMIT).expect("the frame is used");
            self.session.tx(pair).parts(used);
            self.leaves(frame);
        }
        self.tally.sent += frames.len() as u64;
        "transmit"
    }

    /// Takes `frame` from the wire, and skips earlier ones.
    #[track_caller]
    pub(super) fn leaves(&mut self, frame: &[u8]) {
        loop {
            let (_, got) = self.rig.wire.recv(LIMIT).expect("the wire").expect("a frame on the wire");
            if got == frame {
                return;
            }
            assert!(number_of(&got) < number_of(frame), "{got:02x?} instead of {frame:02x?}");
        }
    }

    /// Sets the number of pairs by the control queue, if there is one.
    pub(super) fn command(&mut self) -> &'static str {
        if self.session.nic.queues.len().is_multiple_of(2) {
            return "no control queue";
        }
        let pairs = 1 + self.random.below(3) as u8;
        let control = self.session.nic.queues.last_mut().expect("a control queue");
        let (out, ack) = (control.alloc(4), control.alloc(1));
        let mem = self.session.nic.mem.clone();
        mem.write(out, &[4, 0, pairs, 0]);
        mem.write(ack, &[0xaa]);
        if let Some(logging) = &self.logging {
            logging.oracle.driver_wrote(ack, 1);
        }
        let control = self.session.nic.queues.last_mut().expect("a control queue");
        control.submit(&[Part::out(out, 4), Part::into(ack, 1)]).expect("room");
        control.kick().expect("kicked");
        let used = control.used(LIMIT).expect("an answer");
        control.parts(used);
        assert_eq!(mem.read(ack, 1)[0], u8::from(pairs == 3), "the answer to {pairs} pairs");
        self.published.push((ack, 1));
        self.tally.commands += 1;
        "command"
    }
}
