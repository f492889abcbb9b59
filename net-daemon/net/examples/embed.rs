//! A network device in your own program: a port that is not an interface of the host, and a driver that sends
//! a frame.
//!
//! A virtual machine monitor gets memory, rings and notifications from its guest. This example creates them
//! by hand, without unsafe code: the safe functions access only the memory that they are given.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use volt_net::builder::VirtioNetBuilder;
use volt_net::port::queue::FdQueue;
use volt_net::port::{Port, PortQueue};
use volt_net::virtio_net::{Activation, QueueSetup};
use volt_net::volt_virtio::features::Features;
use volt_net::volt_virtio::memory::{GuestMemory, Region};
use volt_net::volt_virtio::notify::Notifier;
use volt_net::volt_virtio::ring::RingLayout;
use volt_net::volt_virtio::vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// A port with one queue. A thread of this program reads its frames at the other end of a socket pair.
#[derive(Debug)]
struct Wire(Arc<FdQueue>);

impl Port for Wire {
    fn name(&self) -> &str {
        "wire"
    }

    fn queue(&self, _pair: usize) -> Arc<dyn PortQueue> {
        self.0.clone()
    }

    fn extra_features(&self) -> Features {
        Features::empty()
    }

    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }

    /// This port delivers no frames, so none is too large or lacks a checksum.
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

/// Layout of guest memory.
const RING: RingLayout = RingLayout { size: 4, desc: 0, avail: 0x1000, used: 0x2000 };
const FRAME: u64 = 0x3000;
const TRANSMIT: u16 = 1;

fn notifier() -> io::Result<Arc<Notifier>> {
    Notifier::eventfd().map(Arc::new)
}

/// Sends one frame through its own device. Returns the frame as it arrived at the other end.
pub(crate) fn send_a_frame() -> Result<Vec<u8>, Box<dyn Error>> {
    let (near, far) = UnixDatagram::pair()?;
    far.set_read_timeout(Some(Duration::from_secs(5)))?;
    let port = Wire(Arc::new(FdQueue::new(OwnedFd::from(near))?));

    // For a TAP interface: `VirtioNetBuilder::new("tap0")`.
    let builder = VirtioNetBuilder::over(port).mac("52:54:00:12:34:56".parse()?).mtu(1500).queues(1);
    let mut device = builder.build()?;
    let memory = Arc::new(MmapRegion::new(0x10000)?);
    let region = Region::new(memory.clone(), 0, 0, 0, 0x10000).ok_or("a region inside its mapping")?;
    let setup = Activation {
        memory: Arc::new(GuestMemory::new(vec![region])?),
        features: device.offered().intersection(Features::VERSION_1),
        queues: vec![QueueSetup {
            index: TRANSMIT,
            layout: RING,
            kick: notifier()?,
            call: notifier()?,
            err: notifier()?,
        }],
    };

    let (mut frame, mut len) = ([0; 1500], 0);
    for round in 1..=2u16 {
        // DRIVER_OK
        device.activate(setup.clone())?;

        // The driver: a frame after its header, one descriptor, one entry in the available ring, the index.
        let guest = memory.as_volatile_slice();
        guest.write_slice(
            &[[0; 12].as_slice(), &[0xff; 6], b"hello, wire and all on it"].concat(),
            FRAME as usize,
        )?;
        guest.write_obj(FRAME.to_le(), 0)?;
        guest.write_obj(43u32.to_le(), 8)?;
        guest.write_obj([0u16; 2], 12)?;
        guest.write_obj(0u16, (RING.avail + 4 + 2 * u64::from((round - 1) % RING.size)) as usize)?;
        guest.write_obj(round.to_le(), (RING.avail + 2) as usize)?;
        device.queue_notify(TRANSMIT);

        len = far.recv(&mut frame)?;
        // The device can be activated again any number of times.
        device.reset()?;
    }
    Ok(frame[..len].to_vec())
}

#[cfg_attr(test, expect(dead_code, reason = "the test calls what is above"))]
fn main() -> Result<(), Box<dyn Error>> {
    let frame = send_a_frame()?;
    println!("{} bytes arrived: {}", frame.len(), String::from_utf8_lossy(&frame[18..]));
    Ok(())
}
