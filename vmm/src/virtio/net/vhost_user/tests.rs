use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS};

use super::peer::{Options, Peer};
use super::scripted::{
    GET_VRING_BASE, SET_MEM_TABLE, SET_VRING_BASE, SET_VRING_ENABLE, SET_VRING_KICK, scripted,
};
use super::shared::STOP_LIMIT;
use super::*;
use crate::virtio::testing::{BUFFERS, Driver, HIGH, eventually};

pub(super) const TX: u64 = BUFFERS;
pub(super) const RX: u64 = HIGH;
const CONTROL: u64 = BUFFERS + 0x10_0000;

pub(super) fn socket() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.sock");
    (dir, path)
}

pub(super) fn config(path: &std::path::Path, queues: u16) -> NetSocketConfig {
    let timeout = Some(Duration::from_secs(10));
    let socket = path.to_owned();
    NetSocketConfig { socket, mac: None, mtu: None, queues, timeout, link_down_after: None }
}

fn connect(options: Options, queues: u16) -> (TempDir, Peer, VhostUserNet) {
    let (dir, path) = socket();
    let peer = Peer::start(&path, options);
    let device = VhostUserNet::connect(&config(&path, queues), &Arc::default()).unwrap();
    (dir, peer, device)
}

/// Returns the whole chain of an error, for a back-end with these options.
fn refusal(options: Options, queues: u16) -> String {
    let (_dir, path) = socket();
    let _peer = Peer::start(&path, options);
    match VhostUserNet::connect(&config(&path, queues), &Arc::default()) {
        Ok(_) => panic!("connected"),
        Err(error) => volt_virtio::error_chain(&error),
    }
}

/// Sends a frame over `pair`, which the back-end returns, and checks it.
pub(super) fn echo(driver: &mut Driver, pair: u16, fill: u8) {
    let (rx, tx) = (2 * pair, 2 * pair + 1);
    driver.put(RX, &[0; 256]);
    driver.put(TX, &[fill; 112]);
    driver.offer(rx, &[(RX, 256, true)]);
    driver.kick(rx);
    assert_eq!(driver.request(tx, &[(TX, 12, false), (TX + 12, 100, false)]), 0);
    assert_eq!(driver.wait_used(rx), 112);
    assert_eq!(driver.get(RX, 113), [[fill; 112].as_slice(), &[0]].concat());
}

pub(super) fn control(driver: &mut Driver, index: u16, command: &[u8]) -> u8 {
    driver.put(CONTROL, command);
    driver.put(CONTROL + 0x1000, &[0xee]);
    let len = command.len() as u32 - 2;
    let used =
        driver.request(index, &[(CONTROL, 2, false), (CONTROL + 2, len, false), (CONTROL + 0x1000, 1, true)]);
    assert_eq!(used, 1);
    driver.get(CONTROL + 0x1000, 1)[0]
}

/// A driver that does not make all data vrings ready gets an error, and its commands still get answers.
#[test]
fn commands_are_answered_without_data_vrings() {
    let (_dir, _peer, device) = connect(Options::default(), 1);
    let mut driver = Driver::new(device);
    driver.negotiate(Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_CTRL_MAC_ADDR));
    driver.add_ring(0, 16);
    driver.add_ring(2, 16);
    assert_eq!(driver.start(), 0x4f);
    assert_eq!(control(&mut driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), 1);
}

pub(super) const MQ: Features = Features::NET_MQ.union(Features::NET_CTRL_VQ);

#[test]
fn the_guest_is_offered_what_both_sides_can() {
    let theirs = Features::VERSION_1
        .union(Features::PROTOCOL_FEATURES)
        .union(Features::NET_CSUM)
        .union(Features::RING_PACKED)
        .union(Features::NET_GUEST_ANNOUNCE)
        .union(Features::NOTIFICATION_DATA)
        .union(Features::ACCESS_PLATFORM)
        .union(Features::NET_CTRL_GUEST_OFFLOADS);
    let (_dir, _peer, device) = connect(Options { features: theirs, ..Options::default() }, 1);
    assert_eq!(device.features(), Features::VERSION_1.union(Features::NET_CSUM).union(OWN));
    let mut config = [0; 17];
    device.read_config(0, &mut config);
    let config = NetConfig::from_bytes(&config);
    assert_eq!((config.status, config.max_pairs, config.mac.0[0] & 3), (STATUS_LINK_UP, 1, 2));
}

