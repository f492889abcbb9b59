//! Refusals of the scripted back-end, justified or faulty, and the wrong answers of faults.

use super::super::fault::Fault;
use super::Connection;
use crate::frontend::NO_FD;
use crate::wire::{Message, WireError, longs, request, request_name};

/// Largest number and size of regions that faults accept.
const FEW: usize = 8;
const SMALL: u64 = 1 << 32;

impl Connection {
    /// Refuses invalid vrings and sizes.
    pub(super) fn check(&self, message: &Message) -> Result<(), &'static str> {
        self.check_fault(message)?;
        let first = message.body.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let index = match message.request {
            request::SET_VRING_NUM
            | request::SET_VRING_BASE
            | request::SET_VRING_ADDR
            | request::SET_VRING_ENABLE
            | request::GET_VRING_BASE => first,
            request::SET_VRING_KICK | request::SET_VRING_CALL | request::SET_VRING_ERR => first & 0xff,
            _ => 0,
        };
        if u64::from(index) >= self.script.queue_num && self.has(Fault::Aborts) {
            std::process::abort();
        }
        if u64::from(index) >= self.script.queue_num && !self.has(Fault::AnyVring) {
            return Err("an existing vring");
        }
        let size = message.words::<2>().map_or(0, |[_, size]| size);
        let valid = size.is_power_of_two() && size <= 32_768;
        if message.request == request::SET_VRING_NUM && !valid && !self.has(Fault::AnySize) {
            return Err("a ring size");
        }
        Ok(())
    }

    /// Refuses the requests that a fault refuses.
    fn check_fault(&self, message: &Message) -> Result<(), &'static str> {
        let Some(fault) = self.script.fault else { return Ok(()) };
        let long = |at: usize| {
            message
                .body
                .get(at..at + 8)
                .map_or(0, |bytes| u64::from_le_bytes(std::array::from_fn(|i| bytes[i])))
        };
        let refused = match (fault, message.request) {
            (Fault::ProtocolLate, request::GET_PROTOCOL_FEATURES | request::SET_PROTOCOL_FEATURES) => {
                self.acked == 0
            }
            (Fault::CallNeeded, request::SET_VRING_CALL | request::SET_VRING_ERR) => long(0) & NO_FD != 0,
            (Fault::NoSmallRings, request::SET_VRING_NUM) => long(0) >> 32 < 4,
            (Fault::NoLargeRegions, request::SET_MEM_TABLE) => long(16) > SMALL,
            (Fault::OneTable, request::SET_MEM_TABLE) => self.memory.is_some(),
            (Fault::OneChannel, request::SET_BACKEND_REQ_FD) => self.requests.is_some(),
            (Fault::FewRegions, request::ADD_MEM_REG) => self.regions.len() >= FEW,
            (Fault::SurplusExits, request::GET_FEATURES | request::SET_OWNER | request::SET_VRING_NUM)
                if !message.fds.is_empty() =>
            {
                std::process::exit(1)
            }
            _ => false,
        };
        if refused { Err("another request than this fault refuses") } else { Ok(()) }
    }

    /// Answers as only a fault does. Returns true if the message needs no other answer.
    pub(super) fn answers_wrongly(&self, message: &Message) -> Result<bool, WireError> {
        let Some(fault) = self.script.fault else { return Ok(false) };
        let answer = match (fault, message.request) {
            (Fault::NoQueues, request::GET_QUEUE_NUM) | (Fault::NoSlots, request::GET_MAX_MEM_SLOTS) => {
                longs(&[0])
            }
            (Fault::KnowsAll, number) if request_name(number) == "?" => longs(&[0]),
            (
                Fault::AnyBody,
                request::SET_FEATURES
                | request::SET_PROTOCOL_FEATURES
                | request::SET_VRING_NUM
                | request::SET_VRING_ADDR
                | request::SET_VRING_BASE
                | request::SET_VRING_ENABLE
                | request::SET_VRING_CALL,
            ) if ![8, 40].contains(&message.body.len()) => longs(&[0]),
            (Fault::EndlessConfig, request::GET_CONFIG) => message.body.clone(),
            _ => return Ok(false),
        };
        self.reply(message, &answer)?;
        Ok(true)
    }

    /// Returns the next message. A fault may also answer noise.
    pub(in super::super) fn recv(&self) -> Result<Message, WireError> {
        let message = self.channel.recv();
        if let (Err(WireError::Unexpected(_)), true) = (&message, self.has(Fault::AnswersNoise)) {
            self.channel.send(
                request::GET_FEATURES,
                crate::wire::flags::REPLY,
                &longs(&[self.offered()]),
                &[],
            )?;
        }
        message
    }
}
