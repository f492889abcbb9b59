//! Messages and their replies: negotiation, bodies of every length, indices, pieces, the configuration space.

use std::os::fd::AsFd;

use super::bench::{Bench, LIMIT, PLAIN, QUIET, refused};
use super::instance::Next;
use super::states::untouched;
use super::{Finding, checks, ensure};
use crate::frontend::NO_FD;
use crate::nic::{Queue, eventfd};
use crate::session::Setup;
use crate::wire::{encode, feature, flags, header, longs, protocol, request, request_name, words};

type Result = std::result::Result<(), Finding>;

checks! {
    "messages/version-1", Must, Control, "virtio 1.2, 6 (VIRTIO_F_VERSION_1)",
        "GET_FEATURES offers VIRTIO_F_VERSION_1.", version_1;
    "messages/features-again", Robust, Control, "vhost-user, GET_FEATURES; QEMU asks again for each driver",
        "GET_FEATURES gives the same answer before and after SET_FEATURES.", features_again;
    "messages/protocol-features-early", Must, Control,
        "vhost-user, GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES",
        "Protocol features can be read and set before SET_FEATURES.", protocol_early;
    "messages/reply-header", Must, Control, "vhost-user, Header",
        "A reply has version 1, the reply flag, the request's number and the size of its body.", reply_header;
    "messages/need-reply", Must, Control, "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        "A request with NEED_REPLY is answered with one u64, 0 for success.", need_reply;
    "messages/no-reply-unasked", Must, Control, "vhost-user, Communication",
        "A request without a reply of its own and without NEED_REPLY gets none.", no_reply_unasked;
    "messages/one-reply-each", Must, Control, "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        "A request with a reply of its own gets only that reply, even with NEED_REPLY.", one_reply;
    "messages/queue-num", Must, Control, "vhost-user, GET_QUEUE_NUM",
        "GET_QUEUE_NUM answers a number from 1 to 65,535 if MQ was negotiated.", queue_num;
    "messages/mem-slots", Must, Control, "vhost-user, GET_MAX_MEM_SLOTS",
        "GET_MAX_MEM_SLOTS answers at least 1 if CONFIGURE_MEM_SLOTS was negotiated.", mem_slots;
    "messages/reset-device", Must, Control, "vhost-user, RESET_DEVICE",
        "RESET_DEVICE stops the rings, which can then be set up again on the same connection.", reset_device;
    "messages/enable-before-features", Robust, Control, "QEMU 7.2 to 11.1 send it",
        "SET_VRING_ENABLE with NEED_REPLY before any SET_FEATURES is acknowledged.", early_enable;
    "messages/no-fd-bit", Must, Control, "vhost-user, SET_VRING_CALL",
        "SET_VRING_CALL and SET_VRING_ERR with the no-descriptor bit are accepted.", no_fd_bit;
    "messages/fd-missing", Robust, Control, "vhost-user, SET_VRING_KICK",
        "SET_VRING_KICK without the no-descriptor bit and without a descriptor is refused.", fd_missing;
    "messages/fd-surplus", Robust, Control, "vhost-user, Communication",
        "Descriptors on requests that take none do no harm.", fd_surplus;
    "messages/split-bytes", Must, Control, "unix(7): a stream socket keeps no message borders",
        "A message that arrives byte by byte is one message.", split_bytes;
    "messages/coalesced", Must, Control, "unix(7): a stream socket keeps no message borders",
        "Three messages in one write are three messages.", coalesced;
    "messages/half-and-gone", Robust, Control, "robustness",
        "After a front-end disconnects in the middle of a message, the next one is served.", half_and_gone;
    "messages/second-connection", Robust, Control,
        "QEMU and Cloud Hypervisor reconnect; Cloud Hypervisor's daemon and passt serve one and end",
        "A back-end that has served one connection serves the next. (Otherwise volt-conform restarts it \
         for each.)", second_connection;
    "messages/reconnect", Robust, Control, "front-ends reconnect",
        "Thirty front-ends are served one after another.", reconnect;
    "messages/unknown-request", Robust, Control, "vhost-user, Communication",
        "Requests with unknown numbers are refused, ignored or end the connection: no hang, no end of the \
         back-end.", unknown_request;
    "messages/header-version", Robust, Control, "vhost-user, Header",
        "A header of another version is refused.", |b| bad_header(b, &header(request::GET_FEATURES, 2, 0));
    "messages/header-size", Robust, Control, "vhost-user, Header",
        "The back-end does not wait for a body of 4 GiB.",
        |b| bad_header(b, &header(request::GET_FEATURES, 1, u32::MAX));
    "messages/noise", Robust, Control, "robustness", "Random bytes are refused.",
        |b| bad_header(b, &[0xa5; 4096]);
    "messages/features-unoffered", Robust, Control,
        "virtio 1.2, 2.2.1 (the driver must not accept what is not offered)",
        "SET_FEATURES with bits that were not offered is refused.",
        |b| told(b, request::SET_FEATURES, &longs(&[u64::MAX]));
    "messages/protocol-unoffered", Robust, Control, "vhost-user, SET_PROTOCOL_FEATURES",
        "SET_PROTOCOL_FEATURES with bits that were not offered is refused.",
        |b| told(b, request::SET_PROTOCOL_FEATURES, &longs(&[u64::MAX]));
    "messages/index-num", Robust, Control, "vhost-user, SET_VRING_NUM",
        "The size of an unknown vring is refused.", |b| told(b, request::SET_VRING_NUM, &words(&[200, 256]));
    "messages/index-base", Robust, Control, "vhost-user, SET_VRING_BASE",
        "The base of an unknown vring is refused.", |b| told(b, request::SET_VRING_BASE, &words(&[200, 0]));
    "messages/index-addr", Robust, Control, "vhost-user, SET_VRING_ADDR",
        "SET_VRING_ADDR for an unknown vring is refused.",
        |b| told(b, request::SET_VRING_ADDR, &[words(&[200, 0]), longs(&[0; 4])].concat());
    "messages/index-enable", Robust, Control, "vhost-user, SET_VRING_ENABLE",
        "SET_VRING_ENABLE for an unknown vring is refused.",
        |b| told(b, request::SET_VRING_ENABLE, &words(&[200, 1]));
    "messages/index-kick", Robust, Control, "vhost-user, SET_VRING_KICK",
        "SET_VRING_KICK for an unknown vring is refused.", |b| index_fd(b, request::SET_VRING_KICK);
    "messages/index-call", Robust, Control, "vhost-user, SET_VRING_CALL",
        "SET_VRING_CALL for an unknown vring is refused.", |b| index_fd(b, request::SET_VRING_CALL);
    "messages/index-err", Robust, Control, "vhost-user, SET_VRING_ERR",
        "SET_VRING_ERR for an unknown vring is refused.", |b| index_fd(b, request::SET_VRING_ERR);
    "messages/index-far", Robust, Control, "vhost-user, SET_VRING_NUM",
        "Vring 4294967295 is refused.", |b| told(b, request::SET_VRING_NUM, &words(&[u32::MAX, 256]));
    "messages/size-zero", Robust, Control, "virtio 1.2, 2.7 (Queue Size)",
        "A ring of 0 descriptors is refused.", |b| told(b, request::SET_VRING_NUM, &words(&[0, 0]));
    "messages/size-odd", Robust, Control, "virtio 1.2, 2.7 (a power of 2)",
        "A split ring of 100 descriptors is refused.", |b| told(b, request::SET_VRING_NUM, &words(&[0, 100]));
    "messages/size-65536", Robust, Control, "virtio 1.2, 2.7 (at most 32768)",
        "A ring of 65536 descriptors is refused.", |b| told(b, request::SET_VRING_NUM, &words(&[0, 65_536]));
    "messages/enable-by-2", Robust, Control, "vhost-user, SET_VRING_ENABLE (0 or 1)",
        "An enable value of 2 is refused.", |b| told(b, request::SET_VRING_ENABLE, &words(&[0, 2]));
    "messages/short-bodies", Robust, Control, "vhost-user, Payload",
        "Short bodies are refused on every request that has a body.",
        |b| bodies(b, &[1, 2, 3, 4, 5, 6, 7]);
    "messages/empty-bodies", Robust, Control, "vhost-user, Payload",
        "Missing bodies are refused on every request that has a body.", |b| bodies(b, &[0]);
    "messages/long-bodies", Robust, Control, "vhost-user, Payload",
        "Bodies of 300 bytes are refused on every request with a shorter body.", |b| bodies(b, &[300]);
    "config/pieces", Must, Control, "vhost-user, GET_CONFIG",
        "Reading the configuration byte by byte or at once gives the same.", config_pieces;
    "config/beyond-end", Robust, Control, "vhost-user, GET_CONFIG (a size of zero reports an error)",
        "Reading far beyond the configuration is refused.",
        config_beyond;
    "config/mac", Robust, Control, "virtio 1.2, 5.1.4 (does not say which address)",
        "With MAC offered, the configuration begins with an individual, non-zero address.",
        config_mac;
}

