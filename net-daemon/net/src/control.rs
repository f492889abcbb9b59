//! The control virtqueue (virtio 1.2, section 5.1.6.5).
//!
//! Who serves it, a back-end for front-ends that leave it to the back-end, or a virtual machine monitor, has
//! its commands carried out by [`command::execute`]. [`queue`] serves it from its ring, for the former.

pub mod command;
pub mod queue;
mod relay;
