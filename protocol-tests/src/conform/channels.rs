//! Messages that change the rules for messages, and the channel for the back-end's own requests.

use std::os::unix::net::UnixStream;

use super::bench::Bench;
use super::{Finding, checks, ensure};
use crate::frontend::Frontend;
use crate::session::Setup;
use crate::wire::{flags, longs, protocol, request};

type Result = std::result::Result<(), Finding>;

checks! {
    "messages/need-reply-negotiating", Robust, Control, "User-mode Linux 6.1 and 7.2, measured",
        "The message that acknowledges REPLY_ACK is itself answered if it asks for a reply.", negotiating;
    "messages/need-reply-dropping", Robust, Control, "a front-end that asks waits, as User-mode Linux does",
        "A message that drops REPLY_ACK is answered if it asks for a reply; later messages are not.",
        dropping;
    "messages/backend-channel", Must, Completion, "vhost-user, SET_BACKEND_REQ_FD",
        "With BACKEND_REQ negotiated, its descriptor is taken, also a second one, and rings run after \
         the front-end has closed the other end.", backend_channel;
}

/// Makes a connection whose front-end has read the protocol features, among them REPLY_ACK, and acknowledged
/// none.
fn before(bench: &Bench) -> std::result::Result<(Frontend, u64), Finding> {
    let frontend = bench.connect()?;
    frontend.set_owner()?;
    frontend.get_features()?;
    let offered = frontend.get_protocol_features()?;
    match offered & protocol::REPLY_ACK {
        0 => Err(Finding::NotOffered("VHOST_USER_PROTOCOL_F_REPLY_ACK".to_owned())),
        _ => Ok((frontend, offered & (protocol::MQ | protocol::REPLY_ACK))),
    }
}

fn acknowledges(frontend: &Frontend, features: u64) -> Result {
    let status = frontend.tell_acked(request::SET_PROTOCOL_FEATURES, &longs(&[features]), &[])?;
    ensure!(status == 0, "SET_PROTOCOL_FEATURES {features:#x} answered {status:#x}");
    Ok(())
}

fn negotiating(bench: &mut Bench) -> Result {
    let (frontend, features) = before(bench)?;
    acknowledges(&frontend, features)?;
    // Checks that no second answer follows.
    Ok(frontend.sync()?)
}

fn dropping(bench: &mut Bench) -> Result {
    let (mut frontend, features) = before(bench)?;
    frontend.set_protocol_features(features)?;
    acknowledges(&frontend, features & !protocol::REPLY_ACK)?;
    frontend.channel().send(request::SET_OWNER, flags::NEED_REPLY, &[], &[])?;
    Ok(frontend.sync()?)
}

fn backend_channel(bench: &mut Bench) -> Result {
    let setup = Setup::default();
    let mut session =
        bench.session(&Setup { protocol: setup.protocol | protocol::BACKEND_REQ, ..setup.clone() })?;
    if session.protocol & protocol::BACKEND_REQ == 0 {
        return Err(Finding::NotOffered("VHOST_USER_PROTOCOL_F_BACKEND_REQ".to_owned()));
    }
    for _ in 0..2 {
        let (mine, theirs) = UnixStream::pair()?;
        session.frontend.set_backend_req_fd(&theirs)?;
        drop(theirs);
        bench.both_ways(&mut session, 2)?;
        drop(mine);
        bench.both_ways(&mut session, 2)?;
    }
    Ok(session.frontend.sync()?)
}
