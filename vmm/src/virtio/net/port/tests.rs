use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS};
use vm_memory::{Bytes, GuestAddress};
use volt_net::config::STATUS_LINK_UP;
use volt_net::port::socket::SocketPort;
use volt_net::port::{Port, PortQueue};

use super::*;
use crate::virtio::mmio::interrupt::{INT_CONFIG, INT_VRING};
use crate::virtio::testing::{BUFFERS, Driver, HIGH, eventually};

pub(super) const TX: u64 = BUFFERS;
const RX: u64 = HIGH;
const CONTROL: u64 = BUFFERS + 0x10_0000;
pub(super) const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

/// The calls that a port received.
#[derive(Debug, Default)]
struct Told {
    offloads: Vec<Features>,
    attached: Vec<Vec<bool>>,
    reopened: usize,
}

/// A socket port that records its calls, and can be reopened once `next` is set.
#[derive(Debug)]
struct TestPort {
    sockets: SocketPort,
    told: Arc<Mutex<Told>>,
    next: Arc<Mutex<Option<Vec<OwnedFd>>>>,
}

impl Port for TestPort {
    fn name(&self) -> &str {
        "test"
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.sockets.queue(pair)
    }

    fn extra_features(&self) -> Features {
        Features::empty()
    }

    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }

    fn set_offloads(&mut self, acked: Features) -> io::Result<()> {
        self.told.lock().unwrap().offloads.push(acked);
        Ok(())
    }

    fn attach(&mut self, active: &[bool]) -> io::Result<()> {
        self.told.lock().unwrap().attached.push(active.to_vec());
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        let sockets = self.next.lock().unwrap().take().ok_or(io::ErrorKind::NotFound)?;
        self.sockets = SocketPort::new(sockets)?;
        self.told.lock().unwrap().reopened += 1;
        Ok(())
    }
}

/// A driver with its device, and the device's other end.
struct Rig {
    driver: Driver,
    wires: Vec<UnixDatagram>,
    told: Arc<Mutex<Told>>,
    next: Arc<Mutex<Option<Vec<OwnedFd>>>>,
}

pub(super) fn wires(pairs: u16) -> (Vec<OwnedFd>, Vec<UnixDatagram>) {
    (0..pairs).map(|_| UnixDatagram::pair().unwrap()).map(|(ours, wire)| (OwnedFd::from(ours), wire)).unzip()
}

pub(super) fn wake() -> Arc<Notifier> {
    convert::notifier(&EventFd::new(EFD_NONBLOCK).unwrap()).unwrap()
}

fn rig(pairs: u16) -> Rig {
    let (sockets, wires) = wires(pairs);
    let (told, next) = (Arc::default(), Arc::default());
    let sockets = SocketPort::new(sockets).unwrap();
    let port = TestPort { sockets, told: Arc::clone(&told), next: Arc::clone(&next) };
    let wake = wake();
    let builder = VirtioNetBuilder::over(port).mac(MAC).queues(pairs).wake(wake.clone());
    let net = Net::in_process("test", builder.build().unwrap(), wake, &Arc::default()).unwrap();
    Rig { driver: Driver::new(net), wires, told, next }
}

/// Creates a device called "test" with `port`.
pub(super) fn net_over(port: impl Port + 'static) -> Net {
    let wake = wake();
    let builder = VirtioNetBuilder::over(port).mac(MAC).wake(wake.clone());
    Net::in_process("test", builder.build().unwrap(), wake, &Arc::default()).unwrap()
}

/// Creates a device called "test" with a socket, and returns the socket's other end.
pub(crate) fn socket_net(gate: &Arc<PauseGate>) -> (Net, UnixDatagram) {
    let (sockets, mut wires) = wires(1);
    let wake = wake();
    let builder = VirtioNetBuilder::over(SocketPort::new(sockets).unwrap()).wake(wake.clone());
    let net = Net::in_process("test", builder.build().unwrap(), wake, gate).unwrap();
    (net, wires.remove(0))
}

/// Sends a frame of `fill` each way on `pair`.
fn both_ways(rig: &mut Rig, pair: u16, fill: u8) {
    both_ways_on(&mut rig.driver, &rig.wires[usize::from(pair)], pair, fill);
}

