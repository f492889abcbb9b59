use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;
use vm_memory::GuestAddress;

use super::*;
use crate::virtio::testing::{BUFFERS, Driver, HIGH, Part, REGION, eventually, write_descriptor};

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
pub(super) const DATA: u64 = BUFFERS + 0x1000;
pub(super) const OK: u8 = VIRTIO_BLK_S_OK as u8;
pub(super) const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
pub(super) const FLUSH: Features = Features::BLK_FLUSH;

pub(super) fn config(path: &Path, read_only: bool) -> DiskConfig {
    DiskConfig { path: path.to_owned(), read_only, raw: false }
}

/// An image of 64 sectors, sector N filled with N.
pub(super) fn image() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let bytes: Vec<u8> = (0..64u8).flat_map(|sector| [sector; 512]).collect();
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// Opens an image that was closed just before. A program that another test starts may briefly have a copy of
/// its descriptor, and so of its lock.
pub(super) fn reopen(path: &Path, read_only: bool) -> Block {
    let mut disk = None;
    eventually("the image is free", || {
        disk = Block::open(&config(path, read_only), &Arc::default()).ok();
        disk.is_some()
    });
    disk.unwrap()
}

pub(super) fn start(path: &Path, read_only: bool, features: Features) -> Driver {
    let mut driver = Driver::new(Block::open(&config(path, read_only), &Arc::default()).unwrap());
    driver.run(Features::VERSION_1.union(features), &[0]);
    driver
}

fn put_header(driver: &Driver, kind: u32, sector: u64) {
    let mut header = u64::from(kind).to_le_bytes().to_vec();
    header.extend(sector.to_le_bytes());
    driver.put(HEADER, &header);
    driver.put(STATUS, &[0xee]);
}

/// Makes one request with `data` between header and status. Returns status and used length.
pub(super) fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
    put_header(driver, kind, sector);
    let mut parts = vec![(HEADER, 16, false)];
    parts.extend(data);
    parts.push((STATUS, 1, true));
    let used = driver.request(0, &parts);
    (driver.get(STATUS, 1)[0], used)
}

pub(super) fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn capacity_and_limits_are_in_the_configuration() {
    let (_dir, path) = image();
    let mut driver = Driver::new(Block::open(&config(&path, false), &Arc::default()).unwrap());
    let bytes = driver.config(60);
    assert_eq!(bytes[..8], 64u64.to_le_bytes());
    assert_eq!(bytes[8..12], SIZE_MAX.to_le_bytes());
    assert_eq!(bytes[12..16], SEG_MAX.to_le_bytes());
    assert_eq!(bytes[20..24], 512u32.to_le_bytes());
    assert_eq!(bytes[36..40], RANGE_SECTORS_MAX.to_le_bytes());
    assert_eq!(bytes[56], 1);
}

#[test]
fn reads_and_writes_go_through_scattered_buffers() {
    let (_dir, path) = image();
    let mut driver = start(&path, false, FLUSH);
    // In pieces, one of them in the second memory region, none of a sector's length.
    let parts = [(DATA, 100, true), (HIGH + 7, 900, true), (DATA + 0x800, 24, true)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 5, &parts), (OK, 1025));
    assert_eq!(driver.get(DATA, 100), [5; 100]);
    assert_eq!(driver.get(HIGH + 7, 412), [5; 412]);
    assert_eq!(driver.get(HIGH + 7 + 412, 488), [6; 488]);
    assert_eq!(driver.get(DATA + 0x800, 24), [6; 24]);

    driver.put(DATA, &[0xaa; 512]);
    let parts = [(DATA, 500, false), (DATA + 500, 12, false)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 63, &parts), (OK, 1));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 64 * 512, "the image keeps its length");
    assert_eq!(bytes[63 * 512..], [0xaa; 512]);
    assert_eq!(bytes[62 * 512..63 * 512], [62; 512]);
}

/// A header across descriptors, and a status behind data in one descriptor: the driver decides the framing.
#[test]
fn requests_may_be_cut_anywhere() {
    let (_dir, path) = image();
    let mut driver = start(&path, false, FLUSH);
    put_header(&driver, VIRTIO_BLK_T_IN, 9);
    let used = driver.request(0, &[(HEADER, 5, false), (HEADER + 5, 11, false), (DATA, 513, true)]);
    assert_eq!(used, 513);
    assert_eq!(driver.get(DATA, 513), [[9; 512].as_slice(), &[OK]].concat());
}

