//! RequestQueue of the block device on an image of 64 sectors. For requests in well-formed chains, the
//! status, the used length, the guest's memory and the image follow virtio 1.2, 5.2.6; other requests break
//! nothing.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use volt_virtio::features::Features;
use volt_vmm::config::DiskConfig;
use volt_vmm::virtio::blk::image::DiskImage;
use volt_vmm::virtio::blk::queue::RequestQueue;
use volt_vmm::virtio::interrupt::Interrupt;
use volt_vmm::virtio::ring::Ring;
use volt_vmm::virtio::{Activation, Vring};

use super::STEPS;
use super::guest::{chain, reader};

const SECTORS: u64 = 64;
/// Length of each of the two regions; the second follows a hole.
const REGION: u64 = 0x4_0000;
const HIGH: u64 = 2 * REGION;
const SIZE: u16 = 16;
const TABLE: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const STATUS: u64 = 0x3100;
const DATA: u64 = 0x4000;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    read_only: bool,
    flush: bool,
    event_idx: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Request(Request),
    /// A request of ranges: sector, sectors, flags.
    Ranges {
        zeroes: bool,
        ranges: Vec<(u16, u16, u8)>,
    },
    /// An invalid action of a driver; afterwards only used elements are checked.
    Descriptor {
        slot: u8,
        addr: u32,
        len: u32,
        flags: u8,
        next: u8,
    },
    Head(u16),
    Index(u16),
}

#[derive(Arbitrary, Debug)]
struct Request {
    kind: Kind,
    sector: u16,
    /// Bytes of each buffer; usually whole sectors.
    data: Vec<(u8, bool)>,
    /// Bytes beyond whole sectors.
    odd: u8,
    writable: bool,
    /// Bytes missing from the header, or room missing for a status.
    short: Option<(u8, bool)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Other(u32),
}

struct Quiet(EventFd);

