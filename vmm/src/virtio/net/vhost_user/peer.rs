//! A back-end for the tests, with the vhost-user-backend crate. It returns each frame on the same pair.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use volt_net::config::NetConfig;
use volt_virtio::features::Features;

use crate::virtio::testing::Driver;

/// Properties of the back-end.
#[derive(Clone)]
pub(super) struct Options {
    pub(super) features: Features,
    pub(super) pairs: u16,
    pub(super) config: Option<NetConfig>,
    pub(super) mq: bool,
}

impl Default for Options {
    fn default() -> Options {
        let features = Features::VERSION_1
            .union(Features::PROTOCOL_FEATURES)
            .union(Features::EVENT_IDX)
            .union(Features::INDIRECT_DESC)
            .union(Features::NET_MAC)
            .union(Features::NET_MTU);
        Options { features, pairs: 1, config: None, mq: true }
    }
}

/// A running back-end. It ends when it is dropped.
pub(super) struct Peer {
    echo: Arc<Echo>,
    shutdown: mpsc::Receiver<ShutdownHandle>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Starts a back-end that listens at `path` from the return on, and serves one connection.
    pub(super) fn start(path: &Path, options: Options) -> Peer {
        let echo = Arc::new(Echo {
            options,
            acked: Mutex::default(),
            enabled: Mutex::default(),
            events: Mutex::default(),
            vrings: Mutex::default(),
            memory: GuestMemoryAtomic::new(GuestMemoryMmap::new()),
        });
        let (ready, shutdown) = mpsc::channel();
        let mut listener = Listener::new(path, true).unwrap();
        let its_echo = echo.clone();
        let thread = thread::spawn(move || {
            let memory = its_echo.memory.clone();
            let mut daemon = VhostUserDaemon::new("echo".to_owned(), its_echo, memory).unwrap();
            daemon.start(&mut listener).unwrap();
            ready.send(daemon.shutdown_handle().unwrap()).unwrap();
            let _ = daemon.wait();
            for handler in daemon.get_epoll_handlers() {
                handler.send_exit_event();
            }
        });
        Peer { echo, shutdown, thread: Some(thread) }
    }

    /// Returns the features of the last SET_FEATURES.
    pub(super) fn acked(&self) -> Features {
        *self.echo.acked.lock().unwrap()
    }

    /// Returns whether vring `index` is enabled.
    pub(super) fn enabled(&self, index: usize) -> bool {
        let vrings = self.echo.vrings.lock().unwrap();
        vrings.get(index).is_some_and(|vring| vring.get_ref().is_enabled())
    }

    /// Returns the number of events within a moment in which the driver only kicks.
    pub(super) fn kicks_within(&self, driver: &mut Driver) -> usize {
        let before = *self.echo.events.lock().unwrap();
        driver.kick(0);
        driver.kick(1);
        thread::sleep(Duration::from_millis(50));
        *self.echo.events.lock().unwrap() - before
    }

    /// Breaks the connection, like the death of the process.
    pub(super) fn kill(mut self) {
        self.end();
    }

    /// Stops the processing of messages and kicks until the guard is dropped.
    pub(super) fn hang(&self) -> MutexGuard<'_, Features> {
        self.echo.acked.lock().unwrap()
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // Without a connection the thread waits for one, and ends with the test process.
        if let Ok(shutdown) = self.shutdown.try_recv() {
            shutdown.shutdown();
            thread.join().unwrap();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

struct Echo {
    options: Options,
    acked: Mutex<Features>,
    enabled: Mutex<bool>,
    events: Mutex<usize>,
    vrings: Mutex<Vec<VringMutex>>,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
}

impl VhostUserBackend for Echo {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2 * usize::from(self.options.pairs)
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        self.options.features.bits()
    }

    fn acked_features(&self, features: u64) {
        *self.acked.lock().unwrap() = Features::from_bits_retain(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::REPLY_ACK;
        features.set(VhostUserProtocolFeatures::MQ, self.options.mq);
        features.set(VhostUserProtocolFeatures::CONFIG, self.options.config.is_some());
        features
    }

    fn set_event_idx(&self, enabled: bool) {
        *self.enabled.lock().unwrap() = enabled;
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.options.config.unwrap().to_bytes();
        bytes[offset as usize..(offset + size) as usize].to_vec()
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some(new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap())
    }

    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        drop(self.acked.lock().unwrap());
        Ok(())
    }

    fn handle_event(
        &self,
        index: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        *self.events.lock().unwrap() += 1;
        *self.vrings.lock().unwrap() = vrings.to_vec();
        let pair = usize::from(index / 2);
        loop {
            while self.echo(&vrings[2 * pair], &vrings[2 * pair + 1]) {}
            if !vrings[2 * pair + 1].enable_notification().unwrap() {
                return Ok(());
            }
            if !vrings[2 * pair].enable_notification().unwrap() {
                return Ok(());
            }
        }
    }
}

impl Echo {
    /// Moves one frame, if there is one, and a buffer for it.
    fn echo(&self, rx: &VringMutex, tx: &VringMutex) -> bool {
        let memory = self.memory.memory();
        let mut rx_state = rx.get_mut();
        let Some(into) = rx_state.get_queue_mut().pop_descriptor_chain(memory.clone()) else { return false };
        let mut tx_state = tx.get_mut();
        let Some(from) = tx_state.get_queue_mut().pop_descriptor_chain(memory.clone()) else {
            let back = rx_state.get_queue().next_avail().wrapping_sub(1);
            rx_state.get_queue_mut().set_next_avail(back);
            return false;
        };
        let (rx_head, tx_head) = (into.head_index(), from.head_index());
        let mut frame = Vec::new();
        for part in from.readable() {
            let mut bytes = vec![0; part.len() as usize];
            memory.read_slice(&mut bytes, part.addr()).unwrap();
            frame.extend(bytes);
        }
        let buffer = into.writable().next().unwrap();
        memory.write_slice(&frame, buffer.addr()).unwrap();
        rx_state.add_used(rx_head, frame.len() as u32).unwrap();
        tx_state.add_used(tx_head, 0).unwrap();
        rx_state.signal_used_queue().unwrap();
        tx_state.signal_used_queue().unwrap();
        true
    }
}
