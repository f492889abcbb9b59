use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use volt_virtio::testing::{BUFFERS, Driver};

use super::*;
use crate::builder::VirtioNetBuilder;
use crate::port::socket::SocketPort;
use crate::port::{Port, PortQueue};
use crate::testing::{frame, notifier, until};

const LIMIT: Duration = Duration::from_secs(60);

/// A port over sockets that records its calls, and gets other sockets when it is reopened.
#[derive(Debug)]
struct Recorded {
    sockets: SocketPort,
    next: Option<SocketPort>,
    /// The other end of the first sockets. It closes during the reopening, which a worker notices.
    far: Option<OwnedFd>,
    wake: Arc<Notifier>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Recorded {
    fn asked(&self, what: String) -> io::Result<()> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        Ok(())
    }
}

impl Port for Recorded {
    fn name(&self) -> &str {
        "recorded"
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.sockets.queue(pair)
    }

    fn extra_features(&self) -> Features {
        Features::empty()
    }

    fn mtu(&self) -> Option<u16> {
        None
    }

    fn set_offloads(&mut self, _acked: Features) -> io::Result<()> {
        self.asked("offloads".to_owned())
    }

    fn attach(&mut self, active: &[bool]) -> io::Result<()> {
        self.asked(format!("attach {active:?}"))
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.far = None;
        assert!(self.wake.wait(LIMIT), "the worker finds its old queue gone");
        self.sockets = self.next.take().ok_or(io::ErrorKind::NotFound)?;
        self.asked("reopen".to_owned())
    }
}

/// A device, and the calls of its port.
struct Rig {
    device: VirtioNet,
    wake: Arc<Notifier>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Rig {
    fn new(sockets: Vec<OwnedFd>, far: Option<OwnedFd>, next: Option<SocketPort>) -> Rig {
        let (wake, asked) = (notifier(), Arc::<Mutex<Vec<String>>>::default());
        let queues = sockets.len() as u16;
        let sockets = SocketPort::new(sockets).unwrap();
        let port = Recorded { sockets, next, far, wake: wake.clone(), asked: asked.clone() };
        let device = VirtioNetBuilder::over(port).queues(queues).wake(wake.clone()).build().unwrap();
        Rig { device, wake, asked }
    }

    /// Returns the calls of the port since the last check.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn queue(index: u16, layout: RingLayout) -> QueueSetup {
    QueueSetup { index, layout, kick: notifier(), call: notifier(), err: notifier() }
}

/// A driver that switches its checksum offload off at run time (5.1.6.5.6) gets only complete frames
/// afterwards.
#[test]
fn offloads_that_are_switched_off_are_in_force_for_what_comes_next() {
    let (near, far) = UnixDatagram::pair().unwrap();
    let port = SocketPort::new(vec![near.into()]).unwrap();
    let mut device = VirtioNetBuilder::over(port).build().unwrap();
    let features = Features::VERSION_1.union(Features::NET_GUEST_CSUM);
    let mut driver = Driver::new(8, features);
    let queues = vec![queue(0, driver.layout)];
    device.activate(Activation { memory: driver.memory.clone(), features, queues }).unwrap();
    let mut sent = frame(100, 1);
    (sent[0], sent[6], sent[8]) = (1, 34, 6);
    for (round, offloads) in [(1, features), (2, Features::empty()), (3, Features::NET_GUEST_CSUM)] {
        if round > 1 {
            device.set_guest_offloads(offloads);
        }
        driver.add(&[(BUFFERS, 2000, true)]);
        device.queue_notify(0);
        far.send(&sent).unwrap();
        until("the frame", || driver.used_idx() == round);
        let unfinished = offloads.contains(Features::NET_GUEST_CSUM);
        let got = driver.read_vec(BUFFERS, sent.len());
        assert_eq!((got[0] == 1, got[12..] == sent[12..]), (unfinished, unfinished), "round {round}");
    }
    device.reset().unwrap();
}

/// A pair whose receive ring the driver broke gets no more frames, and is not started again before a reset.
#[test]
fn a_pair_with_a_broken_ring_is_left_out() {
    let (pairs, far): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixDatagram::pair().unwrap()).unzip();
    let mut rig = Rig::new(pairs.into_iter().map(OwnedFd::from).collect(), None, None);
    let mut driver = Driver::new(8, Features::VERSION_1);
    let empty = RingLayout { size: 8, desc: 0x8_0000, avail: 0x8_1000, used: 0x8_2000 };
    let queues = vec![queue(0, empty), queue(2, driver.layout)];
    let err = queues[1].err.clone();
    let setup = Activation { memory: driver.memory.clone(), features: Features::VERSION_1, queues };
    let break_ring = |rig: &mut Rig| {
        rig.device.activate(setup.clone()).unwrap();
        rig.device.set_active_pairs(2);
        assert_eq!(rig.asked(), ["offloads", "attach [true, false]", "attach [true, true]"]);
        far[1].send(&frame(60, 1)).unwrap();
        assert!(rig.wake.wait(LIMIT) && err.wait(LIMIT));
        rig.wake.clear();
        err.clear();
    };
    driver.offer(8);
    for told in [true, false] {
        break_ring(&mut rig);
        if told {
            rig.device.leave_out_broken();
            assert_eq!(rig.asked(), ["attach [true, false]"]);
        }
        rig.device.set_limits(RateLimits::default());
        assert_eq!(rig.asked(), ["offloads", "attach [true, false]"]);
        assert!(rig.device.device().runs(0) && !rig.device.device().runs(1));
        assert!(!err.wait(Duration::ZERO), "it is said once");
        rig.device.reset().unwrap();
        rig.asked();
    }
    // Reports from before a reset that nobody took do not apply to the next driver's rings.
    break_ring(&mut rig);
    rig.device.reset().unwrap();
    let other = RingLayout { size: 8, desc: 0x9_0000, avail: 0x9_1000, used: 0x9_2000 };
    let queues = vec![queue(0, empty), queue(2, other)];
    rig.device.activate(Activation { queues, ..setup.clone() }).unwrap();
    rig.device.set_active_pairs(2);
    rig.asked();
    rig.device.leave_out_broken();
    assert!(rig.asked().is_empty() && rig.device.device().runs(1));
    rig.device.reset().unwrap();
}

/// A report of a worker on an old queue during the reopening does not make the device reopen the port again.
/// Offloads are set before frames arrive on the new queue.
#[test]
fn a_port_that_is_opened_again_is_not_gone() {
    // An end of such sockets notices that the other has closed.
    let sockets = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let ((near, far), (next, next_far)) = (sockets.unwrap(), UnixDatagram::pair().unwrap());
    let next = SocketPort::new(vec![next.into()]).unwrap();
    let mut rig = Rig::new(vec![near], Some(far), Some(next));
    let mut driver = Driver::new(8, Features::VERSION_1);
    driver.add(&[(BUFFERS, 2000, true)]);
    let queues = vec![queue(0, driver.layout)];
    let setup = Activation { memory: driver.memory.clone(), features: Features::VERSION_1, queues };
    rig.device.activate(setup).unwrap();
    rig.asked();
    rig.device.reopen_port().unwrap();
    assert_eq!(rig.asked(), ["reopen", "offloads", "attach [true]"]);
    assert!(!rig.device.device().port_gone());
    next_far.send(&frame(60, 1)).unwrap();
    until("a frame by the new queue", || driver.used_idx() == 1);
    rig.device.reset().unwrap();
}