impl Interrupt for Quiet {
    fn used(&self, _index: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
    fn call(&self, _index: u16) -> &EventFd {
        &self.0
    }
}

struct Peer {
    memory: GuestMemoryMmap,
    file: File,
    ring: Ring,
    requests: RequestQueue,
    read_only: bool,
    /// The expected image.
    disk: Vec<u8>,
    avail: u16,
    seen: u16,
}

pub(super) fn run(input: Input) {
    let Some(mut peer) = Peer::new(&input) else { return };
    for step in input.steps.iter().take(STEPS) {
        let goes_on = match step {
            Step::Request(request) => peer.request(request),
            Step::Ranges { zeroes, ranges } => peer.ranges(*zeroes, &ranges[..ranges.len().min(20)]),
            Step::Descriptor { slot, addr, len, flags, next } => {
                let addr = u64::from(*addr) % (HIGH + REGION + 0x1000);
                peer.descriptor(*slot % 16, (addr, *len, false), u16::from(*flags), (*next).into());
                true
            }
            Step::Head(head) => {
                peer.publish(*head);
                peer.wild()
            }
            Step::Index(index) => {
                peer.avail = *index;
                peer.put(AVAIL + 2, &index.to_le_bytes());
                peer.wild()
            }
        };
        if !goes_on {
            return;
        }
    }
}

impl Peer {
    fn new(input: &Input) -> Option<Peer> {
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), REGION as usize),
            (GuestAddress(HIGH), REGION as usize),
        ])
        .expect("guest memory");
        let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a memfd"));
        let disk: Vec<u8> = (0..SECTORS * 512).map(|n| (n / 512 + 1) as u8 ^ n as u8).collect();
        file.write_all_at(&disk, 0).expect("a memfd");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        let image =
            DiskImage::open(&DiskConfig { path, read_only: input.read_only, raw: true }).expect("an image");
        let mut features = Features::VERSION_1.union(Features::INDIRECT_DESC);
        if input.flush {
            features = features.union(Features::from_bits_retain(1 << 9));
        }
        let mut queue = Queue::new(SIZE).expect("a power of two");
        queue.try_set_desc_table_address(GuestAddress(TABLE)).expect("aligned");
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).expect("aligned");
        queue.try_set_used_ring_address(GuestAddress(USED)).expect("aligned");
        queue.set_size(SIZE);
        queue.set_event_idx(input.event_idx);
        queue.set_ready(true);
        let eventfd = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let activation = Activation {
            memory: memory.clone(),
            features,
            vrings: Vec::new(),
            interrupt: Arc::new(Quiet(eventfd())),
        };
        let vring = Vring { index: 0, queue, kick: Arc::new(eventfd()) };
        let ring = Ring::new(vring, &activation);
        let requests = RequestQueue::new("fuzzed", Arc::new(image), features, Arc::default());
        Some(Peer { memory, file, ring, requests, read_only: input.read_only, disk, avail: 0, seen: 0 })
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("guest memory");
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        reader(&self.memory)(at, len).expect("guest memory")
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at, 2).try_into().expect("2 bytes"))
    }

    fn descriptor(&self, slot: u8, (addr, len, write): (u64, u32, bool), flags: u16, next: u16) {
        let at = TABLE + u64::from(slot) * 16;
        self.put(at, &addr.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &(flags | u16::from(write) << 1).to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    fn publish(&mut self, head: u16) {
        self.put(AVAIL + 4 + u64::from(self.avail % SIZE) * 2, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.put(AVAIL + 2, &self.avail.to_le_bytes());
    }

    /// Lets the device serve the available chains. Returns `false` if it stops the ring.
    fn serve(&mut self) -> bool {
        for _ in 0..=SIZE {
            let before = self.u16(USED + 2);
            let served = self.ring.serve(|chain| self.requests.serve(chain));
            let after = self.u16(USED + 2);
            match served {
                Ok(true) if after == before => continue,
                Ok(true) => assert_eq!(after, before.wrapping_add(1), "one chain at a time"),
                Ok(false) => return true,
                Err(_) => return false,
            }
        }
        panic!("no end to it");
    }

    /// After an invalid action the image has any content, but not a larger size.
    fn wild(&mut self) -> bool {
        let goes_on = self.serve();
        let whole = self.file.metadata().expect("a memfd").len();
        assert_eq!(whole, SECTORS * 512);
        let mut now = vec![0; self.disk.len()];
        self.file.read_exact_at(&mut now, 0).expect("a memfd");
        assert!(!self.read_only || now == self.disk, "a read-only image was written");
        self.disk = now;
        self.seen = self.u16(USED + 2);
        goes_on && self.seen == self.avail
    }

    /// Passes one chain to the device and back; returns its used length, if it is returned.
    fn exchange(&mut self, parts: &[(u64, u32, bool)]) -> Option<u32> {
        for (n, part) in parts.iter().enumerate() {
            self.descriptor(n as u8, *part, u16::from(n + 1 < parts.len()), n as u16 + 1);
        }
        let wanted: Vec<_> = parts.iter().copied().filter(|(_, len, _)| *len > 0).collect();
        assert_eq!(chain(reader(&self.memory), (TABLE, SIZE), true, 0), Some(wanted));
        self.publish(0);
        if !self.serve() {
            panic!("the device stopped a valid ring");
        }
        let used = USED + 4 + u64::from(self.seen % SIZE) * 8;
        self.seen = self.seen.wrapping_add(1);
        assert_eq!((self.u16(USED + 2), self.get(used, 4)), (self.seen, vec![0; 4]));
        Some(u32::from_le_bytes(self.get(used + 4, 4).try_into().expect("4 bytes")))
    }

    fn header(&self, kind: u32, sector: u64) {
        self.put(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.put(STATUS, &[0xee]);
    }

    fn request(&mut self, request: &Request) -> bool {
        let kind = match request.kind {
            Kind::In => 0,
            Kind::Out => 1,
            Kind::Flush => 4,
            Kind::GetId => 8,
            Kind::Other(kind) => kind,
        };
        let sector = u64::from(request.sector) % (SECTORS + 8);
        self.header(kind, sector);
        let (missing, no_status) = request.short.unwrap_or_default();
        let head = 16 - u32::from(missing % 17);
        let mut parts = vec![(HEADER, head, false)];
        let mut at = DATA;
        let mut len = 0usize;
        for (n, (sectors, high)) in request.data.iter().take(10).enumerate() {
            let odd = if n == 0 { u32::from(request.odd) } else { 0 };
            let part =
                if let (Kind::GetId, 0) = (request.kind, n) { 20 } else { u32::from(sectors % 12) * 512 }
                    + odd;
            parts.push((if *high { at + HIGH } else { at }, part, request.writable));
            at += 0x2000;
            len += part as usize;
        }
        let places = parts[1..].to_vec();
        if !no_status {
            parts.push((STATUS, 1, true));
        }
        let pattern: Vec<u8> = (0..len).map(|n| (n / 7) as u8 ^ request.sector as u8).collect();
        self.fill(&places, &pattern);
        let used = self.exchange(&parts).expect("a used element");
        if head < 16 || no_status || kind > 8 || [11, 13].contains(&kind) {
            // The rest decides which byte is header, data or status.
            return self.wild();
        }
        let written = if request.writable { len } else { 0 };
        let (expected, data) = self.model(kind, sector, &pattern, request.writable);
        let status = self.get(STATUS, 1)[0];
        assert_eq!(status, expected, "status of {request:?}");
        if status == OK {
            assert_eq!(used as usize, written + 1);
        } else {
            assert!(used <= 1, "the used length counts optional bytes");
        }
        if let Some(data) = data {
            assert_eq!(self.collect(&places), data, "what the guest reads");
        }
        self.compare();
        true
    }

    fn fill(&self, places: &[(u64, u32, bool)], mut bytes: &[u8]) {
        for (at, len, _) in places {
            let (now, later) = bytes.split_at(*len as usize);
            self.put(*at, now);
            bytes = later;
        }
    }

    fn collect(&self, places: &[(u64, u32, bool)]) -> Vec<u8> {
        places.iter().flat_map(|(at, len, _)| self.get(*at, *len as usize)).collect()
    }

    /// Returns the expected status and data of a request, if the model knows them; changes the model's disk.
    fn model(&mut self, kind: u32, sector: u64, data: &[u8], writable: bool) -> (u8, Option<Vec<u8>>) {
        let len = data.len();
        let (from, to) = (sector as usize * 512, sector as usize * 512 + len);
        let whole = len.is_multiple_of(512) && to <= self.disk.len();
        let backwards = len > 0 && writable != [0, 8].contains(&kind);
        match kind {
            0 if backwards || !whole => (IOERR, None),
            0 => (OK, Some(self.disk[from..to].to_vec())),
            8 if !writable || len != 20 => (IOERR, None),
            8 => (OK, None),
            1 | 4 if backwards => (IOERR, None),
            4 => (OK, None),
            1 if self.read_only || !whole => (IOERR, None),
            1 => {
                self.disk[from..to].copy_from_slice(data);
                (OK, None)
            }
            _ => (UNSUPP, None),
        }
    }

    fn compare(&self) {
        let mut now = vec![0; self.disk.len()];
        self.file.read_exact_at(&mut now, 0).expect("a memfd");
        assert!(now == self.disk, "the image differs from the data written to it");
    }

    fn ranges(&mut self, zeroes: bool, ranges: &[(u16, u16, u8)]) -> bool {
        self.header(if zeroes { 13 } else { 11 }, 0);
        let ranges: Vec<_> = ranges
            .iter()
            .map(|(sector, count, flags)| (sector % 80, count % 80, u32::from(flags % 3)))
            .collect();
        let bytes = |(sector, count, flags): &(u16, u16, u32)| {
            [u64::from(*sector).to_le_bytes(), (u64::from(*count) | u64::from(*flags) << 32).to_le_bytes()]
                .concat()
        };
        let data: Vec<u8> = ranges.iter().flat_map(bytes).collect();
        self.put(DATA, &data);
        let used = self.exchange(&[(HEADER, 16, false), (DATA, data.len() as u32, false), (STATUS, 1, true)]);
        let known = if zeroes { 1 } else { 0 };
        let inside = |(sector, count, _): &(u16, u16, u32)| u64::from(sector + count) <= SECTORS;
        // Among several errors, the device chooses the one to report.
        let good = !ranges.is_empty() && ranges.len() <= 16 && !self.read_only;
        let good = good && ranges.iter().all(|range| inside(range) && range.2 <= known);
        let status = self.get(STATUS, 1)[0];
        assert_eq!((status == OK, used), (good, Some(1)), "status {status} for {ranges:?}");
        if good {
            let places = ranges.iter().map(|(from, count, _)| (*from as usize * 512, *count as usize * 512));
            for (from, len) in places {
                let place = &mut self.disk[from..from + len];
                if zeroes {
                    place.fill(0);
                } else {
                    // Contents are undefined after a discard.
                    self.file.read_exact_at(place, from as u64).expect("a memfd");
                }
            }
        }
        self.compare();
        true
    }
}
