//! A polling network card: its own memory and a [`PollRing`] for each vring, connected to a back-end by the
//! usual script.

use std::path::Path;
use std::time::Duration;

use crate::bench::BenchError;
use crate::bench::case::{Case, Direction, FLOWS};
use crate::bench::ring::{PollRing, chain};
use crate::dirty_log::DirtyLog;
use crate::frame::NET_HEADER_LEN;
use crate::frontend::Frontend;
use crate::memory::GuestMemory;
use crate::ring::Layout;
use crate::session::negotiate;
use crate::wire::{feature, protocol, request};

/// Time after which an operation counts as stuck, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);
const GUEST: u64 = 0x10_0000;

/// A card served by a back-end.
#[derive(Debug)]
pub struct Card {
    /// The connection.
    pub frontend: Frontend,
    /// The vrings: receive and transmit of pair 0, then of pair 1.
    pub rings: Vec<PollRing>,
    /// Guest addresses of each ring's chains' buffers, part after part.
    pub buffers: Vec<Vec<u64>>,
    case: Case,
    mem: GuestMemory,
    log: Option<DirtyLog>,
}

impl Card {
    /// Makes a card for `case`, fills transmit buffers with its frames, and connects it to the back-end at
    /// `socket`.
    pub fn connect(case: &Case, socket: &Path) -> Result<Card, BenchError> {
        let mut frontend = Frontend::connect(socket, LIMIT)?;
        frontend.channel().set_patience(LIMIT);
        let features = agree(&mut frontend, case)?;
        let mut space = Space::new(case)?;
        let mut rings = Vec::new();
        let mut buffers = Vec::new();
        for vring in 0..2 * case.pairs {
            let direction = if vring % 2 == 0 { Direction::Rx } else { Direction::Tx };
            let shape =
                Case { direction, size: if direction == case.direction { case.size } else { 64 }, ..*case };
            let (ring, at) = space.ring(&shape, features)?;
            rings.push(ring);
            buffers.push(at);
        }
        let end = space.mem.specs().iter().map(|spec| spec.guest + spec.size).max().unwrap_or(0);
        let log = case.logged.then(|| DirtyLog::covering(end)).transpose()?;
        let card = Card { frontend, rings, buffers, case: *case, mem: space.mem, log };
        card.attach()?;
        Ok(card)
    }

    /// Reconnects after the back-end has gone, like a front-end that continues at the used index.
    pub fn reconnect(&mut self, frontend: Frontend) -> Result<(), BenchError> {
        self.frontend = frontend;
        agree(&mut self.frontend, &self.case)?;
        self.attach()?;
        self.rings.iter_mut().for_each(PollRing::kick);
        Ok(())
    }

    fn attach(&self) -> Result<(), BenchError> {
        let frontend = &self.frontend;
        frontend.set_mem_table(&self.mem)?;
        for (ring, vring) in self.rings.iter().zip(0..) {
            frontend.set_vring_num(vring, ring.layout().size.into())?;
            frontend.set_vring_base(vring, ring.used_idx().into())?;
            frontend.set_vring_addr(vring, &self.mem, &ring.layout())?;
            frontend.set_vring_fd(request::SET_VRING_CALL, vring, Some(&ring.call))?;
            frontend.set_vring_fd(request::SET_VRING_KICK, vring, Some(&ring.kick))?;
        }
        for vring in 0..self.rings.len() as u32 {
            frontend.set_vring_enable(vring, true)?;
        }
        if let Some(log) = &self.log {
            frontend.set_log_base(log)?;
            frontend.set_features(self.case.features() | feature::LOG_ALL)?;
            for (ring, vring) in self.rings.iter().zip(0..) {
                let used = ring.layout().used;
                frontend.set_vring_addr_logged(vring, &self.mem, &ring.layout(), Some(used))?;
            }
        }
        Ok(frontend.sync()?)
    }

