//! The data path in this process: `volt_net`'s device, its workers, and a thread that handles their errors.
//!
//! The thread sleeps until a worker finds that its port is gone or a ring is broken. It reopens a missing
//! port as soon as possible. Until then the guest sees its link down. After a broken ring, the device
//! requests a reset.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use log::{error, info, warn};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use volt_net::config::{NetConfig, STATUS_LINK_UP};
use volt_net::counters::{Counter, Counters};
use volt_net::device::DeviceError;
use volt_net::limiter::{LimitsChange, RateLimits};
use volt_net::port::Reopener;
use volt_net::virtio_net::{Activation, QueueSetup, VirtioNet};
use volt_virtio::error_chain;
use volt_virtio::features::Features;
use volt_virtio::notify::Notifier;
use volt_virtio::poller::{EventFlags, Poller};
use volt_virtio::ring::RingLayout;

use crate::sandbox::lists::MAIN;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::net::port::convert;
use crate::virtio::net::port::data_path::{DataPath, DataSetup, StartError};
use crate::virtio::status::{FrameCounts, TrafficStatus, VringStatus};
use crate::{faults, opener, sandbox};

/// Interval of the attempts to reopen a port.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Device,
    Ring,
    Quit,
}

/// State shared by the device and its thread.
struct Shared {
    label: String,
    device: Mutex<VirtioNet>,
    config: Arc<Mutex<NetConfig>>,
    /// Interrupts to the driver, from activation to reset.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    /// Written by workers that find the port gone or a ring broken.
    wake: Arc<Notifier>,
    /// Written by workers whose ring is broken, by `broken_end`.
    broken: EventFd,
    broken_end: Arc<Notifier>,
    quit: Arc<Notifier>,
}

/// A network device of `volt_net` as a data path.
pub(super) struct InProcess {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl InProcess {
    /// Creates the path of `device`, which notifies `wake`.
    pub(super) fn new(
        label: &str,
        device: VirtioNet,
        wake: Arc<Notifier>,
        config: Arc<Mutex<NetConfig>>,
    ) -> io::Result<InProcess> {
        let broken = EventFd::new(EFD_NONBLOCK)?;
        let broken_end = convert::notifier(&broken)?;
        let quit = convert::notifier(&EventFd::new(EFD_NONBLOCK)?)?;
        let mut poller = Poller::new()?;
        poller.add(&*wake, EventFlags::IN, Token::Device)?;
        poller.add(&*broken_end, EventFlags::IN, Token::Ring)?;
        poller.add(&*quit, EventFlags::IN, Token::Quit)?;
        let shared = Arc::new(Shared {
            label: label.to_owned(),
            device: Mutex::new(device),
            config,
            interrupt: Mutex::new(None),
            wake,
            broken,
            broken_end,
            quit,
        });
        let its = shared.clone();
        let thread = sandbox::spawn(&MAIN, "net-port", move || its.watch(&poller))?;
        Ok(InProcess { shared, thread: Some(thread) })
    }
}

impl DataPath for InProcess {
    fn start(&self, setup: DataSetup<'_>) -> Result<(), StartError> {
        let broken = &self.shared.broken_end;
        let queues = setup.vrings.iter().map(|vring| {
            let layout = RingLayout {
                size: vring.queue.size(),
                desc: vring.queue.desc_table(),
                avail: vring.queue.avail_ring(),
                used: vring.queue.used_ring(),
            };
            let kick = convert::notifier(&vring.kick)?;
            let call = convert::notifier(setup.interrupt.call(vring.index))?;
            Ok(QueueSetup { index: vring.index, layout, kick, call, err: broken.clone() })
        });
        let queues = queues.collect::<io::Result<_>>()?;
        let memory = convert::guest_memory(setup.memory)?;
        *self.shared.interrupt() = Some(setup.interrupt.clone());
        self.shared.device().activate(Activation { memory, features: setup.acked, queues })?;
        Ok(())
    }

    fn stop(&self) {
        if let Err(error) = self.shared.device().reset() {
            error!(
                event = "queue_pair_not_stopped", device:% = self.shared.label;
                "{}: {}", self.shared.label, error_chain(&error)
            );
        }
        let mut interrupt = self.shared.interrupt();
        *interrupt = None;
        // Reports about these rings do not apply to the next ones.
        let _ = self.shared.broken.read();
    }

    fn set_active_pairs(&self, pairs: u16) {
        self.shared.device().set_active_pairs(pairs);
    }

    fn set_offloads(&self, offloads: Features) {
        self.shared.device().set_guest_offloads(offloads);
    }

    fn change_limits(&self, change: LimitsChange) -> Option<RateLimits> {
        let mut device = self.shared.device();
        let limits = device.device().limits().changed(change);
        device.set_limits(limits);
        Some(limits)
    }

