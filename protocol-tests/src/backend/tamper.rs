//! Deliberate actions of the scripted back-end against a front-end: it dies, hangs or answers wrongly.

use std::time::Duration;

use crate::wire::{Channel, WireError, encode, flags};

/// An action. The number is the request at which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// Closes the connection instead of answering.
    HangUp(u32),
    /// Never answers.
    Silence(u32),
    /// Answers another request.
    OtherRequest(u32),
    /// Answers without the reply flag.
    NoReplyFlag(u32),
    /// Answers in version 2 of the protocol.
    Version2(u32),
    /// Answers with half of the body.
    Short(u32),
    /// Answers with a body of twice the length.
    Long(u32),
    /// Announces a body of 4 GiB, and sends none of it.
    Huge(u32),
    /// Answers with status 1, or with a payload of ones.
    Refuse(u32),
    /// Answers all requests in pieces, cut in the header, after it, and in the body.
    Split,
    /// Answers all requests late.
    Late(Duration),
}

impl Tamper {
    /// Returns whether it changes the answer to `request`.
    pub fn concerns(self, request: u32) -> bool {
        match self {
            Tamper::HangUp(_) => false,
            Tamper::Split | Tamper::Late(_) => true,
            Tamper::Silence(at)
            | Tamper::OtherRequest(at)
            | Tamper::NoReplyFlag(at)
            | Tamper::Version2(at)
            | Tamper::Short(at)
            | Tamper::Long(at)
            | Tamper::Huge(at)
            | Tamper::Refuse(at) => at == request,
        }
    }

    /// Sends the changed answer `body` to `request`.
    pub(super) fn reply(self, channel: &Channel, request: u32, body: &[u8]) -> Result<(), WireError> {
        let reply = flags::REPLY;
        match self {
            Tamper::HangUp(_) | Tamper::Silence(_) => Ok(()),
            Tamper::OtherRequest(_) => channel.send(request + 1, reply, body, &[]),
            Tamper::NoReplyFlag(_) => channel.send(request, 0, body, &[]),
            Tamper::Version2(_) => {
                let mut bytes = encode(request, reply, body);
                bytes[4] = bytes[4] & !3 | 2;
                channel.send_bytes(&bytes, &[])
            }
            Tamper::Short(_) => channel.send(request, reply, &body[..body.len() / 2], &[]),
            Tamper::Long(_) => channel.send(request, reply, &body.repeat(2), &[]),
            Tamper::Huge(_) => {
                let mut bytes = encode(request, reply, &[]);
                bytes[8..12].fill(0xff);
                channel.send_bytes(&bytes, &[])
            }
            Tamper::Refuse(_) => channel.send(request, reply, &vec![1; body.len()], &[]),
            Tamper::Split => {
                let bytes = encode(request, reply, body);
                channel.send_split(&bytes, &[1, 10, 1, 3], &[])
            }
            Tamper::Late(time) => {
                std::thread::sleep(time);
                channel.send(request, reply, body, &[])
            }
        }
    }
}
