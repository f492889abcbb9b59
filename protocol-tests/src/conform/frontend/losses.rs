//! Back-ends that disconnect, die, hang, lie and refuse, at each step of a connection. The front-end must
//! survive and serve its guest with the next good back-end.

use std::time::Duration;

use super::front_checks;
use super::stage::{PATIENCE, Stage, long};
use crate::backend::tamper::Tamper;
use crate::backend::{Recorded, Script};
use crate::conform::{Finding, ensure};
use crate::wire::{feature, flags, request, request_name};

type Checked = Result<(), Finding>;

/// Time that a front-end may wait for a missing answer: a virtual machine must not wait for ever.
const HANG: Duration = Duration::from_secs(10);

front_checks! {
    "losses/left", Robust, Control, "vhost-user, Communication (reconnection)",
    "After a disconnection the front-end reconnects and sets up the next back-end.", left;
    "losses/base", Must, Frames, "vhost-user, VHOST_USER_SET_VRING_BASE",
    "After a reconnect the ring's base neither loses nor repeats a frame.", base;
    "losses/at-get-features", Robust, Control, "vhost-user, Communication (reconnection)",
    "The front-end reconnects after a death at GET_FEATURES.", |stage| dies(stage, request::GET_FEATURES);
    "losses/at-protocol-features", Robust, Control, "vhost-user, Communication (reconnection)",
    "The front-end reconnects after a death at GET_PROTOCOL_FEATURES.",
    |stage| dies(stage, request::GET_PROTOCOL_FEATURES);
    "losses/at-set-features", Robust, Control, "vhost-user, Communication (reconnection)",
    "The front-end reconnects after a death at SET_FEATURES.", |stage| dies(stage, request::SET_FEATURES);
    "losses/at-memory", Robust, Control, "vhost-user, Communication (reconnection)",
    "The front-end reconnects after a death at its memory table.", |stage| {
        let memory = memory_request(stage)?;
        dies(stage, memory)
    };
    "losses/at-vring-num", Robust, Control, "vhost-user, Communication (reconnection)",
    "The front-end reconnects after a death at SET_VRING_NUM.", |stage| dies(stage, request::SET_VRING_NUM);
    "losses/at-kick", Robust, Control, "vhost-user, Communication (reconnection)",
    "The front-end reconnects after a death at SET_VRING_KICK.",
    |stage| dies(stage, request::SET_VRING_KICK);
    "losses/at-enable", Robust, Control, "vhost-user, Communication (reconnection)",
    "The front-end reconnects after a death at SET_VRING_ENABLE.",
    |stage| dies(stage, request::SET_VRING_ENABLE);
    "losses/silence", Robust, Control, "vhost-user, Communication",
    "A back-end silent at GET_FEATURES is dropped within 10 seconds, and the next one is set up.",
    |stage| lies(stage, Tamper::Silence(request::GET_FEATURES));
    "replies/late", Robust, Control, "vhost-user, Communication (names no time)",
    "Answers may come late.", |stage| odd(stage, Tamper::Late(Duration::from_millis(150)));
    "replies/split", Must, Control, "unix(7): a stream socket keeps no message borders",
    "An answer may come in pieces, cut in its header, after it, and in its body.",
    |stage| odd(stage, Tamper::Split);
    "replies/other-request", Robust, Control, "vhost-user, Header",
    "An answer to another request is rejected.",
    |stage| lies(stage, Tamper::OtherRequest(request::GET_FEATURES));
    "replies/no-flag", Robust, Control, "vhost-user, Header",
    "An answer without the reply flag is rejected.",
    |stage| lies(stage, Tamper::NoReplyFlag(request::GET_FEATURES));
    "replies/version-2", Robust, Control, "vhost-user, Header",
    "An answer of another protocol version is rejected.",
    |stage| lies(stage, Tamper::Version2(request::GET_FEATURES));
    "replies/short", Robust, Control, "vhost-user, Front-end message types",
    "A short answer is rejected.", |stage| lies(stage, Tamper::Short(request::GET_FEATURES));
    "replies/long", Robust, Control, "vhost-user, Front-end message types",
    "A long answer is rejected.", |stage| lies(stage, Tamper::Long(request::GET_FEATURES));
    "replies/huge", Robust, Control, "vhost-user, Header",
    "An answer that claims 4 GiB is rejected.", |stage| lies(stage, Tamper::Huge(request::GET_FEATURES));
    "replies/refused", Must, Control, "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
    "The rings of a back-end that refuses the memory are not started.", refused;
    "features/fewer", Robust, Control, "virtio 1.2, 2.2.1: features stay as negotiated until a reset",
    "A back-end without a feature acknowledged by the driver is not started; a later one is.",
    fewer;
}

