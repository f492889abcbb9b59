//! The control virtqueue (virtio 1.2, section 5.1.6.5).
//!
//! [`command::execute`] carries out its commands, for any server of the queue. Virtual machine monitors
//! usually serve it themselves. [`queue`] serves it in a back-end, for front-ends that leave it to the
//! back-end.

pub mod command;
pub mod queue;
mod relay;
