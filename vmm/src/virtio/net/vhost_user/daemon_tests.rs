//! The front-end with the session and the data path of volt-netd, over sockets instead of a TAP.

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, eventfd, poll};
use tempfile::TempDir;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS};
use volt_net::device::{DeviceOptions, NetDevice};
use volt_net::port::socket::SocketPort;
use volt_net::port::{Port, PortQueue};
use volt_vhost_user::channel::Channel;
use volt_vhost_user::session::Session as BackEnd;
use volt_virtio::notify::Notifier;

use super::*;
use crate::virtio::testing::{BUFFERS, Driver, HIGH, PATIENCE, eventually};

const TX: u64 = BUFFERS;
const RX: u64 = HIGH;
const CONTROL: u64 = BUFFERS + 0x10_0000;

/// A daemon's main loop without the daemon, for any number of connections.
struct Daemon {
    stop: Arc<AtomicBool>,
    /// Ends the present connection.
    hang_up: Arc<AtomicBool>,
    /// Whether the port's interface is up.
    up: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The other end of each pair.
    wires: Vec<UnixDatagram>,
    dir: TempDir,
}

impl Daemon {
    fn start(pairs: u16, mac: Mac) -> Daemon {
        // Without it, the signal that interrupts a slow worker's call would end the tests.
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("net.sock")).unwrap();
        let (wires, ports): (Vec<_>, Vec<_>) = (0..pairs).map(|_| UnixDatagram::pair().unwrap()).unzip();
        for wire in &wires {
            wire.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let port = SocketPort::new(ports.into_iter().map(Into::into).collect()).unwrap();
        let wake = Notifier::new(eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap()).unwrap();
        let options = DeviceOptions { pairs, mac, mtu: Some(1400) };
        let stop = Arc::new(AtomicBool::new(false));
        let hang_up = Arc::new(AtomicBool::new(false));
        let up = Arc::new(AtomicBool::new(true));
        let port = Switched { port, up: up.clone() };
        let (its_stop, its_hang_up) = (stop.clone(), hang_up.clone());
        let thread = thread::spawn(move || {
            let mut device = NetDevice::new(Box::new(port), options, Arc::new(wake)).unwrap();
            while let Some(channel) = accept(&listener, &its_stop) {
                serve(channel, &mut device, || {
                    its_stop.load(Ordering::Acquire) || its_hang_up.swap(false, Ordering::AcqRel)
                });
            }
        });
        Daemon { stop, hang_up, up, thread: Some(thread), wires, dir }
    }

    fn try_connect(&self, queues: u16) -> Result<VhostUserNet, VhostUserNetError> {
        let socket = self.dir.path().join("net.sock");
        VhostUserNet::connect(&super::tests::config(&socket, queues), &Arc::default())
    }

    fn connect(&self, queues: u16) -> VhostUserNet {
        self.try_connect(queues).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Sockets that can be set down, like an interface.
#[derive(Debug)]
struct Switched {
    port: SocketPort,
    up: Arc<AtomicBool>,
}

impl Port for Switched {
    fn name(&self) -> &str {
        self.port.name()
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.port.queue(pair)
    }

    fn extra_features(&self) -> Features {
        self.port.extra_features()
    }

    fn mtu(&self) -> Option<u16> {
        self.port.mtu()
    }

    fn is_up(&self) -> Option<bool> {
        Some(self.up.load(Ordering::Acquire))
    }

    fn set_offloads(&mut self, acked: Features) -> std::io::Result<()> {
        self.port.set_offloads(acked)
    }

    fn attach(&mut self, active: &[bool]) -> std::io::Result<()> {
        self.port.attach(active)
    }

    fn reopen(&mut self) -> std::io::Result<()> {
        self.port.reopen()
    }
}

fn readable(fd: impl std::os::fd::AsFd) -> bool {
    let tick = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&tick)).unwrap() > 0
}

fn accept(listener: &UnixListener, stop: &AtomicBool) -> Option<Channel> {
    while !stop.load(Ordering::Acquire) {
        if readable(listener) {
            return Some(Channel::new(listener.accept().unwrap().0).unwrap());
        }
    }
    None
}

fn serve(mut channel: Channel, device: &mut NetDevice, is_over: impl Fn() -> bool) {
    let mut session = BackEnd::new(device, 1024);
    'connection: while !is_over() {
        device.look_at_link();
        session.tell_link(device);
        if !readable(&channel) {
            continue;
        }
        loop {
            match channel.receive() {
                Ok(Some(message)) => {
                    if let Some(reply) = session.handle(message, device).unwrap() {
                        channel.send(&reply).unwrap();
                    }
                }
                Ok(None) => break,
                Err(_) => break 'connection,
            }
        }
    }
    session.close(device).unwrap();
}

