//! The daemon's state, written out, read back, and given away.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use log::{error, info, warn};
use rustix::process::getpid;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use volt_net::event::poller::EventFlags;
use volt_net::net::device::Leftover;
use volt_net::net::limiter::LimitsChange;
use volt_net::state::{Exporter, FORMAT, FdId, Importer, StateError};
use volt_net::unix::check_user;
use volt_net::vhost_user::channel::{ChannelError, Piece};
use volt_program::logging;

use super::{End, Server, ServerError, Token};
use crate::connection::{Connection, Ended};
use crate::control::{Reply, Request, answer, read};
use crate::handover::{self, Offer};
use crate::holder::Answer;
use crate::state::{ConnectionState, DaemonState, Last, program};

/// Most clients of the control socket that have not said what they want.
const CLIENTS: usize = 8;

type Fds<'a> = Vec<(FdId, BorrowedFd<'a>)>;

impl Server {
    /// Writes the daemon out. An error says why no other process can have it.
    fn export(&self) -> Result<(Box<RawValue>, Fds<'_>), String> {
        let mut out = Exporter::default();
        let state = DaemonState {
            format: FORMAT,
            program: program(),
            take_overs: self.take_overs,
            device: self.device.export(),
            port: self.device.port().export(&mut out).ok_or("its port cannot be handed over")?,
            max_ring_size: self.max_ring_size,
            endpoint: self.endpoint.export(&mut out),
            control: self.control.as_ref().map(|control| control.export(&mut out)),
            connection: self.connection.as_ref().map(|connection| connection.export(&mut out)),
            leftover: self.device.leftover(),
        };
        let state = to_raw_value(&state).map_err(|error| format!("its state cannot be written: {error}"))?;
        Ok((state, out.into_fds()))
    }

    /// Goes on with the connection of a state, stopped.
    pub(crate) fn import(
        &mut self,
        connection: Option<ConnectionState>,
        read: Vec<Piece>,
        leftover: Leftover,
        take_overs: u64,
        from: &mut Importer,
    ) -> Result<(), StateError> {
        self.take_overs = take_overs;
        self.device.set_leftover(leftover);
        let import = |state| Connection::import(state, from, &self.device, self.max_ring_size);
        self.connection = connection.map(import).transpose()?;
        if let Some(connection) = &mut self.connection {
            let added = read.into_iter().try_for_each(|piece| connection.channel.add(piece));
            self.drop_connection |= added.is_err();
        }
        Ok(())
    }

    /// Closes the imported connection as soon as everything is this daemon's, if `drop`.
    pub(crate) fn drop_connection_on_resume(&mut self, drop: bool) {
        self.drop_connection |= drop;
    }

    /// Says that this daemon can start, and waits until its supervisor lets it.
    pub(crate) fn wait_for_start(&self) -> std::io::Result<Last> {
        self.holder.as_ref().ok_or(std::io::ErrorKind::NotConnected)?.wait_for_start()
    }

    /// What frames go to.
    pub(crate) fn port_name(&self) -> &str {
        self.device.port_name()
    }

    /// Starts what was running in the process before this one.
    pub(crate) fn resume(&mut self, last: Option<Last>) -> Result<(), ServerError> {
        self.device.own_port();
        self.endpoint.own();
        if let Some(control) = &mut self.control {
            control.own();
        }
        if let Some(last) = &last
            && let Some(connection) = &mut self.connection
        {
            connection.session.set_broken(&last.broken);
        }
        if let Some(last) = last {
            self.device.set_leftover(last.leftover);
            self.take_overs += 1;
        }
        self.watch_connection()?;
        if std::mem::take(&mut self.drop_connection) {
            return self.disconnect("a request of its ends this daemon, or was lost with the last one");
        }
        if let Some(connection) = &mut self.connection {
            connection.session.resume(&mut self.device);
        }
        self.commit();
        Ok(())
    }

    /// Leaves the state with the supervisor, if there is one.
    pub(super) fn commit(&mut self) {
        // Without an answer nothing can come of it.
        let _ = self.commit_with(None);
    }

