//! A second back-end, on the `vhost-user-backend` and `virtio-queue` crates: an independent implementation of
//! the specifications, to calibrate the scripted front-end.
//!
//! It echoes frames of one queue pair for one connection, and marks the pages that it writes with the crate's
//! bitmap. All of its writes go through `vm-memory`, which marks them. [`CratePeer::listen`] starts it.
//! Dropping the [`CratePeer`] ends it after the front-end has disconnected.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::frame::{NET_HEADER_LEN, NetHeader};
use crate::wire::feature;

type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;
type EchoVring = VringMutex<Memory>;

/// The device: frames of vring 1 return on vring 0.
struct Echo {
    memory: Memory,
    waiting: Vec<Vec<u8>>,
    exit: (EventConsumer, EventNotifier),
}

/// Echoes frames. A frame larger than one receive chain is an error that ends the worker; the test notices.
impl Echo {
    fn transmit(&mut self, vring: &EchoVring) -> io::Result<()> {
        let memory = self.memory.memory();
        loop {
            let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { return Ok(()) };
            let head = chain.head_index();
            let mut bytes = Vec::new();
            for desc in chain.readable() {
                let mut part = vec![0; desc.len() as usize];
                memory.read_slice(&mut part, desc.addr()).map_err(io::Error::other)?;
                bytes.extend(part);
            }
            vring.add_used(head, 0).map_err(io::Error::other)?;
            vring.signal_used_queue()?;
            self.waiting.push(bytes.get(NET_HEADER_LEN..).unwrap_or_default().to_vec());
        }
    }

    fn receive(&mut self, vring: &EchoVring) -> io::Result<()> {
        let memory = self.memory.memory();
        while !self.waiting.is_empty() {
            let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { return Ok(()) };
            let frame = self.waiting.remove(0);
            let header = NetHeader { num_buffers: 1, ..NetHeader::default() };
            let bytes = [header.encode().as_slice(), &frame].concat();
            let (head, mut done) = (chain.head_index(), 0);
            for desc in chain.writable() {
                let len = (desc.len() as usize).min(bytes.len() - done);
                memory.write_slice(&bytes[done..done + len], desc.addr()).map_err(io::Error::other)?;
                done += len;
            }
            vring.add_used(head, done as u32).map_err(io::Error::other)?;
            vring.signal_used_queue()?;
        }
        Ok(())
    }
}

impl VhostUserBackendMut for Echo {
    type Bitmap = BitmapMmapRegion;
    type Vring = EchoVring;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        feature::VERSION_1
            | feature::PROTOCOL_FEATURES
            | feature::MRG_RXBUF
            | feature::INDIRECT_DESC
            | feature::LOG_ALL
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::LOG_SHMFD
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.exit.0.try_clone().ok()?, self.exit.1.try_clone().ok()?))
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        vrings: &[EchoVring],
        _thread: usize,
    ) -> io::Result<()> {
        if let [rx, tx] = vrings {
            // A kick of the receive ring says nothing about the transmit ring, which may be disabled.
            if event == 1 {
                self.transmit(tx)?;
            }
            self.receive(rx)?;
        }
        Ok(())
    }
}

type EchoDaemon = VhostUserDaemon<Arc<Mutex<Echo>>>;

fn daemon() -> io::Result<EchoDaemon> {
    let memory = Memory::new(GuestMemoryMmap::new());
    let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK)?;
    let echo = Echo { memory: memory.clone(), waiting: Vec::new(), exit };
    VhostUserDaemon::new("crate-peer".to_owned(), Arc::new(Mutex::new(echo)), memory)
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Listens at `path` and serves connections in turn, each with a new daemon, until the process ends.
pub fn serve(path: &Path) -> io::Result<()> {
    let mut listener = Listener::new(path, true).map_err(io::Error::other)?;
    loop {
        let mut daemon = daemon()?;
        // A failed connection is its front-end's finding.
        let _ = daemon.start(&mut listener).and_then(|()| daemon.wait());
    }
}

/// A test's handle to the peer.
#[derive(Debug)]
pub struct CratePeer {
    thread: Option<JoinHandle<()>>,
    ended: Arc<Mutex<Option<String>>>,
}

impl CratePeer {
    /// Listens at `path` for one connection and serves it in a thread.
    pub fn listen(path: &Path) -> io::Result<CratePeer> {
        let mut daemon = daemon()?;
        let mut listener = Listener::new(path, true).map_err(io::Error::other)?;
        let ended = Arc::new(Mutex::new(None));
        let result = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let served = daemon.start(&mut listener).and_then(|()| daemon.wait());
            let text = served.map_or_else(|error| error.to_string(), |()| "done".to_owned());
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        });
        Ok(CratePeer { thread: Some(thread), ended })
    }

    /// Returns how the connection ended, if it has.
    pub fn ended(&self) -> Option<String> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for CratePeer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
