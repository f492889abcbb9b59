//! What every virtio device needs: feature bits, guest memory, rings and chains.

pub mod chain;
pub mod features;
pub mod memory;
pub mod part;
pub mod ring;

#[cfg(test)]
pub(crate) mod testing;
