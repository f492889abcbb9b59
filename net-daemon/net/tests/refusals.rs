//! A failure of a port is logged once, however often a guest causes it. In a process of its own, because of
//! its logger.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use log::{LevelFilter, Log, Metadata, Record};
use rustix::event::{EventfdFlags, eventfd};
use volt_net::config::Mac;
use volt_net::device::{DeviceOptions, NetDevice};
use volt_net::port::socket::SocketPort;
use volt_net::port::{Port, PortQueue};
use volt_virtio::features::Features;
use volt_virtio::notify::Notifier;

static LINES: AtomicUsize = AtomicUsize::new(0);

struct Counter;

impl Log for Counter {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &Record<'_>) {
        LINES.fetch_add(1, Ordering::SeqCst);
    }

    fn flush(&self) {}
}

/// A port that accepts no offloads while its interface is gone.
#[derive(Debug)]
struct GonePort(SocketPort, Arc<AtomicBool>);

impl Port for GonePort {
    fn name(&self) -> &str {
        "gone"
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.0.queue(pair)
    }

    fn extra_features(&self) -> Features {
        Features::empty()
    }

    fn mtu(&self) -> Option<u16> {
        None
    }

    fn set_offloads(&mut self, _acked: Features) -> io::Result<()> {
        if self.1.load(Ordering::SeqCst) { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }

    fn attach(&mut self, _active: &[bool]) -> io::Result<()> {
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

#[test]
fn a_refusal_is_told_when_it_is_new() {
    log::set_logger(&Counter).expect("the process has no other");
    log::set_max_level(LevelFilter::Info);
    let (ours, _wire) = UnixDatagram::pair().expect("a socket pair");
    let gone = Arc::new(AtomicBool::new(true));
    let port = SocketPort::new(vec![ours.into()]).expect("a port");
    let wake = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
    let wake = Arc::new(Notifier::new(wake).expect("a notifier"));
    let options = DeviceOptions { pairs: 1, mac: Mac([2, 0, 0, 0, 0, 1]), mtu: None };
    let port = Box::new(GonePort(port, gone.clone()));
    let mut device = NetDevice::new(port, options, wake).expect("memory");
    let mut lines_of = |count: usize| {
        let before = LINES.load(Ordering::SeqCst);
        for _ in 0..count {
            device.set_offloads(Features::NET_GUEST_CSUM);
            device.attach(&[true]);
        }
        LINES.load(Ordering::SeqCst) - before
    };
    assert_eq!(lines_of(1000), 1);
    gone.store(false, Ordering::SeqCst);
    assert_eq!(lines_of(1), 0);
    gone.store(true, Ordering::SeqCst);
    assert_eq!(lines_of(1000), 1);
}
