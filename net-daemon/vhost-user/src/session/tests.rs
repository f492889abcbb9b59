//! Tests of the session by its messages, without a socket. The scripted front-end of `protocol-tests` tests
//! running rings.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use volt_net::config::Mac;
use volt_net::device::DeviceOptions;
use volt_net::port::socket::SocketPort;
use volt_net::state::{Exporter, Importer};

use super::*;

const NEED_REPLY: u32 = 8;

struct Peer {
    device: NetDevice,
    session: Session,
}

impl Peer {
    fn new(pairs: u16) -> Peer {
        let sockets = (0..pairs).map(|_| UnixDatagram::pair().unwrap().0.into()).collect();
        let wake = Arc::new(Notifier::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap()).unwrap());
        let options = DeviceOptions { pairs, mac: Mac([2, 0, 0, 0, 0, 1]), mtu: None };
        let device = NetDevice::new(Box::new(SocketPort::new(sockets).unwrap()), options, wake).unwrap();
        let session = Session::new(&device, 256);
        Peer { device, session }
    }

    fn send(
        &mut self,
        request: FrontendReq,
        flags: u32,
        body: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Vec<u8>>, SessionError> {
        let words = [request.into(), flags | 1, body.len() as u32];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let header = Header::decode(bytes.try_into().unwrap()).unwrap();
        self.session.handle(Message { header, body: body.to_vec(), fds }, &mut self.device)
    }

    /// Returns the status that answers a request with NEED_REPLY.
    fn status(&mut self, request: FrontendReq, body: &[u8], fds: Vec<OwnedFd>) -> u8 {
        let reply = self.send(request, NEED_REPLY, body, fds).unwrap().expect("an acknowledgement");
        reply[12]
    }

    fn negotiate(&mut self) {
        let bits = (Protocol::REPLY_ACK | Protocol::CONFIGURE_MEM_SLOTS).bits();
        self.send(FrontendReq::SET_PROTOCOL_FEATURES, 0, &bits.to_ne_bytes(), Vec::new()).unwrap();
    }

    fn regions(&self) -> usize {
        self.session.memory.as_ref().map_or(0, |memory| memory.size().1)
    }
}

fn memfd() -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 0x4000).unwrap();
    fd
}

