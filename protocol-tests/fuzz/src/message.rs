//! Messages from the fuzzer's front-end.

use arbitrary::Arbitrary;

/// Two pairs and their control queue.
pub(super) const VRINGS: u32 = 5;
pub(super) const LOG_ALL: u64 = 1 << 26;

pub(super) const LOG_SHMFD: u64 = 1 << 1;
pub(super) const RARP: u64 = 1 << 2;
pub(super) const CONFIG: u64 = 1 << 9;
pub(super) const GPA_ADDRESSES: u64 = 1 << 21;
const OPTIONS: [u64; 4] = [LOG_SHMFD, RARP, CONFIG, GPA_ADDRESSES];

/// The features that the back-end has offered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offers {
    pub(super) features: u64,
    pub(super) protocol: u64,
}

/// A file descriptor beside a message.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Fd {
    Eventfd,
    Memory(bool),
    Log,
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
    /// Guest address, size, user address, offset in the file.
    pub(super) fn words(&self) -> [u64; 4] {
        let guest = u64::from(self.slot % 3) * 0x4000;
        self.other.unwrap_or([guest, 0x4000, 0x7000_0000 + guest, 0x1000 * u64::from(self.slot % 3)])
    }
}

/// A request.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Request {
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
    Addr(Index, Place, Logged),
    Kick(Index, Option<Fd>),
    Call(Index, Option<Fd>),
    Err(Index, Option<Fd>),
    GetConfig { offset: u16, size: u16, room: u8 },
    SetConfig(u8),
    LogBase(Span, LogFile),
    LogFd(Option<Fd>),
    Rarp(u64),
    Other { request: u8, body: Vec<u8>, fds: Vec<Fd> },
}

/// Feature bits: the offered ones without those of a mask, LOG_ALL alone, or any.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Bits {
    Offered,
    Less(u64),
    LogAlone,
    Any(u64),
}

