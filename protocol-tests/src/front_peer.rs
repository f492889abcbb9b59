//! Front-ends to calibrate `volt-conform frontend`: each has a guest that echoes, and reconnects for ever.
//!
//! [`scripted`] is the scripted front-end, correct or with one [`FrontFault`]; [`by_crate`] has one on
//! `vhost`'s `Frontend`, an independent implementation of the protocol.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::frame::NetHeader;
use crate::frontend::Frontend;
use crate::nic::{Nic, Queue};
use crate::session::{SessionError, Setup};
use crate::wire::{HEADER_LEN, WireError, feature, flags, longs, protocol, request, words};

pub mod by_crate;

/// Time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);
/// Time limit for an answer.
const ANSWER: Duration = Duration::from_secs(3);

/// Declares the faults: variant, name, the checks that catch it, the fault in words.
macro_rules! front_faults {
    ($($variant:ident, $name:literal, $check:literal, $what:literal;)*) => {
        /// One fault of a front-end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FrontFault { $(#[doc = $what] $variant),* }

        impl FrontFault {
            /// All faults.
            pub const ALL: &[FrontFault] = &[$(FrontFault::$variant),*];

            /// Returns the name that selects it.
            pub fn name(self) -> &'static str {
                match self { $(FrontFault::$variant => $name),* }
            }

            /// Returns the fault in words.
            pub fn what(self) -> &'static str {
                match self { $(FrontFault::$variant => $what),* }
            }

            /// Returns the checks that catch it, separated by commas.
            pub fn caught_by(self) -> &'static str {
                match self { $(FrontFault::$variant => $check),* }
            }
        }
    };
}

front_faults! {
    NoOwner, "no-owner", "conversation/owner", "Sends no SET_OWNER.";
    ReplyFlag, "reply-flag", "conversation/headers", "Sets the reply flag of a request.";
    BodyLong, "body-long", "conversation/body-lengths", "Sends a body with SET_OWNER.";
    Unoffered, "unoffered", "conversation/features-offered", "Acknowledges a feature that was not offered.";
    ProtocolUnoffered, "protocol-unoffered", "conversation/protocol-offered",
        "Acknowledges a protocol feature that was not offered.";
    EarlyNeedReply, "early-need-reply", "conversation/need-reply, traffic/without-reply-ack",
        "Wants replies before REPLY_ACK was negotiated.";
    ConfigUnasked, "config-unasked", "conversation/requests-negotiated, traffic/without-config",
        "Reads the configuration without CONFIG.";
    RegionLong, "region-long", "conversation/memory-files", "Shares more memory than its file has.";
    KickBeforeBase, "kick-before-base", "conversation/vring-complete", "Starts a ring without a base.";
    SizeOdd, "size-odd", "conversation/vring-size", "Has a ring of 100 entries.";
    AddressFar, "address-far", "conversation/vring-addresses", "Has a used ring beyond its memory.";
    VringFar, "vring-far", "conversation/vring-index", "Enables an unknown vring.";
    KickFile, "kick-file", "conversation/kick-descriptors", "Sends a regular file as kick descriptor.";
    NoEnable, "no-enable", "conversation/enable", "Never enables its rings.";
    Deaf, "deaf", "requests/config-change", "Ignores its back-end's requests.";
    Truncates, "truncates", "traffic/content", "The last byte of an echo is lost.";
    Repeats, "repeats", "traffic/content", "Frames are echoed twice.";
    Forgets, "forgets", "losses/left", "Does not share its memory again with the next back-end.";
    BaseZero, "base-zero", "losses/base", "Sends base 0 for used rings.";
    GivesUp, "gives-up", "losses/at-memory", "Ends when its back-end dies at the memory table.";
    WaitsForEver, "waits-for-ever", "losses/silence", "Waits for an answer without a limit.";
    OneRead, "one-read", "replies/split, replies/version-2", "Treats the bytes of one read as an answer.";
    AnyReply, "any-reply", "replies/other-request, replies/no-flag, replies/long, replies/short",
        "Accepts an answer to another request.";
    AnyStatus, "any-status", "replies/refused", "Ignores the status of a request.";
    AnyLength, "any-length", "replies/huge", "Waits for any length that a header claims.";
    NoDescriptor, "no-descriptor", "conversation/memory-descriptors", "Shares memory without its descriptor.";
    SlotsUnasked, "slots-unasked", "traffic/without-slots",
        "Shares memory by ADD_MEM_REG without CONFIGURE_MEM_SLOTS.";
    QueuesUnasked, "queues-unasked", "traffic/without-mq", "Asks for the number of queues without MQ.";
    ProtocolUnasked, "protocol-unasked", "traffic/without-protocol",
        "Asks for protocol features that were not offered.";
    WantsMore, "wants-more", "traffic/without-options", "Serves no guest without EVENT_IDX.";
    EndsToo, "ends-too",
        "losses/at-get-features, losses/at-protocol-features, losses/at-set-features, losses/at-vring-num, \
         losses/at-kick, losses/at-enable", "Ends with its back-end.";
    Impatient, "impatient", "replies/late", "Waits 50 milliseconds for an answer.";
    KeepsFeatures, "keeps-features", "features/fewer", "Acknowledges features that are no longer offered.";
}