/// Exchanges a frame each way over `pair`.
fn exchange(driver: &mut Driver, daemon: &Daemon, pair: u16, fill: u8) {
    let wire = &daemon.wires[usize::from(pair)];
    let frame = [[0; 12].as_slice(), &[fill; 100]].concat();
    driver.put(TX, &frame);
    assert_eq!(driver.request(2 * pair + 1, &[(TX, 12, false), (TX + 12, 100, false)]), 0);
    let mut seen = [0xee; 200];
    assert_eq!(wire.recv(&mut seen).unwrap(), 112);
    assert_eq!(seen[12..112], [fill; 100]);

    driver.put(RX, &[0; 200]);
    driver.offer(2 * pair, &[(RX, 200, true)]);
    driver.kick(2 * pair);
    wire.send(&frame).unwrap();
    assert_eq!(driver.wait_used(2 * pair), 112);
    assert_eq!(driver.get(RX + 12, 100), [fill; 100]);
}

#[test]
fn configuration_and_features_are_volt_netds() {
    let mac = Mac([2, 7, 7, 7, 7, 7]);
    let daemon = Daemon::start(1, mac);
    let device = daemon.connect(1);
    let mut bytes = [0; 17];
    device.read_config(0, &mut bytes);
    let config = NetConfig::from_bytes(&bytes);
    assert_eq!((config.mac, config.mtu, config.max_pairs), (mac, 1400, 1));
    let offload = Features::NET_CSUM.union(Features::NET_GUEST_TSO4).union(Features::NET_MRG_RXBUF);
    assert!(device.features().contains(offload.union(Features::NET_MTU).union(Features::IN_ORDER)));
}

/// Frames and resets, with one connection after the other to one daemon.
#[test]
fn frames_through_volt_netds_data_path() {
    let daemon = Daemon::start(1, Mac([2, 0, 0, 0, 0, 1]));
    for connection in 0..2 {
        let mut driver = Driver::new(daemon.connect(1));
        let all = driver.offered_features();
        for features in [Features::VERSION_1, all] {
            driver.run(features, &[0, 1, 2]);
            for n in 0..40 {
                exchange(&mut driver, &daemon, 0, n + connection);
            }
            driver.reset();
        }
    }
}

#[test]
fn two_pairs_through_volt_netds_data_path() {
    let daemon = Daemon::start(2, Mac([2, 0, 0, 0, 0, 1]));
    let mut driver = Driver::new(daemon.connect(2));
    driver.run(Features::VERSION_1.union(Features::NET_MQ).union(Features::NET_CTRL_VQ), &[0, 1, 2, 3, 4]);
    exchange(&mut driver, &daemon, 0, 1);
    driver.put(CONTROL, &[4, 0, 2, 0, 0xee]);
    assert_eq!(driver.request(4, &[(CONTROL, 4, false), (CONTROL + 4, 1, true)]), 1);
    assert_eq!(driver.get(CONTROL + 4, 1), [0]);
    for n in 0..40 {
        exchange(&mut driver, &daemon, 0, n);
        exchange(&mut driver, &daemon, 1, n + 100);
    }
    eventually("the interrupt's reason", || {
        driver.read(virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS) == 1
    });
}

#[test]
fn more_pairs_than_volt_netd_has_are_refused() {
    for (pairs, asked) in [(1, 2), (2, 3), (2, 4)] {
        let daemon = Daemon::start(pairs, Mac([2, 0, 0, 0, 0, 1]));
        match daemon.try_connect(asked) {
            Err(VhostUserNetError::Session { source: SessionError::Pairs { offered, .. }, .. }) => {
                assert_eq!(offered, u64::from(pairs));
            }
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("{asked} of {pairs} pairs"),
        }
    }
}

/// The driver's side of a ring of single buffers: which buffers the device has, and which ones it returns.
struct Account {
    index: u16,
    at_device: [bool; 16],
    seen: u16,
}

impl Account {
    fn new(index: u16) -> Account {
        Account { index, at_device: [false; 16], seen: 0 }
    }

    /// Offers every buffer that the device does not have.
    fn fill(&mut self, driver: &mut Driver, base: u64, writable: bool) {
        for slot in 0..16 {
            if !std::mem::replace(&mut self.at_device[usize::from(slot)], true) {
                let part = (base + 0x1000 * u64::from(slot), 200, writable);
                driver.descriptor(self.index, slot, part, 0, 0);
                driver.publish(self.index, slot);
            }
        }
        driver.kick(self.index);
    }

