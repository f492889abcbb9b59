//! A vring of the scripted back-end: its setup and its frames, with the related faults.
//! [`super::connection::Connection`] owns it.

use std::os::fd::OwnedFd;

use super::control;
use super::dirty::Dirty;
use super::fault::Fault;
use crate::device::DeviceRing;
use crate::frame::{NET_HEADER_LEN, NetHeader};
use crate::memory::GuestMemory;
use crate::ring::{Layout, need_event};
use crate::wire::feature;

/// Time for which a fault leaves an intermediate state visible, for a driver that looks at once but gets the
/// processor late.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// The setup of a vring by the front-end.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: u16,
    /// Descriptor table, used ring and available ring, in the front-end's addresses.
    pub(super) addrs: Option<[u64; 3]>,
    /// Where the used ring is logged, as a guest address; `None`: it is not.
    pub(super) log: Option<u64>,
    pub(super) kick: Option<OwnedFd>,
    /// Whether its kick has been read since it was set; only a fault waits for it.
    pub(super) kicked: bool,
    pub(super) call: Option<OwnedFd>,
    pub(super) enabled: bool,
    /// The index of SET_VRING_BASE; only a fault uses it.
    pub(super) base: u16,
    pub(super) ring: Option<DeviceRing>,
}

impl Vring {
    /// Starts the ring when its setup is complete and it is enabled.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemory,
        acked: u64,
        enabled_anyway: bool,
        by_guest: bool,
        fault: Option<Fault>,
    ) {
        let (Some([desc, used, avail]), None, Some(_)) = (self.addrs, &self.ring, &self.kick) else { return };
        let early = fault == Some(Fault::DiscardsDisabled);
        let late = fault == Some(Fault::StartsByKick) && !self.kicked;
        if self.size == 0 || late || !(self.runs(enabled_anyway, fault) || early) {
            return;
        }
        let guest = |address| match fault {
            Some(Fault::UserAsGuest) => Some(address),
            Some(Fault::GpaZero) if by_guest && address == 0 => None,
            _ if by_guest => Some(address).filter(|address| memory.room(*address) > 0),
            _ => memory.guest(address),
        };
        let addresses = [desc, used, avail].map(guest);
        if fault == Some(Fault::AddressAborts) && addresses.contains(&None) {
            std::process::abort();
        }
        if let [Some(desc), Some(used), Some(avail)] = addresses {
            let size = if fault == Some(Fault::RingOf256) { self.size.min(256) } else { self.size };
            let layout = Layout { size, desc, avail, used };
            let whole = |at, len: usize| memory.pointer(at, len).is_some();
            if fault == Some(Fault::RingInOneRegion)
                && !whole(desc, layout.end().saturating_sub(desc) as usize)
            {
                return;
            }
            let mut ring = DeviceRing::start(memory.clone(), layout, acked & feature::EVENT_IDX != 0);
            match fault {
                Some(Fault::BelievesBase) => ring.begin_at(self.base),
                Some(Fault::BeginsAtZero) => ring.begin_at(0),
                Some(Fault::NoIndirect) => ring.ignore_indirect(),
                _ => {}
            }
            self.ring = Some(ring);
        }
    }

    /// Returns whether the ring may be processed.
    pub(super) fn runs(&self, enabled_anyway: bool, fault: Option<Fault>) -> bool {
        let by_features = enabled_anyway && fault != Some(Fault::NeedsEnable);
        self.enabled || by_features || fault == Some(Fault::EnablesEarly)
    }

    /// Marks what was written to the used ring since the last call.
    pub(super) fn log_used(&mut self, dirty: &Dirty) {
        let Some(ring) = &mut self.ring else { return };
        let (written, layout) = (ring.take_written(), ring.layout());
        if let Some(log) = self.log {
            let at = if dirty.fault == Some(Fault::LogAddress) { layout.used } else { log };
            dirty.mark_used(at, layout.size, &written);
        }
    }

    fn publish(&mut self, fault: Option<Fault>, dirty: &Dirty) {
        let Some(ring) = &mut self.ring else { return };
        let before = ring.used_idx();
        let wanted = ring.publish();
        let call = match fault {
            Some(Fault::LostCall) => false,
            Some(Fault::EventNoWrap) => {
                ring.used_event().is_none_or(|event| (before..ring.used_idx()).contains(&event))
            }
            Some(Fault::CallsAlways) => ring.used_idx() != before,
            Some(Fault::CallsAgain) => {
                let again = |event: u16| need_event(event.wrapping_add(1), ring.used_idx(), before);
                wanted || ring.used_event().is_some_and(again)
            }
            _ => wanted,
        };
        self.log_used(dirty);
        if call && let Some(call) = &self.call {
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    pub(super) fn transmit(
        &mut self,
        memory: &GuestMemory,
        fault: Option<Fault>,
        dirty: &Dirty,
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
            match fault {
                Some(Fault::TwoParts) => chain.parts.truncate(2),
                Some(Fault::CutsAtBorders) => chain.parts.iter_mut().for_each(|part| {
                    part.len = part.len.min(memory.room(part.addr) as u32);
                }),
                _ => {}
            }
            let mut bytes = chain.read(memory);
            if fault == Some(Fault::Truncates) {
                bytes.pop();
            }
            if fault == Some(Fault::WritesTransmit) {
                chain.write(memory, &NetHeader::default().encode());
            }
            ring.push(chain.head, u32::from(fault == Some(Fault::TransmitLength)));
            if fault == Some(Fault::DoubleCompletion) {
                ring.push(chain.head, 0);
            }
            match bytes.split_first_chunk::<NET_HEADER_LEN>() {
                Some((_, frame))
                    if fault == Some(Fault::FrameAborts) && !(14..65_550).contains(&frame.len()) =>
                {
                    std::process::abort()
                }
                Some((_, frame)) if fault == Some(Fault::NoJumbo) && frame.len() > 1518 => {}
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
        self.publish(fault, dirty);
        Ok(frames)
    }

    /// Carries out the commands of a control queue.
    pub(super) fn command(
        &mut self,
        memory: &GuestMemory,
        mq: bool,
        pairs: u16,
        fault: Option<Fault>,
        dirty: &Dirty,
    ) -> Result<(), String> {
        while let Some(ring) = &mut self.ring {
            let Some(chain) = ring.pop().map_err(|fault| fault.to_string())? else { break };
            let command = chain.read(memory);
            if fault == Some(Fault::ControlStops) && !control::known(&command) {
                self.ring = None;
                self.kick = None;
                break;
            }
            let len =
                chain.write(memory, &[control::answer(&command, mq, pairs, fault)][..chain.room().min(1)]);
            ring.push(chain.head, len as u32);
            dirty.mark_answer(&chain, len);
        }
        self.publish(fault, dirty);
        Ok(())
    }

    /// Delivers one frame, in several buffers if merging is allowed. Returns false if there are not enough
    /// buffers now.
    pub(super) fn receive(
        &mut self,
        memory: &GuestMemory,
        header: &NetHeader,
        frame: &[u8],
        mergeable: bool,
        fault: Option<Fault>,
        dirty: &Dirty,
    ) -> Result<bool, String> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        if fault == Some(Fault::StopsAtWrap) && ring.next_avail() < self.base {
            return Ok(false);
        }
        let total = NET_HEADER_LEN + frame.len();
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < total {
            match ring.pop().map_err(|fault| fault.to_string())? {
                Some(mut chain) => {
                    if let (Some(Fault::Unfilled), Some(last)) = (fault, chain.parts.last_mut()) {
                        last.len -= 8;
                    }
                    room += chain.room();
                    chains.push(chain);
                }
                None if chains.is_empty() && fault == Some(Fault::EmptyGivesUp) => {
                    (self.ring, self.kick) = (None, None);
                    return Ok(false);
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
            dirty.mark_received(chain, len, done == 0);
            if let (Some(Fault::HeaderApart), [_, second, ..]) = (fault, &chain.parts[..]) {
                memory.write(second.addr, &frame[..(second.len as usize).min(frame.len())]);
            }
            if fault == Some(Fault::BordersLost) {
                for part in &chain.parts {
                    let room = memory.room(part.addr).min(part.len as usize);
                    memory.write(part.addr + room as u64, &vec![0; part.len as usize - room]);
                }
            }
            let longer = usize::from(fault == Some(Fault::ReceiveLength));
            if let Some(ring) = &mut self.ring {
                ring.push(chain.head, (len + longer) as u32);
            }
            done += len;
            if fault == Some(Fault::ShownOneByOne) {
                self.publish(fault, dirty);
                std::thread::sleep(PAUSE);
            }
        }
        self.publish(fault, dirty);
        Ok(true)
    }
}