    /// The same with the end of a request. Returns the bytes that the front-end has not taken; `None` where the request is
    /// this process's to end.
    fn commit_with(&mut self, answer: Option<&Answer>) -> Result<Option<usize>, ChannelError> {
        let is_answer = answer.is_some();
        let Some(mut holder) = self.holder.take() else { return Ok(None) };
        let (state, fds) = match self.export() {
            Ok(exported) => exported,
            Err(why) => {
                warn!("this daemon is not left with its supervisor: {why}");
                self.holder = Some(holder);
                return Ok(None);
            }
        };
        let unsent = self.connection.as_ref().map_or(&[][..], |connection| connection.channel.unsent());
        match holder.commit(state, &fds, unsent, answer) {
            Ok(unsent) => {
                self.holder = Some(holder);
                Ok(Some(unsent))
            }
            Err(error) => {
                self.lose_holder(&error);
                match error.kind() {
                    // Nobody has read it.
                    std::io::ErrorKind::BrokenPipe => Ok(None),
                    // Whether the request is answered is not known: better none than two.
                    _ if is_answer => Err(error.into()),
                    _ => Ok(None),
                }
            }
        }
    }

    pub(super) fn lose_holder(&mut self, error: &std::io::Error) {
        warn!("the supervisor is gone, this daemon goes on without one: {error}");
        self.holder = None;
        // From here on whoever wants to end this daemon has to tell it directly.
        if let Err(error) = self.blocked.thread_unblock() {
            warn!("signals stay blocked: {error}");
        }
    }

