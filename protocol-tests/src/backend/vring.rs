//! One vring of the scripted back-end: what the front-end said of it, and the frames that move by it, with the faults
//! that concern them. [`super::connection::Connection`] owns it.

use std::os::fd::OwnedFd;

use super::fault::Fault;
use crate::device::DeviceRing;
use crate::frame::{NET_HEADER_LEN, NetHeader};
use crate::memory::GuestMemory;
use crate::ring::Layout;
use crate::wire::feature;

/// How long a fault leaves a half-done thing visible: for a driver that looks at once, and gets the processor late.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// What the front-end said of one vring.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: u16,
    /// Descriptor table, used ring, available ring, in the front-end's own addresses.
    pub(super) addrs: Option<[u64; 3]>,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) enabled: bool,
    /// What SET_VRING_BASE said; only a fault believes it.
    pub(super) base: u16,
    pub(super) ring: Option<DeviceRing>,
}

impl Vring {
    /// Starts the ring once it has all it needs and is enabled.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemory,
        acked: u64,
        enabled_anyway: bool,
        fault: Option<Fault>,
    ) {
        let (Some([desc, used, avail]), None, Some(_)) = (self.addrs, &self.ring, &self.kick) else { return };
        if self.size == 0 || !self.runs(enabled_anyway, fault) {
            return;
        }
        if let (Some(desc), Some(used), Some(avail)) =
            (memory.guest(desc), memory.guest(used), memory.guest(avail))
        {
            let layout = Layout { size: self.size, desc, avail, used };
            let mut ring = DeviceRing::start(memory.clone(), layout, acked & feature::EVENT_IDX != 0);
            if fault == Some(Fault::BelievesBase) {
                ring.begin_at(self.base);
            }
            self.ring = Some(ring);
        }
    }

    /// Whether the ring may be processed.
    pub(super) fn runs(&self, enabled_anyway: bool, fault: Option<Fault>) -> bool {
        self.enabled || enabled_anyway || fault == Some(Fault::EnablesEarly)
    }

    fn publish(&mut self, fault: Option<Fault>) {
        let Some(ring) = &mut self.ring else { return };
        let before = ring.used_idx();
        let wanted = ring.publish();
        let call = match fault {
            Some(Fault::LostCall) => false,
            Some(Fault::EventNoWrap) => {
                ring.used_event().is_none_or(|event| (before..ring.used_idx()).contains(&event))
            }
            Some(Fault::CallsAlways) => ring.used_idx() != before,
            _ => wanted,
        };
        if call && let Some(call) = &self.call {
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    pub(super) fn transmit(
        &mut self,
        memory: &GuestMemory,
        fault: Option<Fault>,
    ) -> Result<Vec<(NetHeader, Vec<u8>)>, String> {
        let mut frames = Vec::new();
        let mut chains = Vec::new();
        while let Some(ring) = &mut self.ring {
            if fault == Some(Fault::StopsAtWrap) && ring.next_avail() < self.base {
                break;
            }
            let Some(chain) = ring.pop().map_err(|fault| fault.to_string())? else { break };
            chains.push(chain);
        }
        let Some(ring) = &mut self.ring else { return Ok(frames) };
        match fault {
            Some(Fault::NoAvailEvent) => ring.misplace_avail_event(),
            Some(Fault::IndexEarly) if !chains.is_empty() => {
                ring.show_early(chains.len() as u16);
                std::thread::sleep(PAUSE);
            }
            _ => {}
        }
        for mut chain in chains {
            if fault == Some(Fault::TwoParts) {
                chain.parts.truncate(2);
            }
            let mut bytes = chain.read(memory);
            if fault == Some(Fault::Truncates) {
                bytes.pop();
            }
            ring.push(chain.head, u32::from(fault == Some(Fault::TransmitLength)));
            if fault == Some(Fault::DoubleCompletion) {
                ring.push(chain.head, 0);
            }
            match bytes.split_first_chunk::<NET_HEADER_LEN>() {
                Some((header, frame)) => {
                    let frame = (NetHeader::decode(header), frame.to_vec());
                    if fault == Some(Fault::Repeats) {
                        frames.push(frame.clone());
                    }
                    frames.push(frame);
                }
                None => return Err(format!("chain of {} bytes is shorter than a header", bytes.len())),
            }
        }
        if fault == Some(Fault::Swaps) {
            frames.reverse();
        }
        self.publish(fault);
        Ok(frames)
    }

    /// Delivers one frame, in several buffers if they may be merged. False: not enough buffers now.
    pub(super) fn receive(
        &mut self,
        memory: &GuestMemory,
        header: &NetHeader,
        frame: &[u8],
        mergeable: bool,
        fault: Option<Fault>,
    ) -> Result<bool, String> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let total = NET_HEADER_LEN + frame.len();
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < total {
            match ring.pop().map_err(|fault| fault.to_string())? {
                Some(chain) => {
                    room += chain.room();
                    chains.push(chain);
                }
                None if chains.is_empty() => return Ok(false),
                None => return Err(format!("frame of {} bytes found {room} bytes of buffers", frame.len())),
            }
            if !mergeable && room < total {
                return Err(format!("frame of {} bytes and a chain of {room}", frame.len()));
            }
        }
        let num_buffers = match fault {
            Some(Fault::NoBuffers) => 0,
            Some(Fault::OneBuffer) => 1,
            _ => chains.len() as u16,
        };
        let header = NetHeader { num_buffers, ..*header };
        let bytes = [header.encode().as_slice(), frame].concat();
        let mut done = 0;
        for chain in &chains {
            let len = chain.write(memory, &bytes[done..]);
            let longer = usize::from(fault == Some(Fault::ReceiveLength));
            if let Some(ring) = &mut self.ring {
                ring.push(chain.head, (len + longer) as u32);
            }
            done += len;
            if fault == Some(Fault::ShownOneByOne) {
                self.publish(fault);
                std::thread::sleep(PAUSE);
            }
        }
        self.publish(fault);
        Ok(true)
    }
}