/// Runs a scripted front-end at `path`, correct or with one fault; returns only because of a fault.
///
/// # Errors
///
/// Returns an error if the system provides no memory or descriptor.
pub fn scripted(path: &Path, fault: Option<FrontFault>) -> Result<(), SessionError> {
    let mut peer: Option<Scripted> = None;
    loop {
        let Ok(socket) = UnixStream::connect(path) else {
            std::thread::sleep(RETRY);
            continue;
        };
        let mut frontend = Frontend::new(socket);
        frontend.channel().set_patience(match fault {
            Some(FrontFault::WaitsForEver) => Duration::from_secs(1 << 30),
            Some(FrontFault::Impatient) => Duration::from_millis(50),
            _ => ANSWER,
        });
        let first = peer.is_none();
        let result = Scripted::meet(&mut peer, &mut frontend, fault, first);
        let heard = result.err().map(|error| error.to_string()).unwrap_or_default();
        let gives_up = fault == Some(FrontFault::GivesUp) && heard.contains("ADD_MEM_REG");
        if gives_up || fault == Some(FrontFault::EndsToo) {
            return Ok(());
        }
        // Tries a back-end that refuses again later.
        std::thread::sleep(RETRY);
    }
}

struct Scripted {
    nic: Nic,
    acked: u64,
}

impl Scripted {
    /// Runs one connection, from its first message to its end.
    fn meet(
        peer: &mut Option<Scripted>,
        frontend: &mut Frontend,
        fault: Option<FrontFault>,
        first: bool,
    ) -> Result<(), SessionError> {
        let has = |wanted: FrontFault| fault == Some(wanted);
        let offered = ask_features(frontend, fault)?;
        let wanted = feature::VERSION_1 | feature::PROTOCOL_FEATURES | feature::EVENT_IDX;
        let acked = peer.as_ref().map_or(offered & wanted, |peer| peer.acked);
        let lacking = if has(FrontFault::WantsMore) { wanted & !offered } else { acked & !offered };
        if lacking != 0 && !has(FrontFault::KeepsFeatures) {
            return Err(WireError::Unexpected("features are missing".to_owned()).into());
        }
        let peer = match peer {
            Some(peer) => peer,
            None => {
                let mut nic = Setup { size: 16, ..Setup::default() }.nic(acked)?;
                nic.rx(0).fill(16, &[2048])?;
                peer.insert(Scripted { nic, acked })
            }
        };
        let protocol = negotiate(frontend, acked, fault)?;
        let requests = give_channel(frontend, protocol)?.filter(|_| !has(FrontFault::Deaf));
        if !has(FrontFault::Forgets) || first {
            share(frontend, &peer.nic, protocol, fault)?;
        }
        for queue in &peer.nic.queues {
            offer(frontend, &peer.nic, queue, fault)?;
        }
        let enables = acked & feature::PROTOCOL_FEATURES != 0 && !has(FrontFault::NoEnable);
        for vring in if enables { 0..2 } else { 0..0 } {
            frontend.tell(request::SET_VRING_ENABLE, &words(&[vring, 1]), &[])?;
        }
        if has(FrontFault::VringFar) {
            frontend.tell(request::SET_VRING_ENABLE, &words(&[9, 1]), &[])?;
        }
        peer.nic.queues.iter_mut().try_for_each(Queue::kick_always)?;
        peer.echo(frontend, requests.as_ref(), fault)
    }

