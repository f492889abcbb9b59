//! A virtio network device in a program: one frame to the guest, one frame from it.
#![forbid(unsafe_code)]
use std::error::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use volt_net::builder::VirtioNetBuilder;
use volt_net::port::HEADER_LEN;
use volt_net::port::socket::SocketPort;
use volt_net::virtio_net::{Activation, QueueSetup};
use volt_net::volt_virtio::features::Features;
use volt_net::volt_virtio::memory::{GuestMemory, Region};
use volt_net::volt_virtio::notify::Notifier;
use volt_net::volt_virtio::poller::{EventFlags, Poller};
use volt_net::volt_virtio::ring::RingLayout;
use volt_net::volt_virtio::vm_memory::{Bytes, MmapRegion, VolatileMemory};

const SIZE: usize = 0x10000;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes to the buffer.
const WRITE: u16 = 2;

fn layout(index: u16) -> RingLayout {
    let at = u64::from(index) * 0x1000;
    RingLayout { size: 4, desc: at, avail: at + 0x400, used: at + 0x800 }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (near, wire) = UnixDatagram::pair()?;
    wire.set_read_timeout(Some(Duration::from_secs(5)))?;
    let port = SocketPort::new(vec![OwnedFd::from(near)])?;
    let builder = VirtioNetBuilder::over(port).mac("52:54:00:12:34:56".parse()?).mtu(1500);
    let mut device = builder.build()?;

    // A VMM has these from its guest: memory, and two virtqueues with their notifications.
    let memory = Arc::new(MmapRegion::new(SIZE)?);
    let region = Region::new(memory.clone(), 0, 0, 0, SIZE as u64).ok_or("no such region")?;
    let mut queues = Vec::new();
    for index in [RECEIVE, TRANSMIT] {
        queues.push(QueueSetup {
            index,
            layout: layout(index),
            kick: Arc::new(Notifier::eventfd()?),
            call: Arc::new(Notifier::eventfd()?),
            err: Arc::new(Notifier::eventfd()?),
        });
    }
    let called = queues[usize::from(RECEIVE)].call.clone();

    // The driver wrote DRIVER_OK.
    device.activate(Activation {
        memory: Arc::new(GuestMemory::new(vec![region])?),
        features: device.offered().intersection(Features::VERSION_1),
        queues,
    })?;

    // Wire to guest: the driver offers a buffer, a frame arrives, the device interrupts.
    offer(&memory, RECEIVE, 0x8000, 2048, WRITE)?;
    device.queue_notify(RECEIVE);
    let frame = [[0; HEADER_LEN].as_slice(), &[0xff; 6], b"hello, guest, from the wire"].concat();
    wire.send(&frame)?;
    let mut poller = Poller::new()?;
    poller.add(&*called, EventFlags::IN, ())?;
    while used(&memory, RECEIVE)? == 0 {
        poller.wait(Some(Duration::from_secs(5)), |(), _| {
            called.clear();
        })?;
    }
    let mut received = vec![0; frame.len()];
    memory.as_volatile_slice().read_slice(&mut received, 0x8000)?;
    println!("guest: {}", String::from_utf8_lossy(&received[HEADER_LEN + 6..]));

    // Guest to wire: the same frame goes back.
    offer(&memory, TRANSMIT, 0x8000, frame.len() as u32, 0)?;
    device.queue_notify(TRANSMIT);
    let mut sent = [0; 1600];
    let len = wire.recv(&mut sent)?;
    println!("wire: {len} bytes");

    // The driver reset the device: afterwards no thread touches the memory.
    device.reset()?;
    Ok(())
}

/// Offers a buffer, as a driver does: one descriptor, one entry in the available ring, the index.
fn offer(memory: &MmapRegion, index: u16, address: u64, len: u32, flags: u16) -> Result<(), Box<dyn Error>> {
    let (ring, guest) = (layout(index), memory.as_volatile_slice());
    guest.write_obj(address.to_le(), ring.desc as usize)?;
    guest.write_obj(len.to_le(), ring.desc as usize + 8)?;
    guest.write_obj([flags.to_le(), 0], ring.desc as usize + 12)?;
    guest.write_obj(0u16, ring.avail as usize + 4)?;
    guest.write_obj(1u16.to_le(), ring.avail as usize + 2)?;
    Ok(())
}

/// The used index.
fn used(memory: &MmapRegion, index: u16) -> Result<u16, Box<dyn Error>> {
    Ok(u16::from_le(memory.as_volatile_slice().read_obj(layout(index).used as usize + 2)?))
}