#[test]
fn mac_and_mtu_come_from_command_line_then_back_end() {
    let theirs = NetConfig { mac: Mac([2, 0, 0, 0, 0, 9]), mtu: 9000, ..NetConfig::from_bytes(&[0; 17]) };
    let options = || Options { config: Some(theirs), ..Options::default() };
    let read = |device: &VhostUserNet| {
        let mut bytes = [0; 17];
        device.read_config(0, &mut bytes);
        assert!(device.features().contains(Features::NET_MAC.union(Features::NET_MTU)));
        let config = NetConfig::from_bytes(&bytes);
        (config.mac, config.mtu)
    };
    let (_dir, _peer, device) = connect(options(), 1);
    assert_eq!(read(&device), (theirs.mac, 9000));

    let (_dir, path) = socket();
    let _peer = Peer::start(&path, options());
    let mac = Mac([2, 1, 1, 1, 1, 1]);
    let own = NetSocketConfig { mac: Some(mac), mtu: Some(1400), ..config(&path, 1) };
    assert_eq!(read(&VhostUserNet::connect(&own, &Arc::default()).unwrap()), (mac, 1400));
}

#[test]
fn frames_go_both_ways_again_after_each_reset() {
    let (_dir, peer, device) = connect(Options::default(), 1);
    let mut driver = Driver::new(device);
    for (round, features) in
        [Features::empty(), Features::EVENT_IDX, Features::empty()].into_iter().enumerate()
    {
        driver.run(Features::VERSION_1.union(features), &[0, 1]);
        for n in 0..40 {
            echo(&mut driver, 0, (round * 40 + n) as u8 + 1);
        }
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1, "a back-end's interrupt is for a vring");
        let told = features.union(Features::VERSION_1).union(Features::PROTOCOL_FEATURES);
        assert_eq!(peer.acked(), told);
        driver.reset();
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        // The rings belong to the guest again: new buffers stay untouched.
        assert_eq!(peer.kicks_within(&mut driver), 0);
    }
}

#[test]
fn the_driver_chooses_the_pairs_by_the_control_vring() {
    let (_dir, peer, device) = connect(Options { pairs: 2, ..Options::default() }, 2);
    let mut driver = Driver::new(device);
    assert!(driver.offered_features().contains(MQ));
    for _ in 0..2 {
        driver.run(Features::VERSION_1.union(MQ), &[0, 1, 2, 3, 4]);
        echo(&mut driver, 0, 1);
        assert!(!peer.enabled(3), "one pair until the driver asks for more");
        assert_eq!(control(&mut driver, 4, &[4, 0, 2, 0]), 0);
        eventually("the second pair", || peer.enabled(3));
        echo(&mut driver, 1, 2);
        assert_eq!(control(&mut driver, 4, &[4, 0, 3, 0]), 1, "three pairs of two");
        assert_eq!(control(&mut driver, 4, &[4, 0, 1, 0]), 0);
        eventually("one pair again", || !peer.enabled(3));
        echo(&mut driver, 0, 3);
        driver.reset();
    }
}

/// The back-end gets the receive offloads in a new SET_FEATURES, and continues with its vrings meanwhile.
#[test]
fn the_driver_changes_its_receive_offloads_by_the_control_vring() {
    let offloads = Features::NET_GUEST_CSUM.union(Features::NET_GUEST_TSO4);
    let features = Options::default().features.union(offloads);
    let (_dir, peer, device) = connect(Options { features, ..Options::default() }, 1);
    let mut driver = Driver::new(device);
    let acked = Features::VERSION_1.union(offloads);
    let own = Features::NET_CTRL_VQ.union(Features::NET_CTRL_GUEST_OFFLOADS);
    let told = Features::PROTOCOL_FEATURES.union(acked);
    for _ in 0..2 {
        driver.run(acked.union(own), &[0, 1, 2]);
        echo(&mut driver, 0, 1);
        assert_eq!(peer.acked(), told);
        let command = |set: Features| [[5, 0].as_slice(), &set.bits().to_le_bytes()].concat();
        assert_eq!(control(&mut driver, 2, &command(Features::NET_GUEST_CSUM)), 0);
        eventually("less", || peer.acked() == told.difference(Features::NET_GUEST_TSO4));
        assert_eq!(control(&mut driver, 2, &command(Features::NET_GUEST_TSO6)), 1, "not acknowledged");
        echo(&mut driver, 0, 2);
        driver.reset();
    }
}