#[test]
fn indirect_chains_with_many_pieces() {
    let (_dir, path) = image();
    let mut driver = start(&path, false, FLUSH.union(Features::INDIRECT_DESC));
    put_header(&driver, VIRTIO_BLK_T_IN, 0);
    let table = BUFFERS + 0x10_0000;
    // 2048 pieces of 16 bytes: more than one vectored call takes, more than the ring has descriptors.
    let pieces = 2048;
    let entry = |n: u64| GuestAddress(table + 16 * n);
    write_descriptor(&driver.memory, entry(0), HEADER, 16, 1, 1);
    for n in 0..pieces {
        write_descriptor(&driver.memory, entry(n + 1), DATA + 16 * n, 16, 3, n as u16 + 2);
    }
    write_descriptor(&driver.memory, entry(pieces + 1), STATUS, 1, 2, 0);
    driver.descriptor(0, 0, (table, 16 * (pieces as u32 + 2), false), 4, 0);
    driver.publish(0, 0);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), 64 * 512 + 1);
    assert_eq!(driver.get(STATUS, 1), [OK]);
    assert_eq!(driver.get(DATA, 64 * 512), fs::read(&path).unwrap());
}

#[test]
fn read_only_disks_stay_as_they_are() {
    let (_dir, path) = image();
    let before = fs::read(&path).unwrap();
    let mut driver = start(&path, true, FLUSH.union(Features::BLK_RO));
    assert!(!driver.offered_features().contains(Features::BLK_DISCARD));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]), (IOERR, 1));
    driver.put(DATA, &range(0, 1, 0));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]), (IOERR, 1));
    }
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 1, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn discard_and_write_zeroes() {
    let (_dir, path) = image();
    let mut driver = start(&path, false, FLUSH);
    driver.put(DATA, &[range(8, 8, 0), range(32, 1, 0)].concat());
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 32, false)]), (OK, 1));
    driver.put(DATA, &[range(1, 2, 0), range(40, 3, 1)].concat());
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 32, false)]), (OK, 1));
    let bytes = fs::read(&path).unwrap();
    let sector = |n: usize| &bytes[n * 512..(n + 1) * 512];
    for zero in [1, 2, 40, 41, 42] {
        assert_eq!(sector(zero), [0; 512], "{zero}");
    }
    for kept in [0, 3, 7, 16, 31, 33, 39, 43] {
        assert_eq!(sector(kept), [kept as u8; 512], "{kept}");
    }
    assert_eq!(bytes.len(), 64 * 512);

    for (bad, status) in [
        (range(0, 1, 2), UNSUPP),
        (range(63, 2, 0), IOERR),
        (range(u64::MAX, 1, 0), IOERR),
        (range(0, RANGE_SECTORS_MAX + 1, 0), IOERR),
        (range(0, 1, 0)[..15].to_vec(), IOERR),
        (range(60, 1, 0).repeat(RANGES_MAX as usize + 1), IOERR),
    ] {
        driver.put(DATA, &bad);
        let parts = [(DATA, bad.len() as u32, false)];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &parts), (status, 1), "{bad:?}");
    }
    driver.put(DATA, &range(0, 1, 1));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16, false)]), (UNSUPP, 1));
    assert_eq!(fs::read(&path).unwrap(), bytes, "a refused range changes nothing");
}

#[test]
fn get_id_differs_between_images() {
    let ((_a, first), (_b, second)) = (image(), image());
    let id = |path| {
        let mut driver = start(path, false, FLUSH);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 19, true)]), (IOERR, 0));
        driver.get(DATA, 20)
    };
    assert_ne!(id(&first), id(&second));
    assert_eq!(id(&first), id(&first));
}

#[test]
fn outside_of_the_disk_is_an_error() {
    let (_dir, path) = image();
    let mut driver = start(&path, false, FLUSH);
    for sector in [64, 63, u64::MAX, u64::MAX / 512, i64::MAX as u64] {
        for (kind, write, used) in [(VIRTIO_BLK_T_IN, true, 0), (VIRTIO_BLK_T_OUT, false, 1)] {
            let answer = request(&mut driver, kind, sector, &[(DATA, 1024, write)]);
            assert_eq!(answer, (IOERR, used), "{sector}");
        }
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 64 * 512);
}

