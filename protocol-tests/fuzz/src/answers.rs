//! A model of a session: the answers that the vhost-user protocol requires.

use super::message::{
    CONFIG, Fd, GPA_ADDRESSES, Index, LOG_ALL, LOG_SHMFD, Message, Offers, RARP, Region, Request, VRINGS,
};

/// Largest ring that the session accepts.
pub(super) const RING_SIZE_MAX: u16 = 1024;
/// Bytes of each file: of guest memory, and of the log.
pub(super) const FILE: u64 = 0x8000;

const ANNOUNCE: u64 = 1 << 21;
const VERSION_1: u64 = 1 << 32;

const REPLY_ACK: u64 = 1 << 3;

/// Requests that change what the model knows.
const CHANGES: [u32; 8] = [2, 5, 6, 8, 9, 34, 37, 38];

/// The expected result of a message.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    Ends,
    Nothing,
    Status(bool),
    Payload(usize),
    Bytes(Vec<u8>),
    /// An answer, a refusal or the end: the model does not decide.
    Unknown,
}

impl Answer {
    pub(super) fn may_end(&self) -> bool {
        matches!(self, Answer::Ends | Answer::Unknown)
    }
}

/// A ring, as far as a log must cover it: size, and log address.
#[derive(Clone, Copy, Default)]
struct Ring {
    size: Option<u64>,
    log: Option<u64>,
}

impl Ring {
    fn used(self) -> Option<(u64, u64)> {
        Some((self.log?, 6 + 8 * self.size?))
    }
}

/// Guest address, size and user address: what makes a region the same.
type Place = [u64; 3];

/// The state of the connection, as far as it decides about answers.
#[derive(Default)]
pub(super) struct Negotiated {
    /// Before any negotiation.
    first: Offers,
    protocol: u64,
    /// Whether written pages are to be logged.
    logging: bool,
    memory: Vec<Place>,
    repeated: Vec<Place>,
    rings: [Ring; VRINGS as usize],
    /// Bytes of the log in use.
    log: Option<u64>,
    /// All logs so far in their file: size and offset.
    logs: Vec<[u64; 2]>,
    /// A message that the model does not understand may have changed the state.
    vague: bool,
}

/// What the session does with a request.
enum Verdict {
    Good,
    /// The connection goes on, even if the front-end does not ask for the status.
    Soft,
    Bad,
}

impl From<bool> for Verdict {
    fn from(good: bool) -> Verdict {
        if good { Verdict::Good } else { Verdict::Bad }
    }
}

impl Negotiated {
    pub(super) fn new(first: Offers) -> Negotiated {
        Negotiated { first, ..Negotiated::default() }
    }

    /// A guest can announce itself if the front-end serves the configuration space.
    pub(super) fn offers(&self) -> Offers {
        let announces = self.protocol != 0 && self.protocol & CONFIG == 0;
        let features = self.first.features | if announces { ANNOUNCE } else { 0 };
        Offers { features, ..self.first }
    }

    /// Whether rings are at guest addresses.
    pub(super) fn guest_addresses(&self) -> bool {
        self.protocol & GPA_ADDRESSES != 0
    }

    /// Returns the logs so far, as size and offset; `None` if there may have been others.
    pub(super) fn logs(&self) -> Option<&[[u64; 2]]> {
        (!self.vague).then_some(&self.logs)
    }

    /// Returns the required answer to `message`, and keeps its effects.
    pub(super) fn expect(&mut self, message: &Message) -> Answer {
        let before = message.need_reply && self.protocol & REPLY_ACK != 0;
        if message.surplus().is_some() {
            return Answer::Unknown;
        }
        let index = |index: &Index| index.get() < VRINGS;
        let number = |number: u64| Answer::Bytes(number.to_ne_bytes().to_vec());
        let verdict = match &message.request {
            Request::GetFeatures => return number(self.offers().features),
            Request::GetProtocolFeatures => return number(self.first.protocol),
            Request::QueueNum => return number(VRINGS.into()),
            Request::SlotNum => return number(128),
            Request::GetBase(n) => return if index(n) { Answer::Payload(8) } else { Answer::Ends },
            Request::GetConfig { offset, size, .. } => {
                let end = usize::from(*offset) + usize::from(*size);
                return Answer::Payload(if end <= 256 { 12 + usize::from(*size) } else { 0 });
            }
            Request::SetFeatures(bits) => self.set_features(bits.of(self.offers().features)),
            Request::SetProtocolFeatures(bits) => {
                let bits = bits.of(self.first.protocol);
                let good = bits & !self.first.protocol == 0;
                if good {
                    self.protocol = bits;
                }
                good.into()
            }
            Request::Owner | Request::ResetOwner => Verdict::Good,
            Request::ResetDevice => {
                self.reset();
                Verdict::Good
            }
            Request::Num(n, value) => {
                let size = value.get();
                let good = index(n) && size.is_power_of_two() && size <= RING_SIZE_MAX.into();
                match good.then(|| self.change(n, |ring| ring.size = Some(size.into()))) {
                    Some(None) => return Answer::Unknown,
                    changed => changed.flatten().unwrap_or(false).into(),
                }
            }
            Request::Addr(n, place, logged) => {
                let log = place.log(*logged);
                match index(n).then(|| self.change(n, |ring| ring.log = log)) {
                    Some(None) => return Answer::Unknown,
                    changed => changed.flatten().unwrap_or(false).into(),
                }
            }
            Request::Base(n, value) => (index(n) && value.get() < 0x1_0000).into(),
            Request::Enable(n, value) => (index(n) && value.get() < 2).into(),
            Request::Kick(n, fd) => {
                (n.get() & 0xff < VRINGS && matches!(fd, Some(fd) if notifies(*fd))).into()
            }
            Request::Call(n, fd) | Request::Err(n, fd) => {
                (n.get() & 0xff < VRINGS && fd.is_none_or(notifies)).into()
            }
            Request::SetConfig(_) => Verdict::Bad,
            Request::LogBase(span, file) => return self.log_base(span.words(), file.fd()),
            Request::LogFd(_) if self.protocol & LOG_SHMFD == 0 => Verdict::Soft,
            Request::LogFd(fd) => fd.is_some().into(),
            Request::Rarp(_) if self.protocol & RARP == 0 => Verdict::Soft,
            Request::Rarp(mac) => {
                let [first, rest @ ..] = mac.to_ne_bytes();
                (first & 1 == 0 && (first != 0 || rest[..5] != [0; 5])).into()
            }
            // The files decide too. But a log without a bit for new memory is a reason to refuse it.
            Request::MemTable(regions) if self.forbids(regions) => Verdict::Bad,
            Request::AddRegion(region)
                if !self.memory.contains(&place(region)) && self.forbids(std::slice::from_ref(region)) =>
            {
                Verdict::Bad
            }
            Request::MemTable(_)
            | Request::AddRegion(_)
            | Request::RemoveRegion(..)
            | Request::Other { .. } => return Answer::Unknown,
        };
        // This message's own negotiation counts too.
        let acked = before || message.need_reply && self.protocol & REPLY_ACK != 0;
        match (verdict, acked) {
            (verdict, true) => Answer::Status(matches!(verdict, Verdict::Good)),
            (Verdict::Good | Verdict::Soft, false) => Answer::Nothing,
            (Verdict::Bad, false) => Answer::Ends,
        }
    }