fn left(stage: &mut Stage) -> Checked {
    for _ in 0..3 {
        stage.bereft()?;
        stage.recovers()?;
    }
    Ok(())
}

fn base(stage: &mut Stage) -> Checked {
    stage.echoes()?;
    stage.bereft()?;
    let served = stage.echoed;
    let act = stage.play(Script::default())?;
    act.running()?;
    let transmit = |message: &&Recorded| message.request == request::SET_VRING_BASE && message.body[0] == 1;
    let talk = act.last();
    let told = talk.iter().find(transmit).map(|message| long(message) >> 32);
    ensure!(told == Some(served.into()), "vring 1 was used {served} times, and its base is {told:?}");
    stage.echo(&act, 3)
}

/// Returns the request by which this front-end shares its memory.
fn memory_request(stage: &mut Stage) -> Result<u32, Finding> {
    let talk = stage.conversation()?;
    let adds = talk.iter().any(|message| message.request == request::ADD_MEM_REG);
    Ok(if adds { request::ADD_MEM_REG } else { request::SET_MEM_TABLE })
}

/// Two back-ends die at `request`; the third one does not.
fn dies(stage: &mut Stage, at: u32) -> Checked {
    let talk = stage.conversation()?;
    if !talk.iter().any(|message| message.request == at) {
        return Err(Finding::NotOffered(format!("it sends no {}", request_name(at))));
    }
    stage.bereft()?;
    let act = stage.play(Script { tamper: Some((Tamper::HangUp(at), 2)), ..Script::default() })?;
    act.ended(stage, 1, PATIENCE, || false)?;
    act.running()?;
    stage.echo(&act, 3)
}

/// Sends unusual but valid answers.
fn odd(stage: &mut Stage, tamper: Tamper) -> Checked {
    stage.bereft()?;
    let act = stage.play(Script { tamper: Some((tamper, usize::MAX)), ..Script::default() })?;
    act.running()?;
    ensure!(act.backend.ended() == 0, "it disconnected after a valid answer");
    stage.echo(&act, 3)
}

/// Sends a wrong answer, or none: the connection must end without another step, and the next one must work.
fn lies(stage: &mut Stage, tamper: Tamper) -> Checked {
    stage.bereft()?;
    let act = stage.play(Script { tamper: Some((tamper, 1)), ..Script::default() })?;
    let began = || {
        let steps = [request::SET_FEATURES, request::SET_MEM_TABLE, request::SET_VRING_KICK];
        act.heard(0).into_iter().find(|message| steps.contains(&message.request))
    };
    act.ended(stage, 0, HANG, || began().is_some())?;
    if let Some(message) = began() {
        return Err(Finding::Fail(format!("it continued with {}", request_name(message.request))));
    }
    act.running()?;
    stage.echo(&act, 3)
}

fn refused(stage: &mut Stage) -> Checked {
    let memory = memory_request(stage)?;
    let talk = stage.conversation()?;
    let asks = |message: &Recorded| message.request == memory && message.flags & flags::NEED_REPLY != 0;
    if !talk.iter().any(asks) {
        return Err(Finding::NotOffered(format!("it wants no reply to {}", request_name(memory))));
    }
    stage.bereft()?;
    let act = stage.play(Script { tamper: Some((Tamper::Refuse(memory), 1)), ..Script::default() })?;
    let started = || act.heard(0).iter().any(|message| message.request == request::SET_VRING_KICK);
    act.ended(stage, 0, HANG, started)?;
    ensure!(!started(), "it started a ring whose memory was refused");
    act.running()?;
    stage.echo(&act, 3)
}

fn fewer(stage: &mut Stage) -> Checked {
    let talk = stage.conversation()?;
    let acked = talk.iter().rev().find(|message| message.request == request::SET_FEATURES).map_or(0, long);
    let acked = acked & !feature::PROTOCOL_FEATURES;
    let Some(bit) = (0..64).map(|bit| 1 << bit).find(|bit| acked & bit != 0) else {
        return Err(Finding::NotOffered("it acknowledges nothing".to_owned()));
    };
    stage.bereft()?;
    let script = Script::default();
    let act = stage.play(Script { features: script.features & !bit, ..script })?;
    let started = || act.backend.record().iter().any(|message| message.request == request::SET_VRING_KICK);
    act.ended(stage, 0, HANG, started)?;
    ensure!(
        !started(),
        "it started a ring for a driver that has acknowledged {bit:#x}, which is not offered"
    );
    drop(act);
    stage.recovers()
}
