//! What a supervisor holds for the next worker: the state, and what was read of the connection since.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde_json::value::RawValue;
use volt_net::state::{FdId, transfer};
use volt_vhost_user::channel::{self, Piece};

use super::Supervisor;
use crate::supervision::{Answer, Bytes, Commit, Order};
use crate::supervisor::worker::Worker;
use crate::systemd::Store;

/// What the last worker has left.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) state: Option<Box<RawValue>>,
    pub(super) fds: BTreeMap<FdId, OwnedFd>,
    /// What the front-end has not taken of replies.
    pub(super) unsent: Vec<u8>,
    /// What was read of the connection since the state was given.
    pub(super) read: Vec<Piece>,
}

impl Supervisor<'_> {
    /// Holds a state, and ends the request that has led to it. Returns the bytes that the front-end has not
    /// taken.
    pub(super) fn commit(&mut self, commit: Commit, fds: Vec<OwnedFd>) -> usize {
        let held = &mut self.held;
        held.fds.extend(commit.new.iter().copied().zip(fds));
        held.fds.retain(|id, _| commit.all.contains(id));
        held.read.clear();
        held.unsent = commit.unsent;
        held.state = Some(commit.state);
        // Every worker commits when it starts: it knows what to leave out.
        self.deaths.deadly.clear();
        self.deaths.bad_request = false;
        self.last = None;
        if let Some(answer) = &commit.answer {
            self.deaths.worked = true;
            self.answer(answer);
        }
        self.store();
        self.observe(&commit.observed);
        self.held.unsent.len()
    }

    /// Reads the connection for the worker, and keeps what comes for the next one.
    pub(super) fn read(&mut self, worker: &Worker, connection: FdId, begun: &[u8]) {
        let piece = match self.held.fds.get(&connection) {
            Some(socket) => channel::read_message(socket, begun),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        };
        // A unit that is killed from here on has taken something that is in no state.
        if piece.as_ref().is_ok_and(|piece| piece.as_ref().is_some_and(|piece| !piece.bytes.is_empty())) {
            self.store.iter_mut().for_each(Store::begin_request);
        }
        let order = match &piece {
            Ok(piece) => Order::Piece(
                piece.as_ref().map(|piece| Bytes { bytes: piece.bytes.clone(), too_many: piece.too_many }),
            ),
            Err(error) => Order::Failed(error.raw_os_error().unwrap_or(0)),
        };
        let piece = piece.ok().flatten().unwrap_or_default();
        let fds: Vec<_> = piece.fds.iter().map(AsFd::as_fd).collect();
        // A worker that is dead needs no answer.
        let _ = transfer::send(&worker.line, &order, &fds);
        if !piece.bytes.is_empty() {
            self.held.read.push(piece);
        }
    }

    fn answer(&mut self, answer: &Answer) {
        self.held.unsent.extend_from_slice(&answer.reply);
        if self.held.unsent.is_empty() {
            return;
        }
        // What of it was sent, a next start could not know before that is stored.
        self.store.iter_mut().for_each(Store::begin_request);
        let Some(connection) = self.held.fds.get(&answer.connection) else { return };
        if channel::send_all(connection, &mut self.held.unsent).is_err() {
            // The worker sees the end of the connection itself.
            self.held.unsent.clear();
        }
    }
}

/// The same bytes and descriptors again.
pub(super) fn copy(piece: &Piece) -> Option<Piece> {
    let fds = piece.fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>().ok()?;
    Some(Piece { bytes: piece.bytes.clone(), fds, too_many: piece.too_many })
}