    /// Echoes until the back-end disconnects, and reads the configuration at each of its requests.
    fn echo(
        &mut self,
        frontend: &mut Frontend,
        mut requests: Option<&UnixStream>,
        fault: Option<FrontFault>,
    ) -> Result<(), SessionError> {
        loop {
            let call = self.nic.rx(0).call.try_clone().map_err(WireError::from)?;
            let mut fds = vec![
                PollFd::new(&call, PollFlags::IN),
                PollFd::new(frontend.channel().socket(), PollFlags::IN | PollFlags::RDHUP),
            ];
            fds.extend(requests.map(|requests| PollFd::new(requests, PollFlags::IN)));
            rustix::event::poll(&mut fds, None).map_err(WireError::from)?;
            let came = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            let (ended, asked) = (came(1), came(2));
            if ended {
                return Err(WireError::Closed("while it served").into());
            }
            if let Some(channel) = requests.filter(|_| asked) {
                match rustix::io::read(channel, &mut [0; HEADER_LEN]).map_err(WireError::from)? {
                    0 => requests = None,
                    _ => drop(frontend.get_config(0, 12)?),
                }
            }
            self.nic.rx(0).drain_call();
            while let Ok(frame) = self.nic.rx(0).recv(Duration::from_millis(1)) {
                self.nic.rx(0).kick()?;
                let len = frame.bytes.len() - usize::from(fault == Some(FrontFault::Truncates));
                for _ in 0..if fault == Some(FrontFault::Repeats) { 2 } else { 1 } {
                    let used =
                        self.nic.tx(0).send_cut(&NetHeader::default(), &frame.bytes[..len], &[], ANSWER)?;
                    self.nic.tx(0).parts(used);
                }
            }
        }
    }
}

/// Sends SET_OWNER and GET_FEATURES.
fn ask_features(frontend: &mut Frontend, fault: Option<FrontFault>) -> Result<u64, WireError> {
    let has = |wanted: FrontFault| fault == Some(wanted);
    if has(FrontFault::BodyLong) {
        frontend.tell(request::SET_OWNER, &longs(&[0]), &[])?;
    } else if !has(FrontFault::NoOwner) {
        frontend.tell(request::SET_OWNER, &[], &[])?;
    }
    if has(FrontFault::AnyReply) || has(FrontFault::OneRead) || has(FrontFault::AnyLength) {
        frontend.channel().send(request::GET_FEATURES, 0, &[], &[])?;
        return careless_answer(frontend, fault);
    }
    let flag = if has(FrontFault::EarlyNeedReply) {
        flags::NEED_REPLY
    } else if has(FrontFault::ReplyFlag) {
        flags::REPLY
    } else {
        0
    };
    frontend.channel().send(request::GET_FEATURES, flag, &[], &[])?;
    let offered = frontend.channel().recv_reply(request::GET_FEATURES)?.u64()?;
    if has(FrontFault::ProtocolUnasked) {
        frontend.get_protocol_features()?;
    }
    Ok(offered)
}

/// Receives the answer to GET_FEATURES with a fault.
fn careless_answer(frontend: &mut Frontend, fault: Option<FrontFault>) -> Result<u64, WireError> {
    let padded = |bytes: &[u8]| {
        u64::from_le_bytes(std::array::from_fn(|at| bytes.get(at).copied().unwrap_or_default()))
    };
    if fault == Some(FrontFault::AnyReply) {
        let mut body = frontend.channel().recv()?.body;
        body.resize(body.len().max(8), 0xff);
        return Ok(padded(&body));
    }
    let mut bytes = [0; 20];
    let mut len = rustix::io::read(frontend.channel().socket(), &mut bytes)?;
    let claimed = 12 + padded(&bytes[8..12]);
    while fault == Some(FrontFault::AnyLength) && (len as u64) < claimed {
        match rustix::io::read(frontend.channel().socket(), &mut [0; 4096])? {
            0 => break,
            more => len += more,
        }
    }
    match len {
        20 => Ok(padded(&bytes[12..])),
        _ => Err(WireError::Closed("in an answer")),
    }
}

