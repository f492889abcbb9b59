//! Starting and resetting devices on threads of their own. The vCPU whose driver requested it waits. Threads,
//! eventfds and epoll instances are created, used and given up by threads with the rights of the main thread.
//!
//! So a vCPU's thread, which a hostile guest would take over first, needs almost no system calls, and no
//! thread inherits its list. The builder starts one [`Maker`], and wraps each device in a [`Made`].

use std::io;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use volt_net::config::Mac;
use volt_virtio::features::Features;

use crate::sandbox::{self, lists::MAIN};
use crate::virtio::handle::{DeviceHandle, DeviceKind};
use crate::virtio::{ActivateError, Activation, VirtioDevice};

type Job = Box<dyn FnOnce() + Send>;

/// The thread that runs jobs. It ends when this is dropped.
pub struct Maker {
    jobs: Mutex<Sender<Job>>,
}

impl Maker {
    /// Starts the thread. Called by the main thread, whose rights the jobs have.
    ///
    /// # Errors
    ///
    /// Fails if the process may have no more threads.
    pub fn start() -> io::Result<Arc<Maker>> {
        let (jobs, received) = channel::<Job>();
        sandbox::spawn(&MAIN, "maker", move || {
            for job in received {
                begin(job);
            }
        })?;
        Ok(Arc::new(Maker { jobs: Mutex::new(jobs) }))
    }

    /// Runs `job` on another thread, and returns its result.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, answer) = sync_channel(1);
        let job = Box::new(move || {
            let _ = done.send(job());
        });
        let sent = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job);
        sent.expect("its thread lives as long as this");
        answer.recv().expect("a panic ends the process")
    }
}

/// Runs each job on a thread of its own, so that a device that stops slowly does not delay others. Without
/// further threads, jobs run one after the other.
fn begin(job: Job) {
    let job = Arc::new(Mutex::new(Some(job)));
    let its = job.clone();
    let take = |job: &Mutex<Option<Job>>| job.lock().unwrap_or_else(PoisonError::into_inner).take();
    let spawned = sandbox::spawn(&MAIN, "device", move || {
        if let Some(job) = take(&its) {
            job();
        }
    });
    if spawned.is_err()
        && let Some(job) = take(&job)
    {
        job();
    }
}

/// A device that a [`Maker`] starts, resets and drops.
pub struct Made {
    maker: Arc<Maker>,
    /// `None` during a call of the maker, which no other code sees, and at the end.
    device: Option<Box<dyn VirtioDevice>>,
}

impl Made {
    /// Wraps `device`.
    pub fn wrap(maker: &Arc<Maker>, device: Box<dyn VirtioDevice>) -> Box<dyn VirtioDevice> {
        Box::new(Made { maker: maker.clone(), device: Some(device) })
    }

    fn device(&self) -> &dyn VirtioDevice {
        &**self.device.as_ref().expect("it is only absent in with()")
    }

    /// Calls `act` with the device on another thread.
    fn with<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut dyn VirtioDevice) -> T + Send + 'static,
    ) -> T {
        let mut device = self.device.take().expect("one call at a time");
        let (device, answer) = self.maker.run(move || {
            let answer = act(&mut *device);
            (device, answer)
        });
        self.device = Some(device);
        answer
    }
}

impl VirtioDevice for Made {
    fn device_id(&self) -> u32 {
        self.device().device_id()
    }

    fn kind(&self) -> DeviceKind {
        self.device().kind()
    }

    fn name(&self) -> &str {
        self.device().name()
    }

    fn label(&self) -> &str {
        self.device().label()
    }

    fn handle(&self) -> Arc<dyn DeviceHandle> {
        self.device().handle()
    }

    fn features(&self) -> Features {
        self.device().features()
    }

    fn vring_sizes(&self) -> &[u16] {
        self.device().vring_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device().read_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.with(move |device| device.activate(activation))
    }

    fn reset(&mut self) {
        self.with(|device| device.reset());
    }

    fn mac(&self) -> Option<Mac> {
        self.device().mac()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            self.maker.run(move || drop(device));
        }
    }
}
