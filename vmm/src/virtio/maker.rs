//! What a device does when its driver starts or resets it is done beside the vCPU that the driver's write has
//! come by, which waits for it: threads, eventfds and epoll instances are made, used and given up by threads
//! of this process's main one.
//!
//! So a vCPU's thread, which a guest gets at first, needs next to no system calls, and no thread inherits its
//! list. The builder starts one [`Maker`], and wraps each device into a [`Made`].

use std::io;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use volt_net::config::Mac;
use volt_virtio::features::Features;

use crate::sandbox::{self, lists::MAIN};
use crate::virtio::handle::{DeviceHandle, DeviceKind};
use crate::virtio::{ActivateError, Activation, VirtioDevice};

type Job = Box<dyn FnOnce() + Send>;

/// The thread that has jobs done. It ends when this is dropped.
pub struct Maker {
    jobs: Mutex<Sender<Job>>,
}

impl Maker {
    /// Starts it. Called by the main thread, whose rights the jobs have.
    ///
    /// # Errors
    ///
    /// When the process may have no more threads.
    pub fn start() -> io::Result<Arc<Maker>> {
        let (jobs, received) = channel::<Job>();
        sandbox::spawn(&MAIN, "maker", move || {
            for job in received {
                begin(job);
            }
        })?;
        Ok(Arc::new(Maker { jobs: Mutex::new(jobs) }))
    }

    /// Has `job` done, and waits for what it answers.
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

/// Each on a thread of its own, so that a device that is slow to stop holds up no other. Where there are no
/// more threads, one after the other.
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

/// A device that is started, reset and dropped by way of a [`Maker`].
pub struct Made {
    maker: Arc<Maker>,
    /// Gone while the maker has it, which nobody sees, and at the end.
    device: Option<Box<dyn VirtioDevice>>,
}

impl Made {
    /// Wraps `device`.
    pub fn wrap(maker: &Arc<Maker>, device: Box<dyn VirtioDevice>) -> Box<dyn VirtioDevice> {
        Box::new(Made { maker: maker.clone(), device: Some(device) })
    }

    fn device(&self) -> &dyn VirtioDevice {
        &**self.device.as_ref().expect("it is there but for a call of with()")
    }

    /// Does something with the device, on another thread.
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