fn version_1(bench: &mut Bench) -> Result {
    let offered = bench.connect()?.get_features()?;
    ensure!(offered & feature::VERSION_1 != 0, "GET_FEATURES answered {offered:#x}, without bit 32");
    Ok(())
}

fn features_again(bench: &mut Bench) -> Result {
    let frontend = bench.connect()?;
    frontend.set_owner()?;
    let first = frontend.get_features()?;
    frontend.set_features(first & Setup::default().features)?;
    let second = frontend.get_features()?;
    ensure!(first == second, "GET_FEATURES answered {first:#x}, then {second:#x}");
    Ok(())
}

fn protocol_early(bench: &mut Bench) -> Result {
    let frontend = bench.connect()?;
    frontend.set_owner()?;
    if frontend.get_features()? & feature::PROTOCOL_FEATURES == 0 {
        return Err(Finding::NotOffered("VHOST_USER_F_PROTOCOL_FEATURES".to_owned()));
    }
    let offered = frontend.get_protocol_features()?;
    frontend.set_protocol_features(offered & (protocol::MQ | protocol::REPLY_ACK))?;
    Ok(frontend.sync()?)
}

fn reply_header(bench: &mut Bench) -> Result {
    let reply = bench.connect()?.ask(request::GET_FEATURES, &[], &[])?;
    ensure!(reply.flags == flags::VERSION | flags::REPLY, "{}", reply.unexpected("flags 0x5"));
    ensure!(reply.body.len() == 8 && reply.fds.is_empty(), "{}", reply.unexpected("a u64 alone"));
    Ok(())
}

