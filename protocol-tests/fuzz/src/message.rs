//! Messages from the fuzzer's front-end, and the answers that the vhost-user protocol requires.

use arbitrary::Arbitrary;

/// Largest ring that the session accepts.
pub(super) const RING_SIZE_MAX: u16 = 1024;
/// Two pairs and their control queue.
const VRINGS: u32 = 5;
const REPLY_ACK: u64 = 1 << 3;
const VERSION_1: u64 = 1 << 32;
const LOG_ALL: u64 = 1 << 26;

/// A file descriptor beside a message.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Fd {
    Eventfd,
    Memory(bool),
    Socket,
    Null,
}

/// A memory region; by default of 16 KiB, at the address of `slot`.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Region {
    slot: u8,
    second: bool,
    other: Option<[u64; 4]>,
}

impl Region {
    fn words(&self) -> [u64; 4] {
        let guest = u64::from(self.slot % 3) * 0x4000;
        self.other.unwrap_or([guest, 0x4000, 0x7000_0000 + guest, 0x1000 * u64::from(self.slot % 3)])
    }
}

/// A request.
#[derive(Arbitrary, Clone, Debug)]
enum Request {
    GetFeatures,
    SetFeatures(Bits),
    GetProtocolFeatures,
    SetProtocolFeatures(Bits),
    QueueNum,
    SlotNum,
    Owner,
    ResetOwner,
    ResetDevice,
    MemTable(Vec<Region>),
    AddRegion(Region),
    RemoveRegion(Region, bool),
    Num(Index, Value),
    Base(Index, Value),
    Enable(Index, Value),
    GetBase(Index),
    Addr(Index, Place),
    Kick(Index, Option<Fd>),
    Call(Index, Option<Fd>),
    Err(Index, Option<Fd>),
    GetConfig { offset: u16, size: u16, room: u8 },
    SetConfig(u8),
    Other { request: u8, body: Vec<u8>, fds: Vec<Fd> },
}

/// Feature bits: the offered ones without those of a mask, or any.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Bits {
    Offered,
    Less(u64),
    Any(u64),
}