    fn pause(&self) -> Result<(), DeviceError> {
        self.shared.device().pause()
    }

    fn resume(&self) {
        self.shared.device().resume();
    }

    fn traffic(&self) -> Option<TrafficStatus> {
        let device = self.shared.device();
        let device = device.device();
        let vrings = (0..device.pairs()).flat_map(|pair| vrings(pair, device.counters(pair))).collect();
        Some(TrafficStatus { limits: device.limits().into(), vrings })
    }
}

/// Returns the counters of a pair's two vrings for the API.
fn vrings(pair: usize, counters: &Counters) -> [VringStatus; 2] {
    let rx_drops = [
        &counters.rx_bad_chain,
        &counters.rx_too_long,
        &counters.rx_not_offloaded,
        &counters.rx_failed,
        &counters.rx_filtered,
    ];
    let tx_drops = [
        &counters.tx_bad_chain,
        &counters.tx_refused,
        &counters.tx_no_port,
        &counters.tx_disabled,
        &counters.tx_filtered,
    ];
    let of = |vring, frames: &Counter, bytes: &Counter, drops: &[&Counter]| {
        let drops = drops.iter().map(|drops| drops.get()).sum();
        FrameCounts { vring, pair, frames: frames.get(), bytes: bytes.get(), drops }
    };
    [
        VringStatus::Rx(of(2 * pair, &counters.rx_frames, &counters.rx_bytes, &rx_drops)),
        VringStatus::Tx(of(2 * pair + 1, &counters.tx_frames, &counters.tx_bytes, &tx_drops)),
    ]
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.shared.quit.notify();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!(
                event = "thread_panicked", device:% = self.shared.label;
                "{}: a thread ended with a panic", self.shared.label
            );
        }
    }
}

impl Shared {
    fn watch(&self, poller: &Poller<Token>) {
        let mut gone = self.device().device().port().is_gone();
        if gone {
            self.set_link(false);
        }
        loop {
            let (mut woken, mut ring, mut quit) = (false, false, false);
            let waited = poller.wait(gone.then_some(RETRY), |token, _| match token {
                Token::Device => woken = true,
                Token::Ring => ring = true,
                Token::Quit => quit = true,
            });
            if let Err(error) = waited {
                return error!(
                    event = "port_unattended", device:% = self.label;
                    "{}: its interface is no longer watched, and will not be reopened: {error}", self.label
                );
            }
            if quit {
                return;
            }
            if woken {
                self.wake.clear();
                let mut device = self.device();
                device.leave_out_broken();
                let found_gone = device.device().port_gone();
                drop(device);
                if found_gone && !gone {
                    gone = true;
                    self.set_link(false);
                }
            }
            if ring {
                self.give_up_ring();
            }
            // Not at once: the program that deleted the interface may be about to create it again.
            if gone && !woken {
                gone = !self.reopen();
            }
        }
    }

    /// Requests a reset from the driver, unless there was one since.
    fn give_up_ring(&self) {
        let interrupt = self.interrupt();
        if self.broken.read().is_ok()
            && let Some(interrupt) = &*interrupt
        {
            interrupt.needs_reset();
        }
    }

    fn reopen(&self) -> bool {
        match self.open() {
            Ok(()) => {
                self.set_link(true);
                true
            }
            Err(error) => {
                log::debug!("{}: not reopened yet: {error}", self.label);
                false
            }
        }
    }

    fn open(&self) -> io::Result<()> {
        let mut device = self.device();
        let (what, given) = match device.device().reopening() {
            Reopener::Process(what, given) => (what, given.map(|fd| fd.try_clone_to_owned()).transpose()?),
            Reopener::Port | Reopener::Nobody => return device.reopen_port(),
        };
        // The driver may need the device meanwhile.
        drop(device);
        let queues = opener::open_interface(&what, given.as_ref().map(AsFd::as_fd))?;
        self.device().adopt_port(queues)
    }

    /// Sets the guest's link up or down (virtio 1.2, 5.1.4).
    fn set_link(&self, up: bool) {
        {
            let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
            config.status = if up { config.status | STATUS_LINK_UP } else { config.status & !STATUS_LINK_UP };
        }
        if let Some(interrupt) = &*self.interrupt() {
            interrupt.config_changed();
        }
        if faults::may_log() {
            if up {
                info!(
                    event = "link_changed", device:% = self.label, up = true;
                    "{}: the guest sees its link up again", self.label
                );
            } else {
                warn!(
                    event = "link_changed", device:% = self.label, up = false;
                    "{}: the guest sees its link down until the interface is back", self.label
                );
            }
        }
    }

    fn device(&self) -> MutexGuard<'_, VirtioNet> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self) -> MutexGuard<'_, Option<Arc<dyn Interrupt>>> {
        self.interrupt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
