//! Hosts in trouble: a worker that does not stop, because its system call takes long, and a process that may
//! open no more files.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Condvar;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;
use volt_net::port::socket::SocketPort;
use volt_net::port::{Port, PortQueue};
use volt_virtio::part::IoPart;

use super::tests::{both_ways_over, control, net_over, socket_net};
use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{BUFFERS, Driver, eventually};

/// Blocks senders while it is closed.
#[derive(Debug, Default)]
struct Lock {
    closed: Mutex<bool>,
    opened: Condvar,
    /// Number of blocked senders.
    held: AtomicUsize,
}

impl Lock {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        self.held.fetch_add(1, Ordering::SeqCst);
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct SlowPort(SocketPort, Arc<Lock>);

#[derive(Debug)]
struct SlowQueue(Arc<dyn PortQueue>, Arc<Lock>);

impl AsFd for SlowQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PortQueue for SlowQueue {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        self.1.pass();
        self.0.send(parts)
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        self.0.recv(parts)
    }
}

impl Port for SlowPort {
    fn name(&self) -> &str {
        "slow"
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        Arc::new(SlowQueue(self.0.queue(pair), self.1.clone()))
    }

    fn extra_features(&self) -> Features {
        Features::empty()
    }

    fn mtu(&self) -> Option<u16> {
        None
    }

    fn set_offloads(&mut self, _acked: Features) -> io::Result<()> {
        Ok(())
    }

    fn attach(&mut self, _active: &[bool]) -> io::Result<()> {
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// After a failed pause, no second worker serves the rings of the stuck one. The driver is asked for a reset,
/// which takes effect only after that worker has come back.
#[test]
fn a_ring_never_has_two_workers() {
    let (ours, wire) = UnixDatagram::pair().unwrap();
    let lock = Arc::<Lock>::default();
    let port = SlowPort(SocketPort::new(vec![ours.into()]).unwrap(), lock.clone());
    let net = net_over(port);
    let control = net.handle();
    let mut driver = Driver::new(net);
    driver.run(Features::VERSION_1, &[0, 1]);
    both_ways_over(&mut driver, &wire, 1);

    lock.set(true);
    driver.put(BUFFERS, &[0; 112]);
    for _ in 0..2 {
        driver.offer(1, &[(BUFFERS, 112, false)]);
    }
    driver.kick(1);
    eventually("a worker that is held", || lock.held.load(Ordering::SeqCst) == 1);
    assert!(control.pause().is_err());
    control.resume();
    eventually("NEEDS_RESET", || driver.read(VIRTIO_MMIO_STATUS) & 0x40 != 0);
    driver.reset();
    // No other worker starts while this one may touch the rings.
    assert_eq!(driver.negotiate(Features::VERSION_1), 11);
    driver.add_ring(0, 16);
    driver.add_ring(1, 16);
    assert_eq!(driver.start() & 0x40, 0x40);
    assert_eq!(lock.held.load(Ordering::SeqCst), 1);

    lock.set(false);
    eventually("a device that starts", || {
        driver.reset();
        driver.negotiate(Features::VERSION_1);
        driver.add_ring(0, 16);
        driver.add_ring(1, 16);
        driver.start() == 15
    });
    while wire.set_nonblocking(true).is_ok() && wire.recv(&mut [0; 256]).is_ok() {}
    wire.set_nonblocking(false).unwrap();
    both_ways_over(&mut driver, &wire, 2);
}

/// Set in the process that runs only this test, because the limit applies to the whole process.
const ALONE: &str = "VOLT_TEST_ALONE";

/// The control vring is served even if the driver starts while no more files may be opened. Each command is
/// refused; Linux would otherwise wait for an answer in a loop, forever. A device that needs no data path
/// starts. A reset repairs the other one when files are available again.
#[test]
fn commands_are_answered_when_there_are_no_files() {
    const NAME: &str = "virtio::net::port::trouble_tests::commands_are_answered_when_there_are_no_files";
    if std::env::var_os(ALONE).is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", NAME, "--nocapture"]).env(ALONE, "").output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let (net, wire) = socket_net(&Arc::default());
    let mut driver = Driver::new(net);
    let mut rng = Driver::new(Rng::new(&Arc::default()));
    let acked = Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_CTRL_MAC_ADDR);
    assert_eq!(driver.negotiate(acked), 11);
    [0, 1, 2].into_iter().for_each(|index| driver.add_ring(index, 16));
    let before = getrlimit(Resource::Nofile);
    // No more files can be opened.
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    assert_eq!(driver.start(), 0x4f);
    for _ in 0..3 {
        assert_eq!(control(&mut driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), 1);
    }
    rng.run(Features::VERSION_1, &[0]);
    assert_eq!(rng.request(0, &[(BUFFERS, 16, true)]), 16);
    setrlimit(Resource::Nofile, before).unwrap();
    driver.run(acked, &[0, 1, 2]);
    assert_eq!(control(&mut driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    both_ways_over(&mut driver, &wire, 3);
}

/// A driver that forgets its data vrings does not wait forever, either.
#[test]
fn commands_are_answered_without_data_vrings() {
    let (net, _wire) = socket_net(&Arc::default());
    let mut driver = Driver::new(net);
    driver.negotiate(Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_CTRL_MAC_ADDR));
    driver.add_ring(0, 16);
    driver.add_ring(2, 16);
    assert_eq!(driver.start(), 0x4f);
    assert_eq!(control(&mut driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), 1);
}
