//! Frames through a guest that echoes them, with back-ends that offer more or fewer features.

use super::front_checks;
use super::stage::Stage;
use crate::backend::Script;
use crate::conform::{Finding, ensure};
use crate::wire::{feature, protocol, request, request_name};

type Checked = Result<(), Finding>;

front_checks! {
    "traffic/content", Must, Frames, "virtio 1.2, 5.1.6",
    "Frames of all lengths return from the guest unchanged, once each and in order.", content;
    "traffic/without-protocol", Must, Control, "vhost-user, Protocol features",
    "Without VHOST_USER_F_PROTOCOL_FEATURES the back-end receives no request of protocol features; a \
     front-end that needs them reports it and ends.", without_protocol;
    "traffic/without-reply-ack", Must, Control, "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
    "A back-end without REPLY_ACK is not asked for replies.",
    |stage| without(stage, protocol::REPLY_ACK, &[]);
    "traffic/without-config", Must, Control, "vhost-user, Protocol features (VHOST_USER_PROTOCOL_F_CONFIG)",
    "A back-end without CONFIG is not asked for its configuration.",
    |stage| without(stage, protocol::CONFIG, &[request::GET_CONFIG]);
    "traffic/without-slots", Must, Control,
    "vhost-user, Protocol features (VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)",
    "A back-end without CONFIGURE_MEM_SLOTS receives its memory by SET_MEM_TABLE.",
    |stage| without(stage, protocol::CONFIGURE_MEM_SLOTS,
        &[request::ADD_MEM_REG, request::GET_MAX_MEM_SLOTS]);
    "traffic/without-mq", Robust, Control, "vhost-user, GET_QUEUE_NUM (should)",
    "A back-end without MQ is not asked for its number of queues.",
    |stage| without(stage, protocol::MQ, &[request::GET_QUEUE_NUM]);
    "traffic/without-options", Robust, Control, "virtio 1.2, 2.2.1 (SHOULD)",
    "A back-end that offers no device feature but VERSION_1 is served.", without_options;
}

fn content(stage: &mut Stage) -> Checked {
    stage.echoes()?;
    stage.bereft()?;
    let act = stage.play(Script::default())?;
    act.running()?;
    stage.echo(&act, 200)
}

/// Checks a new front-end with a back-end that lacks a protocol feature and therefore must not receive
/// `forbidden`.
fn without(stage: &mut Stage, missing: u64, forbidden: &[u32]) -> Checked {
    stage.restart();
    let script = Script::default();
    let act = stage.play(Script { protocol: script.protocol & !missing, ..script })?;
    act.running()?;
    let talk = act.last();
    let heard = talk.iter().find(|message| forbidden.contains(&message.request));
    ensure!(heard.is_none(), "{} was sent", heard.map_or("", |message| request_name(message.request)));
    if missing == protocol::REPLY_ACK {
        let asked = talk.iter().find(|message| message.flags & 8 != 0);
        ensure!(
            asked.is_none(),
            "{} wants a reply",
            asked.map_or("", |message| request_name(message.request))
        );
    }
    let result = stage.echo(&act, 3);
    stage.restart();
    result
}

fn without_protocol(stage: &mut Stage) -> Checked {
    stage.restart();
    let script = Script::default();
    let act = stage.play(Script { features: script.features & !feature::PROTOCOL_FEATURES, ..script })?;
    let result = act.running();
    let forbidden = [
        request::GET_PROTOCOL_FEATURES,
        request::SET_PROTOCOL_FEATURES,
        request::SET_VRING_ENABLE,
        request::GET_CONFIG,
        request::GET_QUEUE_NUM,
    ];
    let heard = act.backend.record().into_iter().find(|message| forbidden.contains(&message.request));
    ensure!(heard.is_none(), "{} was sent", heard.map_or("", |message| request_name(message.request)));
    if result.is_err() && stage.has_ended() {
        stage.restart();
        return Err(Finding::NotOffered("it ends if the back-end lacks protocol features".to_owned()));
    }
    result?;
    let result = stage.echo(&act, 3);
    stage.restart();
    result
}

fn without_options(stage: &mut Stage) -> Checked {
    stage.restart();
    let features = feature::VERSION_1 | feature::PROTOCOL_FEATURES;
    let act = stage.play(Script { features, ..Script::default() })?;
    act.running()?;
    let result = stage.echo(&act, 3);
    stage.restart();
    result
}
