//! What every virtio device needs: feature bits, guest memory, rings and chains.

pub mod features;