/// Sends a frame of `fill` each way on the first pair, whose other end is `wire`.
pub(super) fn both_ways_over(driver: &mut Driver, wire: &UnixDatagram, fill: u8) {
    both_ways_on(driver, wire, 0, fill);
}

fn both_ways_on(driver: &mut Driver, wire: &UnixDatagram, pair: u16, fill: u8) {
    let (rx, tx) = (2 * pair, 2 * pair + 1);
    driver.put(TX, &[[0; 12].as_slice(), &[fill; 100]].concat());
    assert_eq!(driver.request(tx, &[(TX, 12, false), (TX + 12, 100, false)]), 0);
    let mut frame = [0; 256];
    let len = wire.recv(&mut frame).unwrap();
    assert_eq!(frame[..len], [[0; 12].as_slice(), &[fill; 100]].concat());

    driver.put(RX, &[0xee; 256]);
    driver.offer(rx, &[(RX, 256, true)]);
    driver.kick(rx);
    wire.send(&frame[..len]).unwrap();
    assert_eq!(driver.wait_used(rx), 112);
    assert_eq!(driver.get(RX + 12, 101), [[fill; 100].as_slice(), &[0xee]].concat());
}

pub(super) fn control(driver: &mut Driver, index: u16, command: &[u8]) -> u8 {
    driver.put(CONTROL, command);
    let len = command.len() as u32;
    assert_eq!(driver.request(index, &[(CONTROL, len, false), (CONTROL + 0x1000, 1, true)]), 1);
    driver.get(CONTROL + 0x1000, 1)[0]
}

fn config(driver: &mut Driver) -> NetConfig {
    NetConfig::from_bytes(&driver.config(17).try_into().unwrap())
}

#[test]
fn frames_go_both_ways_after_any_number_of_resets() {
    let mut rig = rig(1);
    for round in 0..50 {
        let event_idx = if round % 2 == 0 { Features::EVENT_IDX } else { Features::empty() };
        rig.driver.run(Features::VERSION_1.union(event_idx), &[0, 1]);
        both_ways(&mut rig, 0, round);
        assert_eq!(rig.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS) & INT_VRING, INT_VRING);
        rig.driver.reset();
    }
}

/// A reset returns everything: afterwards the driver may use its memory for anything.
#[test]
fn after_a_reset_nothing_is_touched() {
    let mut rig = rig(1);
    rig.driver.run(Features::VERSION_1, &[0, 1]);
    rig.driver.put(RX, &[0xee; 256]);
    rig.driver.offer(0, &[(RX, 256, true)]);
    rig.driver.kick(0);
    rig.driver.reset();
    rig.wires[0].send(&[1; 112]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(rig.driver.get(RX, 256), [0xee; 256]);
    assert_eq!(rig.driver.used(0), None);
}

#[test]
fn pairs_follow_the_driver() {
    let mut rig = rig(2);
    let multi_queue = Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_MQ);
    rig.driver.run(multi_queue, &[0, 1, 2, 3, 4]);
    assert_eq!(config(&mut rig.driver).max_pairs, 2);
    assert_eq!(control(&mut rig.driver, 4, &[4, 0, 2, 0]), 0);
    both_ways(&mut rig, 0, 1);
    both_ways(&mut rig, 1, 2);
    assert_eq!(control(&mut rig.driver, 4, &[4, 0, 3, 0]), 1);
    assert_eq!(control(&mut rig.driver, 4, &[4, 0, 1, 0]), 0);
    let told = rig.told.lock().unwrap();
    assert_eq!(told.attached, [[true, false], [true, true], [true, false]]);
}

/// A pair whose vrings are not ready is not attached, even if the driver wants it: its frames would be lost.
#[test]
fn pairs_that_do_not_run_take_no_part() {
    let mut rig = rig(3);
    let multi_queue = Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_MQ);
    // The driver only transmits on the third pair.
    rig.driver.run(multi_queue, &[0, 1, 5, 6]);
    assert_eq!(control(&mut rig.driver, 6, &[4, 0, 3, 0]), 0);
    both_ways(&mut rig, 0, 1);
    assert_eq!(rig.told.lock().unwrap().attached, [[true, false, false], [true, false, false]]);
}