    /// Keeps the effects of a message whose answer was [`Answer::Unknown`], and which did not end the
    /// connection.
    pub(super) fn learn(&mut self, message: &Message, accepted: bool) {
        match &message.request {
            Request::Other { request, .. } => self.vague |= CHANGES.contains(&Message::other_code(*request)),
            _ if !accepted => {}
            Request::MemTable(regions) => {
                self.memory = regions.iter().map(place).collect();
                self.repeated.clear();
            }
            Request::AddRegion(region) => {
                let again = self.memory.contains(&place(region));
                if again { &mut self.repeated } else { &mut self.memory }.push(place(region));
            }
            Request::RemoveRegion(region, _) => {
                let is_it = |known: &Place| *known == place(region);
                match self.repeated.iter().position(is_it) {
                    Some(at) => drop(self.repeated.remove(at)),
                    None => self.memory.retain(|known| !is_it(known)),
                }
            }
            Request::ResetDevice => self.reset(),
            _ => {}
        }
    }

    fn set_features(&mut self, bits: u64) -> Verdict {
        if bits & !self.offers().features != 0 {
            return Verdict::Bad;
        }
        let logs = bits & LOG_ALL != 0;
        if logs && self.protocol & LOG_SHMFD == 0 {
            return Verdict::Soft;
        }
        // Legacy drivers are not supported, which ends nothing.
        let modern = bits & VERSION_1 != 0;
        if self.logging && !(logs && modern) {
            self.log = None;
        }
        self.logging = logs && modern;
        if modern { Verdict::Good } else { Verdict::Soft }
    }

    fn reset(&mut self) {
        self.logging = false;
        self.log = None;
        self.rings = Default::default();
    }

    /// Changes a ring. Returns whether the log covers its new used ring; `None` if the model cannot tell.
    fn change(&mut self, index: &Index, change: impl FnOnce(&mut Ring)) -> Option<bool> {
        if self.vague {
            return None;
        }
        let ring = &mut self.rings[index.get() as usize];
        let mut changed = *ring;
        change(&mut changed);
        let good = self.log.is_none_or(|log| changed.used().is_none_or(|(at, len)| covers(log, at, len)));
        if good {
            *ring = changed;
        }
        Some(good)
    }

    /// The front-end always waits for an answer.
    fn log_base(&mut self, [size, offset]: [u64; 2], fd: Option<Fd>) -> Answer {
        let in_file = size > 0 && offset.checked_add(size).is_some_and(|end| end <= FILE);
        if self.protocol & LOG_SHMFD == 0 || !in_file || !matches!(fd, Some(Fd::Memory(_) | Fd::Log)) {
            return Answer::Ends;
        }
        if self.vague {
            return Answer::Unknown;
        }
        let memory = self.memory.iter().map(|[at, len, _]| (*at, *len));
        let used = self.rings.iter().filter_map(|ring| ring.used());
        if !memory.chain(used).all(|(at, len)| covers(size, at, len)) {
            return Answer::Ends;
        }
        self.log = Some(size);
        self.logs.push([size, offset]);
        Answer::Bytes([size, offset].iter().flat_map(|word| word.to_ne_bytes()).collect())
    }

    /// Whether the log in use has no bits for these.
    fn forbids(&self, regions: &[Region]) -> bool {
        let all = |log| regions.iter().map(place).all(|[at, len, _]| covers(log, at, len));
        !self.vague && self.log.is_some_and(|log| !all(log))
    }
}

fn place(region: &Region) -> Place {
    let [guest, size, user, _] = region.words();
    [guest, size, user]
}

/// Whether a log of so many bytes has a bit for each page.
fn covers(log: u64, at: u64, len: u64) -> bool {
    len == 0 || at.checked_add(len - 1).is_some_and(|last| last / 4096 / 8 < log)
}

/// Returns whether a descriptor can carry notifications: neither a file nor a device can.
fn notifies(fd: Fd) -> bool {
    matches!(fd, Fd::Eventfd | Fd::Socket)
}