impl Bits {
    fn of(self, offered: u64) -> u64 {
        match self {
            Bits::Offered => offered,
            Bits::Less(mask) => offered & !mask,
            Bits::Any(bits) => bits,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Index {
    Good(u8),
    Any(u32),
}

impl Index {
    fn get(self) -> u32 {
        match self {
            Index::Good(n) => u32::from(n) % VRINGS,
            Index::Any(n) => n,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Value {
    Power(u8),
    Any(u32),
}

impl Value {
    fn get(self) -> u32 {
        match self {
            Value::Power(n) => 1 << (n % 16),
            Value::Any(n) => n,
        }
    }
}

/// Addresses of a ring.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Page(u8),
    Any([u64; 3], u8),
}

/// A message to send.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Message {
    request: Request,
    need_reply: bool,
    cut: Option<u8>,
    /// Bytes more or less in its body, and surplus descriptors: usually none.
    surplus: Option<(i8, u8)>,
}

/// The expected result of a message.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    Ends,
    Nothing,
    Status(bool),
    Payload(usize),
    Number(u64),
    /// An answer, a refusal or the end: the model does not decide.
    Unknown,
}

impl Answer {
    pub(super) fn may_end(&self) -> bool {
        matches!(self, Answer::Ends | Answer::Unknown)
    }
}

impl Message {
    fn plain(request: Request) -> Message {
        Message { request, need_reply: false, cut: None, surplus: None }
    }

    /// The messages by which front-ends start a pair.
    pub(super) fn set_up(second: bool) -> Vec<Message> {
        let region = Region { slot: 0, second: false, other: None };
        let mut requests = vec![
            Request::Owner,
            Request::SetProtocolFeatures(Bits::Offered),
            Request::SetFeatures(Bits::Offered),
            Request::MemTable(vec![region]),
        ];
        for n in [0, 1].map(|n| n + 2 * u8::from(second)) {
            let index = Index::Good(n);
            requests.extend([
                Request::Num(index, Value::Power(3)),
                Request::Addr(index, Place::Page(n)),
                Request::Kick(index, Some(Fd::Eventfd)),
                Request::Call(index, Some(Fd::Eventfd)),
                Request::Enable(index, Value::Power(0)),
            ]);
        }
        requests.into_iter().map(Message::plain).collect()
    }

    /// Bytes sent before the rest.
    pub(super) fn cut(&self) -> usize {
        self.cut.map_or(usize::MAX, usize::from)
    }

    /// Request code, flags and body.
    pub(super) fn encode(&self, offers: Offers) -> (u32, u32, Vec<u8>) {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let halves = |a: u32, b: u32| words(&[u64::from(a) | u64::from(b) << 32]);
        let vring = |index: &Index, fd: &Option<Fd>| {
            words(&[u64::from(index.get() & 0xff) | if fd.is_none() { 0x100 } else { 0 }])
        };
        let region = |region: &Region| words(&[&[0], &region.words()[..]].concat());
        let (code, mut body) = match &self.request {
            Request::GetFeatures => (1, vec![]),
            Request::SetFeatures(bits) => (2, words(&[bits.of(offers.features)])),
            Request::GetProtocolFeatures => (15, vec![]),
            Request::SetProtocolFeatures(bits) => (16, words(&[bits.of(offers.protocol)])),
            Request::QueueNum => (17, vec![]),
            Request::SlotNum => (36, vec![]),
            Request::Owner => (3, vec![]),
            Request::ResetOwner => (4, vec![]),
            Request::ResetDevice => (34, vec![]),
            Request::MemTable(regions) => {
                let regions = &regions[..regions.len().min(9)];
                let head = [regions.len() as u64];
                (5, regions.iter().fold(words(&head), |body, region| [body, words(&region.words())].concat()))
            }
            Request::AddRegion(added) => (37, region(added)),
            Request::RemoveRegion(removed, _) => (38, region(removed)),
            Request::Num(index, value) => (8, halves(index.get(), value.get())),
            Request::Base(index, value) => (10, halves(index.get(), value.get())),
            Request::Enable(index, value) => (18, halves(index.get(), value.get())),
            Request::GetBase(index) => (11, halves(index.get(), 0)),
            Request::Addr(index, place) => {
                let (flags, [desc, used, avail]) = match place {
                    Place::Page(n) => {
                        let at = 0x7000_0000 + u64::from(n % 6) * 0x800;
                        (0, [at, at + 0x400, at + 0x200])
                    }
                    Place::Any(addresses, flags) => (u32::from(*flags), *addresses),
                };
                (9, [halves(index.get(), flags), words(&[desc, used, avail, 0])].concat())
            }
            Request::Kick(index, fd) => (12, vring(index, fd)),
            Request::Call(index, fd) => (13, vring(index, fd)),
            Request::Err(index, fd) => (14, vring(index, fd)),
            Request::GetConfig { offset, size, room } => {
                let head = [halves((*offset).into(), (*size).into()), vec![0; 4]].concat();
                (24, [head, vec![0; (*room).into()]].concat())
            }
            Request::SetConfig(room) => (25, vec![0; 12 + usize::from(*room)]),
            Request::Other { request, body, .. } => {
                // Not a protocol feature unknown to the model.
                let code = if request % 48 == 16 { 6 } else { request % 48 };
                (code.into(), body[..body.len().min(300)].to_vec())
            }
        };
        if let Some((bytes, _)) = self.surplus() {
            body.resize(body.len().saturating_add_signed(bytes.into()), 0);
        }
        (code, 1 | if self.need_reply { 8 } else { 0 }, body)
    }

    /// Returns its descriptors.
    pub(super) fn fds(&self) -> Vec<Fd> {
        let mut fds = match &self.request {
            Request::MemTable(regions) => {
                regions.iter().take(9).map(|region| Fd::Memory(region.second)).collect()
            }
            Request::AddRegion(region) | Request::RemoveRegion(region, true) => {
                vec![Fd::Memory(region.second)]
            }
            Request::Kick(_, fd) | Request::Call(_, fd) | Request::Err(_, fd) => fd.iter().copied().collect(),
            Request::Other { fds, .. } => fds[..fds.len().min(9)].to_vec(),
            _ => Vec::new(),
        };
        if let Some((_, surplus)) = self.surplus() {
            fds.extend((0..surplus).map(|_| Fd::Eventfd));
        }
        fds
    }

    fn surplus(&self) -> Option<(i8, u8)> {
        self.surplus.map(|(bytes, fds)| (bytes, fds % 3)).filter(|surplus| *surplus != (0, 0))
    }
}

/// The features that the back-end has offered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offers {
    pub(super) features: u64,
    pub(super) protocol: u64,
}

/// The negotiated state of the connection, as far as it decides about answers.
#[derive(Default)]
pub(super) struct Negotiated {
    pub(super) offers: Offers,
    protocol: u64,
}

impl Negotiated {
    /// Returns the required answer to `message`, and keeps its effects.
    pub(super) fn expect(&mut self, message: &Message) -> Answer {
        let before = message.need_reply && self.protocol & REPLY_ACK != 0;
        if message.surplus().is_some() {
            return Answer::Unknown;
        }
        let index = |index: &Index| index.get() < VRINGS;
        let good = match &message.request {
            Request::GetFeatures => return Answer::Number(self.offers.features),
            Request::GetProtocolFeatures => return Answer::Number(self.offers.protocol),
            Request::QueueNum => return Answer::Number(VRINGS.into()),
            Request::SlotNum => return Answer::Number(128),
            Request::GetBase(n) => return if index(n) { Answer::Payload(8) } else { Answer::Ends },
            Request::GetConfig { offset, size, .. } => {
                let end = usize::from(*offset) + usize::from(*size);
                return Answer::Payload(if end <= 256 { 12 + usize::from(*size) } else { 0 });
            }
            Request::SetFeatures(bits) => {
                let bits = bits.of(self.offers.features);
                if bits & !self.offers.features != 0 {
                    false
                } else if bits & VERSION_1 == 0 {
                    // Legacy drivers are not supported, which ends nothing.
                    return if before { Answer::Status(false) } else { Answer::Nothing };
                } else {
                    true
                }
            }
            Request::SetProtocolFeatures(bits) => {
                let bits = bits.of(self.offers.protocol);
                let good = bits & !self.offers.protocol == 0;
                if good {
                    self.protocol = bits;
                }
                good
            }
            Request::Owner | Request::ResetOwner | Request::ResetDevice => true,
            Request::Num(n, value) => {
                index(n) && value.get().is_power_of_two() && value.get() <= RING_SIZE_MAX.into()
            }
            Request::Base(n, value) => index(n) && value.get() < 0x1_0000,
            Request::Enable(n, value) => index(n) && value.get() < 2,
            // Bit 0 asks for dirty logging.
            Request::Addr(n, place) => {
                index(n)
                    && (self.offers.features & LOG_ALL != 0
                        || !matches!(place, Place::Any(_, f) if f & 1 != 0))
            }
            Request::Kick(n, fd) => n.get() & 0xff < VRINGS && matches!(fd, Some(fd) if notifies(*fd)),
            Request::Call(n, fd) | Request::Err(n, fd) => n.get() & 0xff < VRINGS && fd.is_none_or(notifies),
            Request::SetConfig(_) => false,
            Request::MemTable(_)
            | Request::AddRegion(_)
            | Request::RemoveRegion(..)
            | Request::Other { .. } => {
                return Answer::Unknown;
            }
        };
        // This message's own negotiation counts too.
        let acked = before || message.need_reply && self.protocol & REPLY_ACK != 0;
        match (good, acked) {
            (good, true) => Answer::Status(good),
            (true, false) => Answer::Nothing,
            (false, false) => Answer::Ends,
        }
    }
}

/// Returns whether a descriptor can carry notifications: neither a file nor a device can.
fn notifies(fd: Fd) -> bool {
    matches!(fd, Fd::Eventfd | Fd::Socket)
}