#[test]
fn receive_offloads_follow_the_driver() {
    let mut rig = rig(1);
    let offloads = Features::NET_GUEST_CSUM.union(Features::NET_GUEST_TSO4);
    let acked = Features::VERSION_1
        .union(Features::NET_CTRL_VQ)
        .union(Features::NET_CTRL_GUEST_OFFLOADS)
        .union(offloads);
    rig.driver.run(acked, &[0, 1, 2]);
    let command = |set: Features| [[5, 0].as_slice(), &set.bits().to_le_bytes()].concat();
    assert_eq!(control(&mut rig.driver, 2, &command(Features::NET_GUEST_CSUM)), 0);
    assert_eq!(control(&mut rig.driver, 2, &command(Features::NET_GUEST_TSO6)), 1);
    rig.driver.reset();
    let told = rig.told.lock().unwrap();
    assert_eq!(told.offloads, [acked, acked.difference(Features::NET_GUEST_TSO4), Features::empty()]);
}

#[test]
fn the_address_is_the_drivers_until_a_reset() {
    let mut rig = rig(1);
    rig.driver
        .run(Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_CTRL_MAC_ADDR), &[0, 1, 2]);
    assert_eq!(config(&mut rig.driver).mac, MAC);
    assert_eq!(control(&mut rig.driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(config(&mut rig.driver).mac, Mac([2, 0, 0, 0, 0, 9]));
    assert_eq!(control(&mut rig.driver, 2, &[0, 0, 1]), 1, "receive modes were not negotiated");
    rig.driver.reset();
    assert_eq!(config(&mut rig.driver).mac, MAC);
    assert_eq!((config(&mut rig.driver).mtu, config(&mut rig.driver).status), (1500, STATUS_LINK_UP));
}

#[test]
fn a_driver_that_breaks_its_ring_is_asked_for_a_reset() {
    let mut rig = rig(1);
    for _ in 0..2 {
        rig.driver.run(Features::VERSION_1, &[0, 1]);
        // More available than the ring has entries.
        let index = GuestAddress(rig.driver.rings[&1].available + 2);
        rig.driver.memory.write_obj(300u16, index).unwrap();
        rig.driver.kick(1);
        eventually("NEEDS_RESET", || rig.driver.read(VIRTIO_MMIO_STATUS) & 0x40 != 0);
        rig.driver.reset();
    }
    rig.driver.run(Features::VERSION_1, &[0, 1]);
    both_ways(&mut rig, 0, 9);
    assert_eq!(rig.driver.read(VIRTIO_MMIO_STATUS), 15);
}

#[test]
fn a_pair_whose_receive_ring_is_broken_gets_no_frames() {
    let mut rig = rig(2);
    let features = Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_MQ);
    rig.driver.run(features, &[0, 1, 2, 3, 4]);
    assert_eq!(control(&mut rig.driver, 4, &[4, 0, 2, 0]), 0, "two pairs");
    both_ways(&mut rig, 1, 3);
    let index = GuestAddress(rig.driver.rings[&2].available + 2);
    rig.driver.memory.write_obj(300u16, index).unwrap();
    rig.driver.kick(2);
    rig.wires[1].send(&[0; 112]).unwrap();
    let attached = rig.told.clone();
    eventually("it is left out", || {
        attached.lock().unwrap().attached.last().is_some_and(|active| *active == [true, false])
    });
    both_ways(&mut rig, 0, 4);
}

#[test]
fn an_interface_that_goes_and_comes_takes_the_link_with_it() {
    let mut rig = rig(1);
    rig.driver.run(Features::VERSION_1, &[0, 1]);
    both_ways(&mut rig, 0, 1);
    rig.wires.clear();
    rig.driver.put(TX, &[0; 112]);
    rig.driver.request(1, &[(TX, 112, false)]);
    eventually("the link is down", || config(&mut rig.driver).status & STATUS_LINK_UP == 0);
    eventually("an interrupt", || rig.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS) & INT_CONFIG != 0);
    let (sockets, wires) = wires(1);
    rig.wires = wires;
    *rig.next.lock().unwrap() = Some(sockets);
    eventually("the link is up", || config(&mut rig.driver).status & STATUS_LINK_UP != 0);
    assert_eq!(rig.told.lock().unwrap().reopened, 1);
    both_ways(&mut rig, 0, 2);
}