/// Without MQ the control vring follows the first pair, however many the device has.
#[test]
fn control_vring_without_mq() {
    let (_dir, _peer, device) = connect(Options { pairs: 2, ..Options::default() }, 2);
    let mut driver = Driver::new(device);
    let features = Features::NET_CTRL_VQ.union(Features::NET_CTRL_RX).union(Features::NET_CTRL_MAC_ADDR);
    driver.run(Features::VERSION_1.union(features), &[0, 1, 2]);
    let mac = driver.config(6);
    assert_eq!(control(&mut driver, 2, &[0, 0, 1]), 0, "promiscuous");
    assert_eq!(control(&mut driver, 2, &[4, 0, 2, 0]), 1, "MQ was not acknowledged");
    assert_eq!(control(&mut driver, 2, &[1, 1, 2, 3, 4, 5, 6, 7]), 0, "another address");
    assert_eq!(driver.config(6), [2, 3, 4, 5, 6, 7]);
    echo(&mut driver, 0, 7);
    driver.reset();
    assert_eq!(driver.config(6), mac, "a reset gives the device its own address back");
}

#[test]
fn control_commands_without_sense_are_answered() {
    let (_dir, _peer, device) = connect(Options::default(), 1);
    let mut driver = Driver::new(device);
    driver.run(Features::VERSION_1.union(Features::NET_CTRL_VQ), &[0, 1, 2]);
    assert_eq!(driver.request(2, &[(CONTROL, 2, false)]), 0, "no room for an answer");
    assert_eq!(driver.request(2, &[(CONTROL + 0x1000, 1, true)]), 1, "no command");
    assert_eq!(driver.get(CONTROL + 0x1000, 1), [1]);
    assert_eq!(
        driver.request(2, &[(CONTROL, 1 << 20, false), (CONTROL + 0x20_0000, 1, true)]),
        1,
        "too long"
    );
    assert_eq!(driver.request(2, &[(u64::MAX, 2, false), (CONTROL + 0x1000, 1, true)]), 0, "out of memory");
    driver.publish(2, 16);
    driver.kick(2);
    eventually("NEEDS_RESET", || driver.read(VIRTIO_MMIO_STATUS) == 0x4f);
    driver.run(Features::VERSION_1.union(Features::NET_CTRL_VQ), &[0, 1, 2]);
    echo(&mut driver, 0, 1);
}

#[test]
fn back_ends_that_lack_something_are_refused_by_name() {
    let only = |features| Options { features, ..Options::default() };
    let text = refusal(only(Features::VERSION_1), 1);
    assert!(text.contains("PROTOCOL_FEATURES"), "{text}");
    let text = refusal(only(Features::PROTOCOL_FEATURES), 1);
    assert!(text.contains("VERSION_1"), "{text}");
    let text = refusal(Options { pairs: 2, ..Options::default() }, 8);
    assert!(text.contains("2 queue pairs and 8 are needed"), "{text}");
    // The number of pairs in the configuration space counts, even if GET_QUEUE_NUM could be read as enough.
    let config = NetConfig { max_pairs: 2, ..NetConfig::from_bytes(&[0; 17]) };
    let features = Options::default().features.union(Features::NET_MQ);
    let text = refusal(Options { pairs: 2, features, config: Some(config), ..Options::default() }, 4);
    assert!(text.contains("2 queue pairs and 4 are needed"), "{text}");
    let text = refusal(Options { mq: false, ..Options::default() }, 2);
    assert!(text.contains("1 queue pair and 2 are needed"), "{text}");
}