fn need_reply(bench: &mut Bench) -> Result {
    let frontend = bench.acking()?;
    for (request, body) in
        [(request::SET_VRING_NUM, words(&[0, 64])), (request::SET_VRING_BASE, words(&[0, 0]))]
    {
        let status = frontend.tell_acked(request, &body, &[])?;
        ensure!(status == 0, "{} {body:02x?} answered {status:#x}", request_name(request));
    }
    Ok(())
}

fn no_reply_unasked(bench: &mut Bench) -> Result {
    let frontend = bench.acking()?;
    frontend.tell(request::SET_VRING_NUM, &words(&[0, 64]), &[])?;
    frontend.tell(request::SET_VRING_BASE, &words(&[0, 0]), &[])?;
    frontend.tell(request::SET_VRING_ENABLE, &words(&[0, 1]), &[])?;
    Ok(frontend.sync()?)
}

fn one_reply(bench: &mut Bench) -> Result {
    let mut frontend = bench.acking()?;
    frontend.channel().send(request::GET_FEATURES, flags::NEED_REPLY, &[], &[])?;
    frontend.channel().recv_reply(request::GET_FEATURES)?;
    frontend.get_protocol_features()?;
    Ok(())
}

fn queue_num(bench: &mut Bench) -> Result {
    let count = bench.negotiated(protocol::MQ)?.get_queue_num()?;
    // A back-end may count pairs instead: one front-end in use reads the answer that way.
    ensure!((1..=0xffff).contains(&count), "GET_QUEUE_NUM answered {count}");
    Ok(())
}

fn mem_slots(bench: &mut Bench) -> Result {
    let count = bench.negotiated(protocol::CONFIGURE_MEM_SLOTS)?.get_max_mem_slots()?;
    ensure!(count > 0, "GET_MAX_MEM_SLOTS answered 0");
    Ok(())
}