#[test]
fn a_driver_without_data_vrings_is_told() {
    let mut rig = rig(1);
    assert_eq!(rig.driver.negotiate(Features::VERSION_1), 11);
    rig.driver.add_ring(0, 16);
    assert_eq!(rig.driver.start() & 0x40, 0x40);
    rig.driver.run(Features::VERSION_1, &[0, 1]);
    both_ways(&mut rig, 0, 3);
}

/// Any thread with a handle changes limits while the guest runs. No frame is lost, and they apply at once.
#[test]
fn rate_limits_change_at_run_time() {
    let (net, wire) = socket_net(&Arc::default());
    let control = net.handle();
    let mut driver = Driver::new(net);
    let seconds_for = |driver: &mut Driver, frames: usize| {
        let start = std::time::Instant::now();
        for _ in 0..frames {
            assert_eq!(driver.request(1, &[(TX, 100, false)]), 0);
            assert_eq!(wire.recv(&mut [0; 256]).unwrap(), 100);
        }
        start.elapsed().as_secs_f64()
    };
    driver.run(Features::VERSION_1, &[0, 1]);
    driver.put(TX, &[0; 100]);
    control.change_limits(LimitsChange { rx: None, tx: Some("100pps:1".parse().unwrap()) }).unwrap();
    let limited = seconds_for(&mut driver, 50);
    assert!(limited >= 0.48, "{limited} s for 50 frames at 100 a second");
    control.change_limits(LimitsChange { rx: None, tx: Some("none".parse().unwrap()) }).unwrap();
    // With the previous limit it would take five seconds, however fast the machine is.
    let free = seconds_for(&mut driver, 500);
    assert!(free < 4.9, "{free} s for 500 frames without limit");
}

/// A pause stops frames in both directions. No frame on its way is lost, and all are counted afterwards.
/// Changes during the pause wait, too.
#[test]
fn frames_wait_while_the_device_is_paused() {
    let (net, wire) = socket_net(&Arc::default());
    let control = net.handle();
    let status = || serde_json::to_value(control.status()).unwrap();
    let mut driver = Driver::new(net);
    driver.run(Features::VERSION_1, &[0, 1]);
    for round in 0..3u64 {
        control.pause().unwrap();
        driver.put(TX, &[0; 112]);
        driver.put(RX, &[0xee; 256]);
        driver.offer(1, &[(TX, 112, false)]);
        driver.kick(1);
        driver.offer(0, &[(RX, 256, true)]);
        driver.kick(0);
        wire.send(&[[0; 12].as_slice(), &[1; 100]].concat()).unwrap();
        control.change_limits(LimitsChange { rx: Some("1Gbit".parse().unwrap()), tx: None }).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert_eq!((driver.used(0), driver.used(1), driver.get(RX, 256)), (None, None, [0xee; 256].to_vec()));
        control.resume();
        eventually("a frame to the guest", || driver.used(0).is_some());
        eventually("a frame from the guest", || driver.used(1).is_some());
        assert_eq!(wire.recv(&mut [0; 256]).unwrap(), 112);
        let status = status();
        let count = |vring: usize| status["vrings"][vring]["frames"].as_u64().unwrap();
        assert_eq!(
            (count(0), count(1), status["vrings"][0]["drops"].as_u64()),
            (round + 1, round + 1, Some(0))
        );
    }
}

/// The interface is closed with its device, even if a thread still shows or controls the device. Another
/// program can use it at once.
#[test]
fn who_shows_or_controls_a_device_does_not_keep_its_interface() {
    for _ in 0..100 {
        let (net, wire) = socket_net(&Arc::default());
        let control = net.handle();
        let status = || serde_json::to_value(control.status()).unwrap();
        assert_eq!(status()["vrings"].as_array().unwrap().len(), 2);
        wire.send(&[0; 112]).unwrap();
        let done = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    status();
                }
            });
            drop(net);
            let sent = wire.send(&[0; 112]);
            done.store(true, Ordering::Relaxed);
            sent
        });
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let status = status();
        assert_eq!((&status["device"], status.get("vrings")), (&"net test".into(), None));
        assert_eq!(control.change_limits(LimitsChange::default()), Err(LimitsError::Gone));
        control.pause().unwrap();
        control.resume();
    }
}