/// Each chain comes back to the guest, and the disk works afterwards.
#[test]
fn malformed_requests_do_not_end_the_worker() {
    let (_dir, path) = image();
    let mut driver = start(&path, false, FLUSH);
    assert_eq!(request(&mut driver, 99, 0, &[]), (UNSUPP, 1));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[(DATA, 511, true)]), (IOERR, 0));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, true)]), (IOERR, 0));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[(DATA, 512, false)]), (IOERR, 1));
    assert_eq!(driver.request(0, &[(HEADER, 15, false), (STATUS, 1, true)]), 1, "short header");
    assert_eq!(driver.get(STATUS, 1), [IOERR]);
    assert_eq!(driver.request(0, &[(STATUS, 1, true)]), 1, "no header");
    assert_eq!(driver.request(0, &[(HEADER, 16, false)]), 0, "no status");
    assert_eq!(driver.request(0, &[(HEADER, 16, false), (STATUS, 0, true)]), 0, "empty status");
    assert_eq!(driver.request(0, &[(STATUS, 1, true), (HEADER, 16, false)]), 0, "wrong order");
    assert_eq!(driver.request(0, &[(HEADER, 16, false), (REGION - 1, 2, true)]), 0, "outside of memory");
    assert_eq!(driver.request(0, &[(u64::MAX, 16, false), (STATUS, 1, true)]), 0, "address overflow");
    for (flags, len, next) in [(1, 16, 3), (1, 16, 16), (4, 17, 0), (4, 0, 0), (4, 1 << 24, 0)] {
        // A loop, a link out of the table, and indirect tables of odd, no and too much length.
        driver.descriptor(0, 3, (HEADER, len, false), flags, next);
        driver.publish(0, 3);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), 0, "{flags} {len} {next}");
    }
    // A valid request except for a link after its end: nothing of it is carried out.
    put_header(&driver, VIRTIO_BLK_T_FLUSH, 0);
    driver.descriptor(0, 3, (HEADER, 16, false), 1, 4);
    driver.descriptor(0, 4, (STATUS, 1, true), 1, 16);
    driver.publish(0, 3);
    driver.kick(0);
    assert_eq!((driver.wait_used(0), driver.get(STATUS, 1)[0]), (0, 0xee));
    let huge = [(DATA, 1 << 20, true); 9].map(|_| (DATA, 3 << 20, true));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &huge).0, IOERR);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 3, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(driver.get(DATA, 512), [3; 512]);
}

/// A ring with impossible indices is given up with NEEDS_RESET, and not read in circles. A reset repairs it.
#[test]
fn an_impossible_ring_asks_for_a_reset() {
    let (_dir, path) = image();
    for jump in [true, false] {
        let mut driver = start(&path, false, FLUSH);
        if jump {
            driver.rings.get_mut(&0).unwrap().offered = 1000;
            driver.publish(0, 0);
        } else {
            driver.publish(0, 16);
        }
        driver.kick(0);
        eventually("NEEDS_RESET", || driver.read(VIRTIO_MMIO_STATUS) == 0x4f);
        driver.run(Features::VERSION_1, &[0]);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 3, &[(DATA, 512, true)]), (OK, 513));
    }
}

/// Chains of random descriptors, mostly nonsense: each comes back, and the disk continues.
#[test]
fn any_chain_is_survived() {
    let (_dir, path) = image();
    let mut driver = start(&path, true, FLUSH.union(Features::INDIRECT_DESC));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |choices: u64| {
        // xorshift64: the same chains in each run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % choices
    };
    let table = driver.rings[&0].table;
    let places = [HEADER, STATUS, DATA, table, HIGH, REGION - 8, REGION, HIGH + REGION - 1, 0, u64::MAX - 3];
    let lengths = [0, 1, 15, 16, 17, 20, 32, 512, 513, 4096, 1 << 20, u32::MAX];
    for round in 0..5_000 {
        for slot in 0..8 {
            let address = places[random(places.len() as u64) as usize];
            let len = lengths[random(lengths.len() as u64) as usize];
            // Any of NEXT, WRITE and INDIRECT. The device must not write to the ring itself.
            let write = random(2) == 1 && address > 0x10_0000;
            let flags = [0, 1, 1, 1, 4, 5, 8][random(7) as usize];
            driver.descriptor(0, slot, (address, len, write), flags, random(17) as u16);
        }
        put_header(&driver, [0, 1, 4, 8, 11, 13, 99][random(7) as usize], random(70));
        driver.publish(0, random(8) as u16);
        driver.kick(0);
        assert!(driver.wait_used(0) <= 4 << 20, "{round}");
    }
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 15);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 3, &[(DATA, 512, true)]), (OK, 513));
}

/// Under both settings of the event index, every request is completed and the driver is notified.
#[test]
fn many_requests_with_and_without_event_index() {
    let (_dir, path) = image();
    for features in [Features::empty(), Features::EVENT_IDX] {
        let mut driver = start(&path, false, FLUSH.union(features));
        for n in 0..1000u32 {
            let sector = u64::from(n % 64);
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, sector, &[(DATA, 512, true)]), (OK, 513));
            assert_eq!(driver.get(DATA, 512), [sector as u8; 512]);
        }
    }
}