    /// Takes back the used buffers. The device must have had each of them.
    fn take(&mut self, driver: &Driver) -> usize {
        let ring = driver.rings[&self.index].used;
        let word = |at, len: usize| {
            driver.get(at, len).iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
        };
        let now = word(ring + 2, 2) as u16;
        let fresh = usize::from(now.wrapping_sub(self.seen));
        assert!(fresh <= 16, "vring {}: {fresh} used at once", self.index);
        while self.seen != now {
            let id = word(ring + 4 + 8 * u64::from(self.seen % 16), 4) as usize;
            let was_there = std::mem::replace(&mut self.at_device[id], false);
            assert!(was_there, "vring {}: descriptor {id} is returned twice", self.index);
            self.seen = self.seen.wrapping_add(1);
        }
        fresh
    }
}

/// Twenty connections end under traffic both ways. Each descriptor is returned once, and none is lost.
#[test]
fn every_descriptor_comes_back_once_over_twenty_losses() {
    let daemon = Daemon::start(1, Mac([2, 0, 0, 0, 0, 1]));
    let device = daemon.connect(1);
    let monitor = device.monitor();
    let mut driver = Driver::new(device);
    driver.run(Features::VERSION_1.union(Features::EVENT_IDX).union(Features::IN_ORDER), &[0, 1]);
    let frame = [[0; 12].as_slice(), &[9; 188]].concat();
    for slot in 0..16 {
        driver.put(TX + 0x1000 * slot, &frame);
    }
    let wire = &daemon.wires[0];
    wire.set_nonblocking(true).unwrap();
    let (mut rx, mut tx) = (Account::new(0), Account::new(1));
    let (mut received, mut sent) = (0, 0);
    let mut traffic = |driver: &mut Driver, until: &dyn Fn((usize, usize)) -> bool| {
        let mut seen = [0; 256];
        while !until((received, sent)) {
            let _ = wire.send(&frame);
            while wire.recv(&mut seen).is_ok() {}
            received += rx.take(driver);
            sent += tx.take(driver);
            rx.fill(driver, RX, true);
            tx.fill(driver, TX, false);
        }
        (received, sent)
    };
    let mut last = (0, 0);
    for losses in 1..=20 {
        let started = std::time::Instant::now();
        let is_late = || started.elapsed() > PATIENCE;
        let much = |now: (usize, usize)| now.0 >= last.0 + 50 && now.1 >= last.1 + 50;
        let now = traffic(&mut driver, &|now| {
            much(now) && started.elapsed() > Duration::from_millis(120) || is_late()
        });
        assert!(much(now), "after {} losses: {last:?}, then {now:?}", losses - 1);
        daemon.hang_up.store(true, Ordering::Release);
        let is_back = || monitor.state().losses == losses && monitor.state().is_connected();
        last = traffic(&mut driver, &|_| is_back() || is_late());
        assert!(is_back(), "back after loss {losses}");
    }
    // All offered buffers come back now, when there is a frame for each.
    eventually("every TX descriptor", || {
        let mut seen = [0; 256];
        while wire.recv(&mut seen).is_ok() {}
        tx.take(&driver);
        !tx.at_device.contains(&true)
    });
    eventually("every RX descriptor", || {
        let _ = wire.send(&frame);
        rx.take(&driver);
        !rx.at_device.contains(&true)
    });
}

/// The interface behind the daemon goes down and up. The guest sees it in its configuration, with an
/// interrupt. After a reconnection it sees the present state.
#[test]
fn the_guest_sees_the_daemons_link() {
    const CONFIG: u32 = 2;
    let daemon = Daemon::start(1, Mac([2, 0, 0, 0, 0, 3]));
    let device = daemon.connect(1);
    let monitor = device.monitor();
    let mut driver = Driver::new(device);
    driver.run(Features::VERSION_1.union(Features::NET_STATUS), &[0, 1]);
    assert_eq!(driver.config(8)[6], 1);
    for up in [false, true, false] {
        daemon.up.store(up, Ordering::Release);
        eventually("its interrupt", || driver.read(VIRTIO_MMIO_INTERRUPT_STATUS) & CONFIG != 0);
        assert_eq!(driver.config(8)[6], u8::from(up));
        driver.write(VIRTIO_MMIO_INTERRUPT_ACK, CONFIG);
        exchange(&mut driver, &daemon, 0, 1);
    }
    // The next connection starts with the link up.
    daemon.up.store(true, Ordering::Release);
    daemon.hang_up.store(true, Ordering::Release);
    eventually("the next connection", || monitor.state().losses == 1 && monitor.state().is_connected());
    eventually("the link", || driver.config(8)[6] == 1);
    exchange(&mut driver, &daemon, 0, 2);
}