/// A number of queues may count pairs or vrings. In both cases each activation does the whole set-up, and
/// each reset stops everything.
#[test]
fn queue_numbers_may_count_pairs_or_vrings() {
    for queue_num in [2, 3, 4, 100] {
        let (_dir, path) = socket();
        let peer = scripted(&path, queue_num);
        let mut driver = Driver::new(VhostUserNet::connect(&config(&path, 2), &Arc::default()).unwrap());
        for _ in 0..2 {
            driver.run(Features::VERSION_1.union(MQ), &[0, 1, 2, 3, 4]);
            assert_eq!(control(&mut driver, 4, &[4, 0, 2, 0]), 0);
            driver.reset();
        }
        drop(driver);
        let requests = peer.join().unwrap();
        let count = |wanted| requests.iter().filter(|(request, _)| *request == wanted).count();
        assert_eq!(count(SET_MEM_TABLE), 2);
        assert_eq!(count(SET_VRING_BASE), 8);
        assert_eq!(count(SET_VRING_KICK), 8);
        // At the start and at the end, and for the command, unless the reset comes before it is passed on.
        let enables = count(SET_VRING_ENABLE);
        assert!((2 * 2 * 4..=2 * 3 * 4).contains(&enables), "{enables}");
        assert_eq!(count(GET_VRING_BASE), 8);
    }
    let (_dir, path) = socket();
    let peer = scripted(&path, 1);
    let error = VhostUserNet::connect(&config(&path, 2), &Arc::default()).err().unwrap();
    let text = volt_virtio::error_chain(&error);
    assert!(text.contains("1 queue pair and 2 are needed"), "{text}");
    peer.join().unwrap();
}

/// A back-end continues at the used index in guest memory.
#[test]
fn vrings_start_at_their_used_index() {
    let (_dir, path) = socket();
    let peer = scripted(&path, 2);
    let mut driver = Driver::new(VhostUserNet::connect(&config(&path, 1), &Arc::default()).unwrap());
    driver.negotiate(Features::VERSION_1);
    for index in [0, 1] {
        driver.add_ring(index, 16);
        let used = driver.rings[&index].used;
        driver.put(used + 2, &(7 + index).to_le_bytes());
    }
    assert_eq!(driver.start(), 15);
    driver.reset();
    drop(driver);
    let requests = peer.join().unwrap();
    let bases = requests.iter().filter(|(request, _)| *request == SET_VRING_BASE).map(|(_, base)| *base);
    assert_eq!(bases.collect::<Vec<_>>(), [7, 8]);
}

/// Returns the CPU time of each link's thread in this process, in ticks of 10 ms, by thread number.
fn link_threads() -> BTreeMap<String, u64> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        // A thread of another test may end meanwhile.
        let Ok(stat) = fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let Some((thread, fields)) = stat.split_once(" (net) ") else { continue };
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks = |field: usize| fields[field].parse::<u64>().unwrap();
        threads.insert(thread.to_owned(), ticks(11) + ticks(12));
    }
    assert!(!threads.is_empty());
    threads
}

/// The driver's control commands, resets and new starts work as before. No thread spins.
#[test]
fn a_back_end_that_dies_leaves_the_guest_alone() {
    let (_dir, peer, device) = connect(Options { pairs: 2, ..Options::default() }, 2);
    let mut driver = Driver::new(device);
    driver.run(Features::VERSION_1.union(MQ), &[0, 1, 2, 3, 4]);
    echo(&mut driver, 0, 1);
    peer.kill();
    for _ in 0..2 {
        assert_eq!(control(&mut driver, 4, &[4, 0, 2, 0]), 0);
        driver.offer(1, &[(TX, 100, false)]);
        driver.kick(1);
        assert_eq!(driver.used(1), None);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 15);
        driver.reset();
        driver.run(Features::VERSION_1.union(MQ), &[0, 1, 2, 3, 4]);
    }
    let before = link_threads();
    thread::sleep(Duration::from_millis(500));
    for (thread, ticks) in link_threads() {
        let spent = ticks - before.get(&thread).unwrap_or(&0);
        assert!(spent < 10, "thread {thread} used {spent} ticks of 10 ms in half a second");
    }
    drop(driver);
}

/// A stopped back-end delays a reset, and nothing else.
#[test]
fn a_hung_back_end_delays_a_reset_only() {
    let (_dir, path) = socket();
    let peer = Peer::start(&path, Options::default());
    let mut driver = Driver::new(VhostUserNet::connect(&config(&path, 1), &Arc::default()).unwrap());
    driver.run(Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_CTRL_RX), &[0, 1, 2]);
    echo(&mut driver, 0, 1);
    let hang = peer.hang();
    let started = Instant::now();
    assert_eq!(control(&mut driver, 2, &[0, 0, 1]), 0);
    assert!(started.elapsed() < STOP_LIMIT, "answered while the back-end hangs");
    driver.reset();
    let waited = started.elapsed();
    assert!((STOP_LIMIT..20 * STOP_LIMIT).contains(&waited), "{waited:?}");
    drop(hang);
    driver.run(Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_CTRL_RX), &[0, 1, 2]);
    assert_eq!(control(&mut driver, 2, &[0, 0, 1]), 0);
}