fn reset_device(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup {
        protocol: Setup::default().protocol | protocol::RESET_DEVICE,
        ..Setup::default()
    })?;
    if session.protocol & protocol::RESET_DEVICE == 0 {
        return Err(Finding::NotOffered("VHOST_USER_PROTOCOL_F_RESET_DEVICE".to_owned()));
    }
    bench.both_ways(&mut session, 2)?;
    session.frontend.reset_device()?;
    let frame = bench.frame(90);
    session.tx(0).offer(&PLAIN, &frame, &[])?;
    session.tx(0).kick_always()?;
    untouched(&mut session, "after RESET_DEVICE")?;
    session.frontend.set_features(session.nic.features)?;
    session.restart()?;
    session.nic.queues.iter_mut().try_for_each(Queue::kick_always)?;
    session.tx(0).used(LIMIT)?;
    // Frames may have left, or been discarded if the ring was started before it was enabled.
    while bench.sees_frames() && bench.leaves(&mut session, QUIET)?.is_some() {}
    bench.both_ways(&mut session, 2)
}

fn early_enable(bench: &mut Bench) -> Result {
    let frontend = bench.connect()?;
    frontend.set_owner()?;
    let _ = frontend.get_features()?;
    let offered = frontend.get_protocol_features()?;
    if offered & protocol::REPLY_ACK == 0 {
        return Err(Finding::NotOffered("VHOST_USER_PROTOCOL_F_REPLY_ACK".to_owned()));
    }
    frontend.set_protocol_features(offered & (protocol::MQ | protocol::REPLY_ACK))?;
    let status = frontend.tell_acked(request::SET_VRING_ENABLE, &words(&[0, 1]), &[])?;
    ensure!(status == 0, "SET_VRING_ENABLE(0, 1) answered {status:#x}");
    Ok(())
}

fn no_fd_bit(bench: &mut Bench) -> Result {
    let frontend = bench.acking()?;
    for which in [request::SET_VRING_CALL, request::SET_VRING_ERR] {
        let status = frontend.tell_acked(which, &longs(&[NO_FD]), &[])?;
        ensure!(status == 0, "{} 0x100 answered {status:#x}", request_name(which));
    }
    Ok(())
}

fn fd_missing(bench: &mut Bench) -> Result {
    told(bench, request::SET_VRING_KICK, &longs(&[0]))
}

fn fd_surplus(bench: &mut Bench) -> Result {
    let event = eventfd()?;
    let many: Vec<_> = (0..8).map(|_| event.as_fd()).collect();
    for request in [request::GET_FEATURES, request::SET_VRING_NUM, request::SET_OWNER] {
        let frontend = bench.acking()?;
        let body = if request == request::SET_VRING_NUM { words(&[0, 64]) } else { Vec::new() };
        let _ = frontend.tell(request, &body, &many);
        drop(frontend);
    }
    bench.serves()
}

fn split_bytes(bench: &mut Bench) -> Result {
    let mut frontend = bench.acking()?;
    let message = encode(request::SET_VRING_NUM, flags::NEED_REPLY, &words(&[0, 64]));
    frontend.channel().send_split(&message, &[1; 19], &[])?;
    let status = frontend.channel().recv_reply(request::SET_VRING_NUM)?.u64()?;
    ensure!(status == 0, "SET_VRING_NUM byte by byte answered {status:#x}");
    Ok(())
}

fn coalesced(bench: &mut Bench) -> Result {
    let mut frontend = bench.acking()?;
    let three = [
        encode(request::GET_FEATURES, 0, &[]),
        encode(request::SET_VRING_NUM, flags::NEED_REPLY, &words(&[1, 64])),
        encode(request::GET_PROTOCOL_FEATURES, 0, &[]),
    ];
    frontend.channel().send_bytes(&three.concat(), &[])?;
    for request in [request::GET_FEATURES, request::SET_VRING_NUM, request::GET_PROTOCOL_FEATURES] {
        frontend.channel().recv_reply(request)?;
    }
    Ok(())
}

fn half_and_gone(bench: &mut Bench) -> Result {
    let message = encode(request::SET_FEATURES, 0, &longs(&[0]));
    for len in [1, 11, 12, 15] {
        bench.connect()?.channel().send_bytes(&message[..len], &[])?;
    }
    bench.serves()
}

