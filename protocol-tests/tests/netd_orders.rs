//! volt-netd under the message orders of real front-ends. Each script ends by comparing frames both ways.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use protocol_tests::frame::numbered;
use protocol_tests::frontend::{Frontend, mem_table};
use protocol_tests::nic::Nic;
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::session::{Session, Setup, negotiate, offer_vring};
use protocol_tests::wire::{encode, feature, flags, longs, protocol, readable, request, words};

/// Returns a session whose messages the script has sent itself.
fn session(frontend: Frontend, nic: Nic) -> Session {
    let mut session = Session { frontend, nic, protocol: 0 };
    session.rx(0).fill(64, &[2048]).expect("receive buffers");
    session
}

/// QEMU 7.2 and 11.1 enable vring 0 with NEED_REPLY before any SET_FEATURES, and stop with ENABLE 0 and
/// GET_VRING_BASE. Then the guest's driver starts again.
#[test]
fn qemu() {
    let Some(mut rig) = Rig::new("qemu", &[]) else { return };
    let mut frontend = rig.connect();
    let offered = frontend.get_features().expect("features");
    let protocol_offered = frontend.get_protocol_features().expect("protocol features");
    // Without CONFIG: QEMU serves the configuration space of network devices itself.
    let wanted = protocol::MQ | protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIGURE_MEM_SLOTS;
    let acked = protocol_offered & wanted;
    assert_eq!(acked, wanted);
    frontend.set_protocol_features(acked).expect("protocol features");
    assert_eq!(frontend.get_queue_num().expect("queues"), 2);
    assert!(frontend.get_max_mem_slots().expect("slots") >= 8);
    let (requests, channel) = UnixStream::pair().expect("a socket pair");
    frontend.want_replies(true);
    frontend.set_backend_req_fd(channel).expect("the channel");
    frontend.want_replies(false);
    frontend.set_owner().expect("owner");
    // QEMU serves the control queue too, so its guest can announce itself after a migration.
    let again = frontend.get_features().expect("features again");
    assert_eq!(again, offered | feature::GUEST_ANNOUNCE);
    assert_eq!(offered & feature::GUEST_ANNOUNCE, 0);
    let features = again & (Setup::default().features | feature::VERSION_1);
    let mut nic = Setup::default().nic(features).expect("a card");
    for queue in &nic.queues {
        frontend.set_vring_fd(request::SET_VRING_CALL, queue.vring, Some(&queue.call)).expect("early call");
        let err = protocol_tests::nic::eventfd().expect("an eventfd");
        frontend.set_vring_fd(request::SET_VRING_ERR, queue.vring, Some(&err)).expect("early err");
    }
    let status = frontend.tell_acked(request::SET_VRING_ENABLE, &words(&[0, 1]), &[]).expect("an answer");
    assert_eq!(status, 0, "the enable before SET_FEATURES is acknowledged");
    for round in 0..2 {
        frontend.want_replies(false);
        frontend.set_features(features).expect("features");
        frontend.want_replies(true);
        frontend.set_mem_table(&nic.mem).expect("memory");
        for queue in &nic.queues {
            frontend.set_vring_enable(queue.vring, true).expect("enable before the ring is there");
        }
        for queue in &nic.queues {
            offer_vring(&frontend, &nic.mem, queue, queue.ring.used_idx()).expect("a vring");
        }
        let mut running = session(frontend, nic);
        rig.both_ways(&mut running, 20);
        (frontend, nic) = (running.frontend, running.nic);
        for vring in 0..2 {
            frontend.set_vring_enable(vring, false).expect("disable");
            let base = frontend.get_vring_base(vring).expect("a base");
            assert_eq!(base, u32::from(nic.queues[vring as usize].ring.used_idx()), "round {round}");
        }
        nic = Setup::default().nic(features).expect("a card of the guest's next boot");
    }
    rig.netns.ip("link set dev tap0 down").expect("ip");
    assert!(!readable(&requests, QUIET).expect("the channel"), "a front-end without CONFIG was notified");
}