/// The body of ADD_MEM_REG and REM_MEM_REG.
fn region(guest: u64, offset: u64) -> Vec<u8> {
    [0, guest, 0x1000, guest + 0x10_0000, offset].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn a_region_that_was_added_twice_is_there_until_it_was_removed_twice() {
    let mut peer = Peer::new(2);
    peer.negotiate();
    let fd = memfd();
    let again = || vec![fd.as_fd().try_clone_to_owned().unwrap()];
    for _ in 0..2 {
        assert_eq!(peer.status(FrontendReq::ADD_MEM_REG, &region(0, 0), again()), 0);
        assert_eq!(peer.regions(), 1);
    }
    // A different region at the same place is not a repetition.
    let other: Vec<u8> = [0, 0, 0x2000, 0x10_0000, 0u64].iter().flat_map(|w| w.to_ne_bytes()).collect();
    assert_eq!(peer.status(FrontendReq::ADD_MEM_REG, &other, again()), 1);
    for left in [1, 0] {
        // Some front-ends omit the offset.
        assert_eq!(peer.status(FrontendReq::REM_MEM_REG, &region(0, 0x1000), Vec::new()), 0);
        assert_eq!(peer.regions(), left);
    }
    assert_eq!(peer.status(FrontendReq::REM_MEM_REG, &region(0, 0), Vec::new()), 1);
}

#[test]
fn repetitions_are_bounded_and_forgotten_with_the_table() {
    let mut peer = Peer::new(1);
    peer.negotiate();
    let fd = memfd();
    let again = || vec![fd.as_fd().try_clone_to_owned().unwrap()];
    for _ in 0..=MAX_SLOTS {
        assert_eq!(peer.status(FrontendReq::ADD_MEM_REG, &region(0, 0), again()), 0);
    }
    assert_eq!(peer.status(FrontendReq::ADD_MEM_REG, &region(0, 0), again()), 1);
    let table: Vec<u8> = [1, 0, 0x1000, 0x10_0000, 0u64].iter().flat_map(|w| w.to_ne_bytes()).collect();
    assert_eq!(peer.status(FrontendReq::SET_MEM_TABLE, &table, again()), 0);
    assert_eq!(peer.status(FrontendReq::REM_MEM_REG, &region(0, 0), Vec::new()), 0);
    assert_eq!(peer.regions(), 0);
}

#[test]
fn what_cannot_be_answered_ends_the_connection_by_name() {
    let mut peer = Peer::new(1);
    let num: Vec<u8> = [0u32, 100].iter().flat_map(|word| word.to_ne_bytes()).collect();
    // NEED_REPLY has an effect only after REPLY_ACK was negotiated.
    for flags in [0, NEED_REPLY] {
        let error = peer.send(FrontendReq::SET_VRING_NUM, flags, &num, Vec::new()).unwrap_err();
        let text = volt_virtio::error_chain(&error);
        assert!(text.starts_with("SET_VRING_NUM: ring size 100 "), "{text}");
    }
    peer.negotiate();
    assert_eq!(peer.status(FrontendReq::SET_VRING_NUM, &num, Vec::new()), 1);
    let base: Vec<u8> = [7u32, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let error = peer.send(FrontendReq::GET_VRING_BASE, NEED_REPLY, &base, Vec::new()).unwrap_err();
    assert!(volt_virtio::error_chain(&error).contains("there is no vring 7"));
}

/// UML's SET_PROTOCOL_FEATURES asks for the answer that it negotiates, and waits for it.
#[test]
fn an_answer_is_due_by_what_was_or_is_negotiated() {
    let mut peer = Peer::new(1);
    let set = |bits: Protocol| bits.bits().to_ne_bytes();
    let request = FrontendReq::SET_PROTOCOL_FEATURES;
    assert_eq!(peer.status(request, &set(Protocol::REPLY_ACK | Protocol::MQ), Vec::new()), 0);
    assert_eq!(peer.status(request, &set(Protocol::MQ), Vec::new()), 0);
    assert!(peer.send(FrontendReq::SET_OWNER, NEED_REPLY, &[], Vec::new()).unwrap().is_none());
    // A refused message negotiates nothing, and its front-end must not wait forever.
    let unoffered = set(Protocol::REPLY_ACK | Protocol::INFLIGHT_SHMFD);
    let error = peer.send(request, NEED_REPLY, &unoffered, Vec::new()).unwrap_err();
    assert!(volt_virtio::error_chain(&error).contains("not offered"), "{error:?}");
}

/// The descriptor for requests of the back-end is kept until another comes or BACKEND_REQ is turned off.
#[test]
fn the_back_ends_channel_is_taken_and_given_up() {
    let mut peer = Peer::new(1);
    let negotiate = |peer: &mut Peer, bits: Protocol| {
        peer.send(FrontendReq::SET_PROTOCOL_FEATURES, 0, &bits.bits().to_ne_bytes(), Vec::new()).unwrap();
    };
    negotiate(&mut peer, Protocol::REPLY_ACK | Protocol::BACKEND_REQ | Protocol::CONFIG);
    let request = FrontendReq::SET_BACKEND_REQ_FD;
    assert_eq!(peer.status(request, &[], Vec::new()), 1, "no descriptor");
    assert_eq!(peer.status(request, &[], vec![memfd()]), 1, "no socket");
    assert!(!peer.session.tells_of_link());
    let (first, second) = (UnixDatagram::pair().unwrap(), UnixDatagram::pair().unwrap());
    assert_eq!(peer.status(request, &[], vec![first.0.into()]), 0);
    assert_eq!(peer.status(request, &[], vec![second.0.into()]), 0);
    assert!(first.1.send(&[0]).is_err(), "the first one is closed");
    assert!(second.1.send(&[0]).is_ok());
    assert_eq!(peer.status(FrontendReq::RESET_DEVICE, &[], Vec::new()), 0);
    assert!(peer.session.tells_of_link(), "a reset of the device is none of the connection");
    negotiate(&mut peer, Protocol::REPLY_ACK | Protocol::CONFIG);
    assert!(second.1.send(&[0]).is_err(), "closed");
}

#[test]
fn what_changes_nothing_does_not_end_the_connection() {
    let mut peer = Peer::new(1);
    assert!(peer.send(FrontendReq::SEND_RARP, 0, &[0; 8], Vec::new()).unwrap().is_none());
    let legacy = Features::NET_CSUM.bits().to_ne_bytes();
    assert!(peer.send(FrontendReq::SET_FEATURES, 0, &legacy, Vec::new()).unwrap().is_none());
    assert!(peer.session.acked.is_none());
    peer.negotiate();
    assert_eq!(peer.status(FrontendReq::SEND_RARP, &[0; 8], Vec::new()), 1);
    assert_eq!(peer.status(FrontendReq::SET_FEATURES, &legacy, Vec::new()), 1);
}

/// LOG_ALL is no feature of a driver: beside it, the driver's own are judged as always.
#[test]
fn a_legacy_driver_is_refused_during_a_migration_too() {
    let mut peer = Peer::new(1);
    let bits = (Protocol::REPLY_ACK | Protocol::LOG_SHMFD).bits().to_ne_bytes();
    peer.send(FrontendReq::SET_PROTOCOL_FEATURES, 0, &bits, Vec::new()).unwrap();
    let features = |features: Features| features.bits().to_ne_bytes();
    for legacy in [Features::VHOST_LOG_ALL, Features::VHOST_LOG_ALL | Features::NET_CSUM] {
        assert_eq!(peer.status(FrontendReq::SET_FEATURES, &features(legacy), Vec::new()), 1, "{legacy:?}");
        assert!(peer.session.acked.is_none());
    }
    // Such a driver ends the logging. The log must not restrict the memory any more.
    let logged = features(Features::VHOST_LOG_ALL | Features::VERSION_1);
    let log: Vec<u8> = [1, 0u64].iter().flat_map(|word| word.to_ne_bytes()).collect();
    peer.send(FrontendReq::SET_LOG_BASE, 0, &log, vec![memfd()]).unwrap();
    assert_eq!(peer.status(FrontendReq::SET_FEATURES, &logged, Vec::new()), 0);
    assert_eq!(peer.status(FrontendReq::ADD_MEM_REG, &region(0x10_0000, 0), vec![memfd()]), 1);
    assert_eq!(peer.status(FrontendReq::SET_FEATURES, &features(Features::NET_CSUM), Vec::new()), 1);
    assert_eq!(peer.status(FrontendReq::ADD_MEM_REG, &region(0x10_0000, 0), vec![memfd()]), 0);
}

/// A front-end that shares no memory can start its vrings, but none is served.
#[test]
fn vrings_without_memory_are_stopped() {
    let mut peer = Peer::new(1);
    let features = Features::VERSION_1.bits().to_ne_bytes();
    peer.send(FrontendReq::SET_FEATURES, 0, &features, Vec::new()).unwrap();
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    peer.send(FrontendReq::SET_VRING_KICK, 0, &0u64.to_ne_bytes(), vec![kick]).unwrap();
    assert_eq!(peer.session.vring_states().next(), Some(VringStanding::Stopped));
    peer.send(FrontendReq::ADD_MEM_REG, 0, &region(0, 0), vec![memfd()]).unwrap();
    assert_eq!(peer.session.vring_states().next(), Some(VringStanding::Running));
}

#[test]
fn a_reset_keeps_what_was_negotiated_for_the_connection() {
    let mut peer = Peer::new(1);
    peer.negotiate();
    let enable: Vec<u8> = [0u32, 1].iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert_eq!(peer.status(FrontendReq::SET_VRING_ENABLE, &enable, Vec::new()), 0);
    assert!(peer.session.vrings[0].enabled);
    peer.status(FrontendReq::ADD_MEM_REG, &region(0, 0), vec![memfd()]);
    assert_eq!(peer.status(FrontendReq::RESET_DEVICE, &[], Vec::new()), 0);
    assert!(!peer.session.vrings[0].enabled);
    assert_eq!(peer.regions(), 1);
}

/// A state of a program without a channel for requests of the back-end can be imported.
#[test]
fn states_from_before_the_back_ends_channel_are_read() {
    let mut peer = Peer::new(1);
    peer.negotiate();
    let mut state = serde_json::to_value(peer.session.export(&mut Exporter::default())).unwrap();
    for field in ["backend", "told_down"] {
        assert!(state.as_object_mut().unwrap().remove(field).is_some(), "{field} is in {state}");
    }
    let state = serde_json::from_value(state).unwrap();
    let session = Session::import(&state, &mut Importer::default(), &peer.device, 256).unwrap();
    assert!(session.protocol.contains(Protocol::REPLY_ACK) && !session.tells_of_link());
}

/// A front-end may change its protocol features after its features, and so what it is offered. Another
/// process can continue nevertheless.
#[test]
fn a_session_can_be_continued_whatever_is_negotiated_last() {
    let mut peer = Peer::new(1);
    let set = |peer: &mut Peer, request, bits: u64| {
        peer.send(request, 0, &bits.to_ne_bytes(), Vec::new()).unwrap();
    };
    set(&mut peer, FrontendReq::SET_PROTOCOL_FEATURES, Protocol::MQ.bits());
    let features = Features::VERSION_1 | Features::NET_GUEST_ANNOUNCE;
    set(&mut peer, FrontendReq::SET_FEATURES, features.bits());
    set(&mut peer, FrontendReq::SET_PROTOCOL_FEATURES, Protocol::CONFIG.bits());
    let state = peer.session.export(&mut Exporter::default());
    let session = Session::import(&state, &mut Importer::default(), &peer.device, 256).unwrap();
    assert_eq!(session.acked, Some(features));
}

/// A log that its owner takes away stops the rings, and ends neither the session nor its successor.
#[test]
fn a_log_that_cannot_be_mapped_again_stops_the_rings() {
    let mut peer = Peer::new(1);
    let bits = (Protocol::REPLY_ACK | Protocol::LOG_SHMFD).bits();
    peer.send(FrontendReq::SET_PROTOCOL_FEATURES, 0, &bits.to_ne_bytes(), Vec::new()).unwrap();
    let file = memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, 0x1000).unwrap();
    let body: Vec<u8> = [0x1000u64, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let log = vec![file.try_clone().unwrap()];
    peer.send(FrontendReq::SET_LOG_BASE, 0, &body, log).unwrap().expect("a reply");
    let features = (Features::VERSION_1 | Features::VHOST_LOG_ALL).bits().to_ne_bytes();
    assert_eq!(peer.status(FrontendReq::SET_FEATURES, &features, Vec::new()), 0);
    assert!(peer.session.dirty_logging());
    rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::FUTURE_WRITE).unwrap();
    let mut out = Exporter::default();
    let state = peer.session.export(&mut out);
    let fds = out.into_fds().into_iter().map(|(id, fd)| (id, fd.try_clone_to_owned().unwrap())).collect();
    let session = Session::import(&state, &mut Importer::new(fds), &peer.device, 256).unwrap();
    assert!(!session.dirty_logging() && session.lacks_log());
}