/// Negotiates protocol features and features; returns whether requests are acknowledged.
fn negotiate(frontend: &mut Frontend, acked: u64, fault: Option<FrontFault>) -> Result<u64, WireError> {
    let mut both = 0;
    if acked & feature::PROTOCOL_FEATURES != 0 {
        let mut wanted = protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS;
        if fault != Some(FrontFault::ConfigUnasked) {
            wanted |= protocol::CONFIG | protocol::BACKEND_REQ;
        }
        both = frontend.get_protocol_features()? & wanted;
        let surplus = if fault == Some(FrontFault::ProtocolUnoffered) { protocol::RARP } else { 0 };
        // Like User-mode Linux, from the message that negotiates it.
        frontend.want_replies(both & protocol::REPLY_ACK != 0);
        frontend.set_protocol_features(both | surplus)?;
    }
    let surplus = if fault == Some(FrontFault::Unoffered) { feature::CSUM } else { 0 };
    frontend.set_features(acked | surplus)?;
    if fault == Some(FrontFault::ConfigUnasked) {
        frontend.get_config(0, 6)?;
    }
    if fault == Some(FrontFault::QueuesUnasked) {
        frontend.get_queue_num()?;
    }
    Ok(both)
}

/// Provides a channel for the back-end's own requests, if they were negotiated.
fn give_channel(frontend: &Frontend, protocol: u64) -> Result<Option<UnixStream>, WireError> {
    if protocol & protocol::BACKEND_REQ == 0 {
        return Ok(None);
    }
    let (mine, theirs) = UnixStream::pair()?;
    frontend.set_backend_req_fd(theirs)?;
    Ok(Some(mine))
}

/// Shares the guest's memory, region by region if the back-end can.
fn share(
    frontend: &mut Frontend,
    nic: &Nic,
    protocol: u64,
    fault: Option<FrontFault>,
) -> Result<(), WireError> {
    if fault == Some(FrontFault::AnyStatus) {
        let body = crate::frontend::mem_table(&nic.mem.specs());
        let _ = frontend.tell_acked(request::SET_MEM_TABLE, &body, &nic.mem.fds());
        return Ok(());
    }
    let mut specs = nic.mem.specs();
    if fault == Some(FrontFault::RegionLong) {
        specs.iter_mut().for_each(|spec| spec.size += 0x1000);
    }
    if protocol & protocol::CONFIGURE_MEM_SLOTS == 0 && fault != Some(FrontFault::SlotsUnasked) {
        return frontend.tell(request::SET_MEM_TABLE, &crate::frontend::mem_table(&specs), &nic.mem.fds());
    }
    for (spec, fd) in specs.iter().zip(nic.mem.fds()) {
        let fds = if fault == Some(FrontFault::NoDescriptor) { vec![] } else { vec![fd] };
        let told = frontend.tell(request::ADD_MEM_REG, &crate::frontend::single_region(spec), &fds);
        told.map_err(|error| WireError::Unexpected(format!("ADD_MEM_REG: {error}")))?;
    }
    Ok(())
}

/// Sends the messages of one vring.
fn offer(
    frontend: &mut Frontend,
    nic: &Nic,
    queue: &Queue,
    fault: Option<FrontFault>,
) -> Result<(), WireError> {
    let has = |wanted: FrontFault| fault == Some(wanted);
    let (vring, layout) = (queue.vring, queue.ring.layout());
    if has(FrontFault::SizeOdd) && vring == 0 {
        let _ = frontend.set_vring_num(vring, 100);
    }
    frontend.set_vring_num(vring, layout.size.into())?;
    if !has(FrontFault::KickBeforeBase) {
        let base = if has(FrontFault::BaseZero) { 0 } else { queue.ring.used_idx() };
        frontend.set_vring_base(vring, base.into())?;
    }
    let user = |address| nic.mem.user(address);
    if has(FrontFault::AddressFar) && vring == 0 {
        frontend.set_vring_addr_raw(vring, 0, user(layout.desc), 0x10, user(layout.avail))?;
    }
    frontend.set_vring_addr(vring, &nic.mem, &layout)?;
    frontend.set_vring_fd(request::SET_VRING_CALL, vring, Some(&queue.call))?;
    if has(FrontFault::KickFile) && vring == 0 {
        let null: OwnedFd = std::fs::File::open("/dev/null")?.into();
        frontend.set_vring_fd(request::SET_VRING_KICK, vring, Some(&null))?;
    }
    frontend.set_vring_fd(request::SET_VRING_KICK, vring, Some(&queue.kick))
}
