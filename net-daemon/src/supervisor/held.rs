//! The state that a supervisor holds for the next worker, and the messages read from the connection since.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde_json::value::RawValue;
use volt_net::state::{FdId, transfer};
use volt_vhost_user::channel::{self, Piece};

use super::Supervisor;
use crate::filter::Wanted;
use crate::supervision::{Answer, Bytes, Commit, Order};
use crate::supervisor::worker::Worker;
use crate::systemd::Store;

/// The last worker's state.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) state: Option<Box<RawValue>>,
    pub(super) fds: BTreeMap<FdId, OwnedFd>,
    /// The bytes of replies that the front-end has not accepted.
    pub(super) unsent: Vec<u8>,
    /// The bytes read from the connection since the last commit.
    pub(super) read: Vec<Piece>,
    /// The command line's filter, until it is in the state.
    pub(super) filter: Option<Wanted>,
}

impl Supervisor<'_> {
    /// Takes a commit, and sends the reply to its request. Returns the number of bytes that the front-end has
    /// not accepted.
    pub(super) fn commit(&mut self, commit: Commit, fds: Vec<OwnedFd>) -> usize {
        let held = &mut self.held;
        held.fds.extend(commit.new.iter().copied().zip(fds));
        held.fds.retain(|id, _| commit.all.contains(id));
        held.read.clear();
        held.unsent = commit.unsent;
        held.state = Some(commit.state);
        held.filter = None;
        // Every worker commits when it starts, so this one has already got the deadly chains.
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

    /// Reads from the connection for the worker, and keeps the bytes for the next worker.
    pub(super) fn read(&mut self, worker: &Worker, connection: FdId, begun: &[u8]) {
        let piece = match self.held.fds.get(&connection) {
            Some(socket) => channel::read_message(socket, begun),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        };
        // If the unit is killed from now on, these bytes are in no stored state.
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
        // A dead worker needs no answer.
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
        // Until the state is stored again, a next start could not know how many bytes were sent.
        self.store.iter_mut().for_each(Store::begin_request);
        let Some(connection) = self.held.fds.get(&answer.connection) else { return };
        if channel::send_all(connection, &mut self.held.unsent).is_err() {
            // The worker notices the end of the connection itself.
            self.held.unsent.clear();
        }
    }
}

/// Copies a piece, with duplicates of its descriptors.
pub(super) fn copy(piece: &Piece) -> Option<Piece> {
    let fds = piece.fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>().ok()?;
    Some(Piece { bytes: piece.bytes.clone(), fds, too_many: piece.too_many })
}