fn second_connection(bench: &mut Bench) -> Result {
    match bench.next() {
        Next::Served => Ok(()),
        Next::Lost { finding, .. } | Next::Unknown(finding) => Err(finding.clone()),
    }
}

fn reconnect(bench: &mut Bench) -> Result {
    if let Next::Lost { .. } = bench.next() {
        return Err(Finding::NotOffered("a second connection".to_owned()));
    }
    for _ in 0..30 {
        bench.connect()?.sync()?;
    }
    bench.serves()
}

fn unknown_request(bench: &mut Bench) -> Result {
    for request in [0, 45, 1000, u32::MAX] {
        let frontend = bench.acking()?;
        match frontend.tell_acked(request, &longs(&[0]), &[]) {
            Err(crate::wire::WireError::Closed(_)) => {}
            Ok(0) => return Err(Finding::Fail(format!("request {request} was acknowledged"))),
            Ok(_) => frontend.sync()?,
            Err(error) => return Err(error.into()),
        }
    }
    bench.serves()
}

fn bad_header(bench: &mut Bench, bytes: &[u8]) -> Result {
    let mut frontend = bench.connect()?;
    frontend.channel().send_bytes(bytes, &[])?;
    if let Ok(message) = frontend.channel().recv() {
        return Err(message.unexpected("the connection to be closed").into());
    }
    drop(frontend);
    bench.serves()
}

/// Sends a request that must be refused; the back-end must still serve afterwards.
fn told(bench: &mut Bench, request: u32, body: &[u8]) -> Result {
    let frontend = bench.acking()?;
    let answer = frontend.tell_acked(request, body, &[]);
    refused(answer, &format!("{} {body:02x?}", request_name(request)))?;
    drop(frontend);
    bench.serves()
}

fn index_fd(bench: &mut Bench, which: u32) -> Result {
    let event = eventfd()?;
    let frontend = bench.acking()?;
    let answer = frontend.tell_acked(which, &longs(&[200]), &[event.as_fd()]);
    refused(answer, &format!("{} of vring 200", request_name(which)))?;
    drop(frontend);
    bench.serves()
}

fn bodies(bench: &mut Bench, lens: &[usize]) -> Result {
    let requests = [
        request::SET_FEATURES,
        request::SET_PROTOCOL_FEATURES,
        request::SET_VRING_NUM,
        request::SET_VRING_ADDR,
        request::SET_VRING_BASE,
        request::SET_VRING_ENABLE,
        request::SET_VRING_CALL,
    ];
    for request in requests {
        for &len in lens {
            let frontend = bench.acking()?;
            let answer = frontend.tell_acked(request, &vec![0; len], &[]);
            refused(answer, &format!("{} with a body of {len} bytes", request_name(request)))?;
        }
    }
    bench.serves()
}

fn config_pieces(bench: &mut Bench) -> Result {
    let frontend = bench.negotiated(protocol::CONFIG)?;
    let whole = frontend.get_config(0, 12)?;
    for at in 0..12 {
        let byte = frontend.get_config(at, 1)?[0];
        ensure!(byte == whole[at as usize], "byte {at} is {byte:#x}, read at once: {whole:02x?}");
    }
    Ok(())
}

fn config_beyond(bench: &mut Bench) -> Result {
    for (offset, size) in [(0xffff_fff0u32, 4u32), (4096, 4), (u32::MAX, u32::MAX)] {
        let frontend = bench.negotiated(protocol::CONFIG)?;
        let body = [words(&[offset, size, 0]), vec![0; 4]].concat();
        match frontend.ask(request::GET_CONFIG, &body, &[]) {
            Ok(reply) => {
                let empty = reply.body.len() <= 12;
                ensure!(empty, "{}", reply.unexpected("no configuration beyond its end"));
            }
            Err(crate::wire::WireError::Closed(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bench.serves()
}

fn config_mac(bench: &mut Bench) -> Result {
    let frontend = bench.negotiated(protocol::CONFIG)?;
    if frontend.get_features()? & feature::MAC == 0 {
        return Err(Finding::NotOffered("VIRTIO_NET_F_MAC".to_owned()));
    }
    let mac = frontend.get_config(0, 6)?;
    ensure!(mac[0] & 1 == 0 && mac != [0; 6], "MAC {mac:02x?}");
    Ok(())
}