/// Cloud Hypervisor: protocol features, SET_MEM_TABLE, then per vring NUM, ADDR, BASE, CALL, KICK; ENABLE
/// last, after the kick has been written. Its reconnect sends the used index, or (without IN_ORDER) the
/// available index, which must not be used.
#[test]
fn cloud_hypervisor() {
    let Some(mut rig) = Rig::new("cloud_hypervisor", &[]) else { return };
    let setup = Setup::default();
    let (want, protocol_want) =
        (setup.features | feature::IN_ORDER, protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG);
    let mut nic = None;
    for base_of in ["first", "used", "avail"] {
        let mut frontend = rig.connect();
        let (features, _) = negotiate(&mut frontend, want, protocol_want).expect("negotiation");
        let mut card = nic.take().unwrap_or_else(|| setup.nic(features).expect("a card"));
        frontend.set_mem_table(&card.mem).expect("memory");
        for queue in &card.queues {
            let (vring, layout) = (queue.vring, queue.ring.layout());
            let base = match base_of {
                "avail" => queue.ring.avail_idx(),
                _ => queue.ring.used_idx(),
            };
            frontend.set_vring_num(vring, u32::from(layout.size)).expect("size");
            frontend.set_vring_addr(vring, &card.mem, &layout).expect("addresses");
            frontend.set_vring_base(vring, u32::from(base)).expect("base");
            frontend.set_vring_fd(request::SET_VRING_CALL, vring, Some(&queue.call)).expect("call");
            frontend.set_vring_fd(request::SET_VRING_KICK, vring, Some(&queue.kick)).expect("kick");
        }
        card.queues.iter_mut().for_each(|queue| queue.kick_always().expect("kicked"));
        for vring in 0..2 {
            frontend.set_vring_enable(vring, true).expect("enable");
        }
        let mut running = Session { frontend, nic: card, protocol: 0 };
        if base_of == "first" {
            running.rx(0).fill(64, &[2048]).expect("receive buffers");
        }
        rig.both_ways(&mut running, 100);
        nic = Some(running.nic);
    }
}

/// UML: every request without a reply asks for an answer, also the one that acknowledges REPLY_ACK. The call
/// descriptor is one end of a socket pair. SET_MEM_TABLE has room for two regions and a count of one. The
/// configuration is read from its beginning up to the wanted byte. UML stops with ENABLE 0 and never sends
/// GET_VRING_BASE.
#[test]
fn user_mode_linux() {
    let Some(mut rig) = Rig::new("user_mode_linux", &["--mac", "02:00:00:00:00:99"]) else { return };
    let mut frontend = rig.connect();
    frontend.set_owner().expect("owner");
    let features = frontend.get_features().expect("features") & Setup::default().features;
    let wanted = protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG;
    assert_eq!(frontend.get_protocol_features().expect("protocol features") & wanted, wanted);
    frontend.want_replies(true);
    frontend.set_protocol_features(wanted).expect("an answer to the message that negotiates it");
    let (_requests, channel) = UnixStream::pair().expect("a socket pair");
    frontend.set_backend_req_fd(channel).expect("the channel");
    for len in 1..=6 {
        let read = frontend.get_config(0, len).expect("the beginning");
        assert_eq!(read, [2, 0, 0, 0, 0, 0x99][..len as usize]);
    }
    frontend.set_features(features).expect("features");
    let mut nic = Setup::default().nic(features).expect("a card");
    let mut body = mem_table(&nic.mem.specs());
    body.resize(8 + 2 * 32, 0);
    frontend.tell(request::SET_MEM_TABLE, &body, &nic.mem.fds()).expect("memory");
    for queue in &mut nic.queues {
        let (mine, theirs) = UnixStream::pair().expect("a socket pair");
        mine.set_nonblocking(true).expect("non-blocking");
        queue.call = OwnedFd::from(mine);
        offer_vring(&frontend, &nic.mem, queue, 0).expect("a vring");
        frontend.set_vring_fd(request::SET_VRING_CALL, queue.vring, Some(&theirs)).expect("call");
        frontend.set_vring_enable(queue.vring, true).expect("enable");
    }
    let mut running = session(frontend, nic);
    rig.both_ways(&mut running, 50);
    for vring in 0..2 {
        running.frontend.set_vring_enable(vring, false).expect("disable");
    }
    rig.wire.send(&numbered(9999, 100)).expect("sent");
    assert!(running.rx(0).used(QUIET).is_err(), "a disabled receive ring is not touched");
}

/// A driver with fewer features makes its front-end send a second SET_FEATURES, without bit 30: the rings of
/// this session are then enabled at once.
#[test]
fn features_again_without_protocol_features() {
    let Some(mut rig) = Rig::new("features_again_without_protocol_features", &[]) else { return };
    let setup = Setup { enabled: 0, ..Setup::default() };
    let mut running = Session::start(rig.connect(), &setup).expect("a session");
    running.rx(0).fill(32, &[2048]).expect("receive buffers");
    running.tx(0).offer(&Default::default(), &numbered(1, 80), &[]).expect("offered");
    running.tx(0).kick_always().expect("kicked");
    assert!(running.tx(0).used(QUIET).is_err(), "nothing is processed before the first enable");
    let fewer = running.nic.features & !feature::PROTOCOL_FEATURES;
    running.frontend.set_features(fewer).expect("features again");
    running.tx(0).used(LIMIT).expect("the frame is sent now");
    rig.expect(&numbered(1, 80));
    rig.both_ways(&mut running, 10);
}