    /// Ends a request with its reply: by the supervisor where there is one.
    pub(super) fn conclude(&mut self, reply: Vec<u8>) -> Result<(), Ended> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let answer = Answer { connection: connection.channel.id(), reply };
        let unsent = self.commit_with(Some(&answer))?;
        let Some(connection) = &mut self.connection else { return Ok(()) };
        match unsent {
            Some(unsent) => connection.channel.sent(&answer.reply, unsent),
            None => connection.channel.send(&answer.reply)?,
        }
        Ok(())
    }

    /// Sends what is left of replies; whether all has gone.
    pub(super) fn flush(&mut self) -> Result<bool, Ended> {
        let Some(connection) = &mut self.connection else { return Ok(false) };
        if self.holder.is_none() || connection.channel.unsent().is_empty() {
            return Ok(connection.channel.flush()?);
        }
        self.conclude(Vec::new())?;
        Ok(self.connection.as_ref().is_some_and(|connection| connection.channel.unsent().is_empty()))
    }

    /// Takes a client of the control socket.
    pub(super) fn accept_client(&mut self) -> std::io::Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        let client = match control.accept() {
            Ok(client) => client,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                warn!("accepting a client of the control socket failed: {error}");
                std::thread::sleep(Duration::from_millis(10));
                return Ok(());
            }
        };
        if let Err(stranger) = check_user(&client) {
            let why = format!("{stranger} may not control this daemon");
            warn!("{why}");
            answer(&client, &Reply::Refused(why));
            return Ok(());
        }
        // The oldest has had its time.
        if self.clients.len() >= CLIENTS
            && let Some(oldest) = self.clients.pop_front()
        {
            self.poller.remove(&oldest)?;
        }
        self.poller.add(&client, EventFlags::IN | EventFlags::RDHUP, Token::Client)?;
        self.clients.push_back(client);
        Ok(())
    }

    /// Answers the clients that have said something.
    pub(super) fn serve_clients(&mut self) -> Result<Option<End>, ServerError> {
        for _ in 0..self.clients.len() {
            let Some(client) = self.clients.pop_front() else { break };
            if !is_readable(&client) {
                self.clients.push_back(client);
                continue;
            }
            self.poller.remove(&client)?;
            match read(&client) {
                Ok(Request::Status) => answer(&client, &Reply::Status(self.status())),
                Ok(Request::Limits(change)) => {
                    self.change_limits(change)?;
                    answer(&client, &Reply::Limits(self.limits()));
                }
                Ok(Request::TakeOver { formats, program }) => {
                    if self.hand_over(&client, &formats, &program)? {
                        return Ok(Some(End::GivenAway));
                    }
                }
                // It went away, or speaks something else.
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Gives everything to the process behind `client`. Whether that happened.
    fn hand_over(
        &mut self,
        client: &std::os::unix::net::UnixStream,
        formats: &[u32],
        program: &str,
    ) -> Result<bool, ServerError> {
        let refuse = |why: String| {
            warn!("not handed over to {program}: {why}");
            answer(client, &Reply::Refused(why));
            Ok(false)
        };
        if !formats.contains(&FORMAT) {
            return refuse(format!(
                "this daemon writes state of format {FORMAT}, the new program reads {formats:?}"
            ));
        }
        let offered = {
            let (state, fds) = match self.export() {
                Ok(exported) => exported,
                Err(why) => return refuse(why),
            };
            let offer = Offer {
                pid: getpid().as_raw_nonzero().get(),
                supervised: self.holder.is_some(),
                fds: fds.iter().map(|(id, _)| *id).collect(),
                state,
            };
            let fds: Vec<_> = fds.into_iter().map(|(_, fd)| fd).collect();
            handover::offer(client, offer, &fds, &self.signals)
        };
        if let Err(why) = offered {
            warn!("not handed over to {program}: {why}");
            return Ok(false);
        }
        let gone = self.stop_and_go(client, program).unwrap_or_else(|error| {
            // The new process may have everything: nothing is cleaned up.
            error!(target: logging::END, "the hand-over failed: {}", volt_net::error_chain(&error));
            logging::exit(1)
        });
        if gone {
            info!(target: logging::END, "handed over to {program}");
        } else {
            warn!("{program} went away in the last moment: this daemon goes on");
            self.resume_after_refusal()?;
        }
        Ok(gone)
    }

    /// The last steps. Whether the new process has been told to go.
    fn stop_and_go(
        &mut self,
        client: &std::os::unix::net::UnixStream,
        program: &str,
    ) -> Result<bool, ServerError> {
        let mut broken = Vec::new();
        if let Some(connection) = &mut self.connection {
            connection.session.pause(&mut self.device)?;
            broken = connection.session.broken();
        }
        let last = Last { leftover: self.device.leftover(), broken };
        if handover::send_last(client, &last).is_err() {
            return Ok(false);
        }
        match self.holder.as_ref().map(|holder| holder.hand_over(client, program)) {
            Some(Ok(())) => return Ok(false),
            Some(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => self.lose_holder(&error),
            Some(Err(error)) => {
                // It may have told the other one to go. This process must not touch anything any more.
                warn!(target: logging::END, "the supervisor ended during the hand-over: {error}");
                return Ok(true);
            }
            None => {}
        }
        Ok(handover::send_go(client).is_ok())
    }

    fn resume_after_refusal(&mut self) -> Result<(), ServerError> {
        if let Some(connection) = &mut self.connection {
            connection.session.resume(&mut self.device);
            self.pending.messages = true;
        }
        Ok(())
    }

    /// Puts other rate limits in force. They are the next process's too, before anybody is told that they are this one's.
    fn change_limits(&mut self, change: LimitsChange) -> Result<(), ServerError> {
        if let Some(connection) = &mut self.connection {
            connection.session.pause(&mut self.device)?;
        }
        self.device.set_limits(self.device.limits().changed(change));
        if let Some(connection) = &mut self.connection {
            connection.session.resume(&mut self.device);
        }
        // Not before: a frame that waited has gone to the guest now, and must not be the next process's too.
        self.commit();
        info!("{}: limits changed to {}", self.device.port_name(), self.limits());
        Ok(())
    }

    fn limits(&self) -> Value {
        let limits = self.device.limits();
        json!({ "rx_rate": limits.rx.to_string(), "tx_rate": limits.tx.to_string() })
    }

    fn status(&self) -> Value {
        let front_end = self.connection.as_ref().map(|connection| {
            let session = &connection.session;
            let (bytes, regions) = session.memory_size();
            json!({
                "features": session.acked().map(|acked| acked.to_string()),
                "memory_bytes": bytes,
                "memory_regions": regions,
                "serving_pairs": session.serving(),
                "broken_vrings": session.broken(),
            })
        });
        let config = self.device.config();
        json!({
            "program": program(),
            "pid": getpid().as_raw_nonzero().get(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "supervised": self.holder.is_some(),
            "restarts": self.restarts,
            "take_overs": self.take_overs,
            "interface": self.device.port_name(),
            "endpoint": self.endpoint.describe(),
            "offered_mac": config.mac.to_string(),
            "queue_pairs": self.device.pairs(),
            "limits": self.limits(),
            "busy_poll_us": self.device.busy_poll(),
            "front_end": front_end,
            "counters": (0..self.device.pairs()).map(|pair| self.counters(pair)).collect::<Vec<_>>(),
        })
    }

    fn counters(&self, pair: usize) -> Value {
        let fields = self.device.counters(pair).fields().map(|(name, count)| (name.to_owned(), count.into()));
        [("pair".to_owned(), pair.into())].into_iter().chain(fields).collect::<serde_json::Map<_, _>>().into()
    }
}

fn is_readable(client: &std::os::unix::net::UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&now)), Ok(1))
}