    /// Returns the rings of the case's direction, one for each pair.
    pub fn measured(&mut self) -> impl Iterator<Item = &mut PollRing> {
        let first = if self.case.direction == Direction::Rx { 0 } else { 1 };
        self.rings.iter_mut().skip(first).step_by(2)
    }

    /// Returns `len` bytes of the card's memory at `guest`.
    pub fn read(&self, guest: u64, len: usize) -> Vec<u8> {
        self.mem.read(guest, len)
    }

    /// Overwrites the card's memory at `guest`.
    pub fn write(&self, guest: u64, bytes: &[u8]) {
        self.mem.write(guest, bytes);
    }

    /// Returns the notifications so far: kicks, calls.
    pub fn notifications(&self) -> (u64, u64) {
        let kicks = self.rings.iter().map(|ring| ring.kicks).sum();
        (kicks, self.rings.iter().map(PollRing::take_calls).sum())
    }
}

/// Negotiates owner, features and protocol features. The back-end must offer the features of the case.
fn agree(frontend: &mut Frontend, case: &Case) -> Result<u64, BenchError> {
    let log = if case.logged { protocol::LOG_SHMFD } else { 0 };
    let protocols = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | log;
    let (features, _) = negotiate(frontend, case.features(), protocols)?;
    let missing = case.features() & !features & !(feature::MQ | feature::PROTOCOL_FEATURES);
    if missing != 0 {
        return Err(BenchError::Wrong(format!("the back-end does not offer features {missing:#x}")));
    }
    Ok(features)
}

/// Guest memory, allocated from its start.
struct Space {
    mem: GuestMemory,
    next: u64,
}

impl Space {
    fn new(case: &Case) -> Result<Space, BenchError> {
        // A gap after each buffer separates it from the next.
        let room = |parts: &[usize]| parts.iter().map(|len| stride(*len) + 16).sum::<u64>();
        let shapes =
            [Direction::Rx, Direction::Tx].map(|direction| room(&Case { direction, ..*case }.parts()));
        let chains = u64::from(case.ring) * shapes.iter().sum::<u64>() + (1 << 20);
        let size = (chains * case.pairs as u64).next_multiple_of(2 << 20);
        Ok(Space { mem: GuestMemory::flat(GUEST, size)?, next: GUEST })
    }

    fn take(&mut self, len: u64) -> u64 {
        let at = self.next.next_multiple_of(64);
        self.next = at + len;
        at
    }

    /// Returns a ring with its chains, and the addresses of their parts, chain after chain.
    fn ring(&mut self, case: &Case, features: u64) -> Result<(PollRing, Vec<u64>), BenchError> {
        let layout = Layout::at(self.take(0), case.ring);
        self.next = layout.end();
        let (write, parts) = (case.direction == Direction::Rx, case.parts());
        if parts.len() > 1 && features & feature::INDIRECT_DESC == 0 {
            return Err(BenchError::Wrong("chains of several buffers need INDIRECT_DESC".to_owned()));
        }
        let (mut chains, mut buffers) = (Vec::new(), Vec::new());
        for number in 0..usize::from(case.ring) {
            let table = self.take(16 * parts.len() as u64);
            let places: Vec<(u64, usize)> = parts.iter().map(|len| (self.take(stride(*len)), *len)).collect();
            if !write {
                let mut bytes = case.header().encode().to_vec();
                bytes.extend(case.frame(number % FLOWS));
                debug_assert_eq!(bytes.len(), NET_HEADER_LEN + case.size);
                for (at, len) in &places {
                    self.mem.write(*at, &bytes.drain(..*len).collect::<Vec<_>>());
                }
            }
            buffers.extend(places.iter().map(|place| place.0));
            chains.push(chain(&self.mem, &places, table, write));
        }
        let ring = PollRing::new(&self.mem, layout, chains, case.event_idx, case.calls)?;
        Ok((ring, buffers))
    }
}

/// Returns the memory for a buffer of `len` bytes, including its gap.
fn stride(len: usize) -> u64 {
    (len as u64 + 64).next_multiple_of(64)
}