impl Bits {
    pub(super) fn of(self, offered: u64) -> u64 {
        match self {
            Bits::Offered => offered,
            Bits::Less(mask) => offered & !mask,
            Bits::LogAlone => LOG_ALL,
            Bits::Any(bits) => bits,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Index {
    Good(u8),
    Any(u32),
}

impl Index {
    pub(super) fn get(self) -> u32 {
        match self {
            Index::Good(n) => u32::from(n) % VRINGS,
            Index::Any(n) => n,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Value {
    Power(u8),
    Any(u32),
}

impl Value {
    pub(super) fn get(self) -> u32 {
        match self {
            Value::Power(n) => 1 << (n % 16),
            Value::Any(n) => n,
        }
    }
}

/// Addresses of a ring.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Place {
    Page(u8),
    Any([u64; 3], u8),
}

/// Where writes to a used ring are logged.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Logged {
    No,
    /// At its own address, as QEMU does.
    There,
    /// In one of the first pages.
    Near(u8),
    At(u64),
}

impl Place {
    /// Guest address of the first byte of a page's rings.
    fn of_page(n: u8) -> u64 {
        u64::from(n % 6) * 0x800
    }

    /// Returns the log address of the used ring.
    pub(super) fn log(self, logged: Logged) -> Option<u64> {
        match (logged, self) {
            (Logged::No, _) => None,
            (Logged::At(at), _) => Some(at),
            (Logged::Near(page), _) => Some(u64::from(page) << 12),
            (Logged::There, Place::Page(n)) => Some(Place::of_page(n) + 0x400),
            (Logged::There, Place::Any([_, used, _], _)) => Some(used),
        }
    }
}

/// A log of written pages in its file. A byte has the bits of 8 pages.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Span {
    Tiny(u8),
    Small { size: u8, offset: u16 },
    Any([u64; 2]),
}

impl Span {
    /// Size and offset.
    pub(super) fn words(self) -> [u64; 2] {
        match self {
            Span::Tiny(n) => [u64::from(n % 4), u64::from(n) * 3],
            Span::Small { size, offset } => [size.into(), offset.into()],
            Span::Any(words) => words,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum LogFile {
    Own,
    Other(Option<Fd>),
}

impl LogFile {
    pub(super) fn fd(self) -> Option<Fd> {
        match self {
            LogFile::Own => Some(Fd::Log),
            LogFile::Other(fd) => fd,
        }
    }
}

/// A message to send.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Message {
    pub(super) request: Request,
    pub(super) need_reply: bool,
    cut: Option<u8>,
    /// Bytes more or less in its body, and surplus descriptors: usually none.
    surplus: Option<(i8, u8)>,
}

impl Message {
    fn plain(request: Request) -> Message {
        Message { request, need_reply: false, cut: None, surplus: None }
    }

    /// The messages by which front-ends start a pair. They leave out one of the protocol features that change
    /// the meaning of other messages, or none.
    pub(super) fn set_up(second: bool, without: Option<u8>) -> Vec<Message> {
        let without = without.map_or(0, |n| OPTIONS[usize::from(n) % OPTIONS.len()]);
        let region = Region { slot: 0, second: false, other: None };
        let mut requests = vec![
            Request::Owner,
            Request::SetProtocolFeatures(Bits::Less(without)),
            Request::SetFeatures(Bits::Less(LOG_ALL)),
            Request::MemTable(vec![region]),
        ];
        for n in [0, 1].map(|n| n + 2 * u8::from(second)) {
            let index = Index::Good(n);
            requests.extend([
                Request::Num(index, Value::Power(3)),
                Request::Addr(index, Place::Page(n), Logged::No),
                Request::Kick(index, Some(Fd::Eventfd)),
                Request::Call(index, Some(Fd::Eventfd)),
                Request::Enable(index, Value::Power(0)),
            ]);
        }
        requests.into_iter().map(Message::plain).collect()
    }

    /// The messages by which QEMU starts to migrate a guest with one pair.
    pub(super) fn migrate(span: Span, logged: Logged) -> Vec<Message> {
        let addr = |n| Request::Addr(Index::Good(n), Place::Page(n), logged);
        let requests =
            [Request::LogBase(span, LogFile::Own), Request::SetFeatures(Bits::Offered), addr(0), addr(1)];
        requests.into_iter().map(Message::plain).collect()
    }

    /// Bytes sent before the rest.
    pub(super) fn cut(&self) -> usize {
        self.cut.map_or(usize::MAX, usize::from)
    }

    /// Request code, flags and body. `guest_addresses`: rings are at guest addresses.
    pub(super) fn encode(&self, offers: Offers, guest_addresses: bool) -> (u32, u32, Vec<u8>) {
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
            Request::Addr(index, place, logged) => {
                let (flags, [desc, used, avail]) = match place {
                    Place::Page(n) => {
                        let user = if guest_addresses { 0 } else { 0x7000_0000 };
                        let at = user + Place::of_page(*n);
                        (0, [at, at + 0x400, at + 0x200])
                    }
                    Place::Any(addresses, flags) => (u32::from(*flags), *addresses),
                };
                let log = place.log(*logged);
                let flags = flags & !1 | u32::from(log.is_some());
                (9, [halves(index.get(), flags), words(&[desc, used, avail, log.unwrap_or(0)])].concat())
            }
            Request::Kick(index, fd) => (12, vring(index, fd)),
            Request::Call(index, fd) => (13, vring(index, fd)),
            Request::Err(index, fd) => (14, vring(index, fd)),
            Request::GetConfig { offset, size, room } => {
                let head = [halves((*offset).into(), (*size).into()), vec![0; 4]].concat();
                (24, [head, vec![0; (*room).into()]].concat())
            }
            Request::SetConfig(room) => (25, vec![0; 12 + usize::from(*room)]),
            Request::LogBase(span, _) => (6, words(&span.words())),
            Request::LogFd(_) => (7, vec![]),
            Request::Rarp(mac) => (19, words(&[*mac])),
            Request::Other { request, body, .. } => {
                (Message::other_code(*request), body[..body.len().min(300)].to_vec())
            }
        };
        if let Some((bytes, _)) = self.surplus() {
            body.resize(body.len().saturating_add_signed(bytes.into()), 0);
        }
        (code, 1 | if self.need_reply { 8 } else { 0 }, body)
    }

    /// Returns the code of another request: not of a protocol feature unknown to the model.
    pub(super) fn other_code(request: u8) -> u32 {
        if request % 48 == 16 { 0 } else { (request % 48).into() }
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
            Request::Kick(_, fd) | Request::Call(_, fd) | Request::Err(_, fd) | Request::LogFd(fd) => {
                fd.iter().copied().collect()
            }
            Request::LogBase(_, file) => file.fd().into_iter().collect(),
            Request::Other { fds, .. } => fds[..fds.len().min(9)].to_vec(),
            _ => Vec::new(),
        };
        if let Some((_, surplus)) = self.surplus() {
            fds.extend((0..surplus).map(|_| Fd::Eventfd));
        }
        fds
    }

    pub(super) fn surplus(&self) -> Option<(i8, u8)> {
        self.surplus.map(|(bytes, fds)| (bytes, fds % 3)).filter(|surplus| *surplus != (0, 0))
    }
}