/// DPDK's virtio-user: on a reconnect ENABLE comes before SET_FEATURES, and BASE 0 before ADDR.
#[test]
fn dpdk_virtio_user() {
    let Some(mut rig) = Rig::new("dpdk_virtio_user", &[]) else { return };
    let mut nic = None;
    for connection in 0..3 {
        let mut frontend = rig.connect();
        frontend.set_owner().expect("owner");
        let offered = frontend.get_features().expect("features");
        let features = offered & Setup::default().features;
        frontend.get_protocol_features().expect("protocol features");
        let protocol = protocol::MQ | protocol::REPLY_ACK;
        frontend.set_protocol_features(protocol).expect("protocol features");
        let fresh = nic.is_none();
        let card: Nic = nic.take().unwrap_or_else(|| Setup::default().nic(features).expect("a card"));
        for vring in 0..2 {
            frontend.set_vring_enable(vring, true).expect("enable first");
        }
        for queue in &card.queues {
            frontend.set_vring_fd(request::SET_VRING_CALL, queue.vring, Some(&queue.call)).expect("call");
        }
        frontend.set_features(features).expect("features");
        // The only message that asks for an answer.
        frontend.want_replies(true);
        frontend.set_mem_table(&card.mem).expect("memory");
        frontend.want_replies(false);
        for queue in &card.queues {
            frontend.set_vring_num(queue.vring, u32::from(queue.ring.layout().size)).expect("size");
            frontend.set_vring_base(queue.vring, 0).expect("base 0");
            frontend.set_vring_addr(queue.vring, &card.mem, &queue.ring.layout()).expect("addresses");
            frontend.set_vring_fd(request::SET_VRING_KICK, queue.vring, Some(&queue.kick)).expect("kick");
        }
        let mut running = Session { frontend, nic: card, protocol: 0 };
        if fresh {
            running.rx(0).fill(64, &[2048]).expect("receive buffers");
        }
        rig.both_ways(&mut running, 30);
        assert_eq!(running.tx(0).ring.used_idx(), 30 * (connection + 1), "nothing is lost or sent twice");
        nic = Some(running.nic);
    }
}

/// Messages may arrive in any pieces, and several at once; descriptors arrive with the first byte.
#[test]
fn split_and_coalesced_messages() {
    let Some(mut rig) = Rig::new("split_and_coalesced_messages", &[]) else { return };
    let mut frontend = rig.connect();
    let (features, _) =
        negotiate(&mut frontend, Setup::default().features, protocol::REPLY_ACK).expect("negotiation");
    let nic = Setup::default().nic(features).expect("a card");
    let table = encode(request::SET_MEM_TABLE, flags::NEED_REPLY, &mem_table(&nic.mem.specs()));
    let pieces: Vec<usize> = std::iter::repeat_n(1, table.len() - 1).collect();
    frontend.channel().send_split(&table, &pieces, &nic.mem.fds()).expect("byte by byte");
    let status =
        frontend.channel().recv_reply(request::SET_MEM_TABLE).expect("a reply").u64().expect("a u64");
    assert_eq!(status, 0);
    for queue in &nic.queues {
        let (vring, layout) = (queue.vring, queue.ring.layout());
        let addr = [nic.mem.user(layout.desc), nic.mem.user(layout.used), nic.mem.user(layout.avail), 0];
        let many = [
            encode(request::SET_VRING_NUM, 0, &words(&[vring, u32::from(layout.size)])),
            encode(request::SET_VRING_BASE, 0, &words(&[vring, 0])),
            encode(request::SET_VRING_ADDR, 0, &[words(&[vring, 0]), longs(&addr)].concat()),
            encode(request::SET_VRING_ENABLE, 0, &words(&[vring, 1])),
        ];
        frontend.channel().send_bytes(&many.concat(), &[]).expect("four in one");
        frontend.set_vring_fd(request::SET_VRING_CALL, vring, Some(&queue.call)).expect("call");
        let kick = encode(request::SET_VRING_KICK, flags::NEED_REPLY, &longs(&[u64::from(vring)]));
        let fd = [std::os::fd::AsFd::as_fd(&queue.kick)];
        frontend.channel().send_split(&kick, &[5, 7, 3], &fd).expect("in four pieces");
        frontend.channel().recv_reply(request::SET_VRING_KICK).expect("a reply");
    }
    // A request and half of the next, then its rest.
    let two = [encode(request::GET_FEATURES, 0, &[]), encode(request::GET_QUEUE_NUM, 0, &[])].concat();
    frontend.channel().send_split(&two, &[18], &[]).expect("one and a half");
    frontend.channel().recv_reply(request::GET_FEATURES).expect("a reply");
    frontend.channel().recv_reply(request::GET_QUEUE_NUM).expect("another");
    let mut running = session(frontend, nic);
    rig.both_ways(&mut running, 10);
}
