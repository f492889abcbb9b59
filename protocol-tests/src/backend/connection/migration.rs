//! The messages of a migration: the scripted back-end's log, and its announcement of a guest that has moved.

use std::sync::mpsc::Sender;

use super::super::dirty::{self, Dirty};
use super::super::fault::Fault;
use super::super::{Sent, Shared, locked};
use super::Connection;
use crate::frame::NetHeader;
use crate::wire::{Message, WireError, feature, flags, longs, protocol, request};

/// Flag of SET_VRING_ADDR: writes to the used ring are logged.
const VRING_F_LOG: u32 = 1;
/// EtherType of RARP, and its beginning for Ethernet and IPv4 up to "request reverse" (RFC 903).
const RARP: [u8; 10] = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];

impl Connection {
    /// Sets the features. Faults are slow to begin or end logging.
    pub(super) fn set_features(&mut self, features: u64) {
        let before = self.acked & feature::LOG_ALL;
        self.acked = features;
        match self.script.fault {
            Some(Fault::LogStaysOn) => self.acked |= before,
            Some(Fault::LogOnce) => {
                self.logged |= before & !features != 0;
                self.acked &= if self.logged { !feature::LOG_ALL } else { u64::MAX };
            }
            _ => {}
        }
    }

    /// Sets the log and echoes its description, the only reply even with NEED_REPLY.
    pub(super) fn set_log_base(&mut self, message: &mut Message) -> Result<(), WireError> {
        let end = self
            .regions
            .iter()
            .map(|(region, _)| region.guest.saturating_add(region.size))
            .max()
            .unwrap_or(0);
        let log = dirty::map(&message.body, message.fds.pop(), end, self.script.fault)
            .map_err(|wanted| message.unexpected(wanted))?;
        let ignored = match self.script.fault {
            Some(Fault::LogKept) => self.log.is_some(),
            Some(Fault::LogLateIgnored) => self.log.is_none() && self.acked & feature::LOG_ALL != 0,
            _ => false,
        };
        if !ignored {
            self.log = log;
        }
        match self.script.fault {
            Some(Fault::LogNoReply) => return Ok(()),
            Some(Fault::LogShortReply) => return self.reply(message, &[]),
            Some(Fault::LogReplyFlags) if !self.asked => {
                return self.channel.send(message.request, 0, &message.body, &[]);
            }
            _ => {}
        }
        self.reply(message, &message.body)?;
        if self.has(Fault::LogRepliesTwice) && message.flags & flags::NEED_REPLY != 0 {
            self.channel.send(request::SET_LOG_BASE, flags::REPLY, &longs(&[0]), &[])?;
        }
        Ok(())
    }

    /// Returns where a used ring is logged, by the flags and the log address of SET_VRING_ADDR.
    pub(super) fn used_log(&self, vring: u32, ring_flags: u32, address: u64) -> Option<u64> {
        let on = ring_flags & VRING_F_LOG != 0 || self.has(Fault::LogRingAlways);
        let forgotten = self.has(Fault::LogNoTransmit) && vring % 2 == 1;
        (on && !forgotten).then_some(address)
    }

    /// Returns the marks of writes from now on.
    pub(super) fn dirty(&self) -> Dirty {
        let log = self.log.clone().filter(|_| self.acked & feature::LOG_ALL != 0);
        Dirty { log, fault: self.script.fault }
    }

    /// Remembers to announce the MAC of SEND_RARP.
    pub(super) fn send_rarp(&mut self, message: &Message) -> Result<(), WireError> {
        let mac: [u8; 6] = message.u64()?.to_le_bytes()[..6].try_into().unwrap_or_default();
        if self.protocol & protocol::RARP == 0 {
            return Err(message.unexpected("a request that was negotiated"));
        }
        if !self.has(Fault::RarpUnsent) {
            self.announced = Some(mac);
        }
        Ok(())
    }

    /// Sends the announcement as if the guest had sent it.
    pub(super) fn announce(&mut self, shared: &Shared, sender: &Sender<Sent>) {
        let Some(mac) = self.announced.take() else { return };
        let mut frame = [&[0xff; 6], mac.as_slice(), &RARP, &mac, &[0; 4], &mac].concat();
        frame.resize(60, 0);
        if self.script.echo {
            locked(&shared.inbox).push_back((0, NetHeader::default(), frame.clone()));
        }
        let _ = sender.send((0, NetHeader::default(), frame));
    }
}
