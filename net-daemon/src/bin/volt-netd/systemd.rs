//! systemd's descriptor store, where a supervisor leaves what it holds for the next start of the unit (`sd_notify(3)`,
//! `FDSTORE=1`; `sd_listen_fds(3)`).
//!
//! Each descriptor is stored under its name in the state. The state itself is in a memfd that is stored once and has two
//! halves, written in turn, so that one of them is whole whenever this process dies.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{pread, pwrite};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volt_net::state::{FdId, hex};

use crate::cli::Cli;
use crate::fds;
use crate::launch::Inheritance;
use crate::state::DaemonState;

/// Name of the memfd with the state.
const STATE: &str = "volt-state";
/// Bytes of one of its halves.
const HALF: u64 = 1 << 20;
/// Where a byte says that a request was taken off its connection and is not in the state: behind both halves.
const IN_REQUEST: u64 = 2 * HALF;
/// Sequence number, length, checksum: 8 bytes each.
const HEADER: usize = 24;
/// How long systemd may take to read what it was sent.
const BARRIER: Duration = Duration::from_secs(1);
/// First descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// What is written into the memfd.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    state: Box<RawValue>,
    #[serde(with = "hex")]
    unsent: Vec<u8>,
}

/// The store of the unit that this process is.
#[derive(Debug)]
pub(crate) struct Store {
    socket: UnixDatagram,
    memory: OwnedFd,
    stored: BTreeSet<FdId>,
    sequence: u64,
    /// The memfd is stored.
    holds_state: bool,
    ready: bool,
    failed: bool,
}

impl Store {
    /// The store, where systemd started this process and says how to reach it.
    pub(crate) fn from_environment() -> io::Result<Option<Store>> {
        let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        let socket = UnixDatagram::unbound()?;
        // Nothing waits for a manager that does not read.
        socket.set_write_timeout(Some(BARRIER))?;
        socket.connect_addr(&address)?;
        let memory = memfd_create(STATE, MemfdFlags::CLOEXEC)?;
        let stored = BTreeSet::new();
        Ok(Some(Store {
            socket,
            memory,
            stored,
            sequence: 0,
            holds_state: false,
            ready: false,
            failed: false,
        }))
    }

    /// What the last run of the unit has left, if it is for this command line. Otherwise nothing of it is kept. Front-ends
    /// are taken from `socket`, where the command line gives one: the unit's socket may have been made anew since.
    pub(crate) fn take(&mut self, cli: &Cli, socket: &mut Option<OwnedFd>) -> Option<Inheritance> {
        let mut named = passed();
        if named.is_empty() {
            return None;
        }
        let left = named.remove(STATE).and_then(|memory| Some((read(memory.as_fd())?, memory)));
        let Some(((sequence, Stored { state, unsent }, in_request), memory)) = left else {
            return self.forget(named.keys());
        };
        let listener = match DaemonState::parse(state.get()) {
            Ok(parsed) if parsed.is_for(cli, socket.as_ref()) => {
                let kept = parsed.kept_options(cli);
                if !kept.is_empty() {
                    warn!("{} stay as they were: systemctl stop and start takes new values", kept.join(", "));
                }
                parsed.endpoint.given_listener()
            }
            Ok(_) => {
                warn!("what systemd kept is of a daemon with other options: starting afresh");
                return self.forget(named.keys());
            }
            Err(error) => {
                warn!("what systemd kept cannot be used: {}", volt_net::error_chain(&error));
                return self.forget(named.keys());
            }
        };
        if in_request {
            warn!("the last run ended in the middle of a request: its front-end's connection is closed");
        }
        let mut fds: BTreeMap<_, _> =
            named.into_iter().filter_map(|(name, fd)| Some((FdId::from_name(&name)?, fd))).collect();
        (self.memory, self.sequence, self.holds_state) = (memory, sequence, true);
        self.stored = fds.keys().copied().collect();
        if let Some(id) = listener
            && let Some(socket) = socket.take()
        {
            self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={}", id.name()), None);
            self.stored.remove(&id);
            fds.insert(id, socket);
        }
        let (state, unsent) = (state.get().to_owned(), Some(unsent));
        Some(Inheritance { state, fds, unsent, read: Vec::new(), drop_connection: in_request, last: None })
    }

    /// Forgets what the last run of the unit has left.
    pub(crate) fn forget_all(&mut self) {
        self.forget(passed().keys());
    }

    fn forget<'a>(&mut self, names: impl Iterator<Item = &'a String>) -> Option<Inheritance> {
        for name in names.map(String::as_str).chain([STATE]) {
            self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        }
        self.barrier();
        None
    }

    /// Keeps what a supervisor holds. Says once when that does not work.
    pub(crate) fn keep(&mut self, fds: &BTreeMap<FdId, OwnedFd>, state: Option<&RawValue>, unsent: &[u8]) {
        let Some(state) = state else { return };
        let new: Vec<_> = fds.iter().filter(|(id, _)| !self.stored.contains(id)).collect();
        if !std::mem::replace(&mut self.holds_state, true) {
            let memory = self.memory.try_clone();
            if let Ok(memory) = memory {
                self.notify(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={STATE}"), Some(memory.as_fd()));
            }
        }
        for (id, fd) in &new {
            // Without polling: a connection that has ended is for the next worker to see.
            self.notify(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={}", id.name()), Some(fd.as_fd()));
        }
        if !new.is_empty() {
            self.barrier();
        }
        if !self.write(state, unsent) {
            // What is stored goes with the state that is stored.
            self.stored.extend(fds.keys());
            return;
        }
        let old: Vec<_> = self.stored.iter().copied().filter(|id| !fds.contains_key(id)).collect();
        for id in old {
            self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={}", id.name()), None);
        }
        self.stored = fds.keys().copied().collect();
        if !std::mem::replace(&mut self.ready, true) {
            self.notify("READY=1", None);
        }
    }

    /// Leaves nothing for a next start.
    pub(crate) fn clear(&mut self) {
        for id in std::mem::take(&mut self.stored) {
            self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={}", id.name()), None);
        }
        self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={STATE}"), None);
        self.holds_state = false;
        self.barrier();
    }

    /// A request has been taken off its connection, and nothing is stored of it: a next start cannot go on with that
    /// connection, unless [`Store::keep`] comes before.
    pub(crate) fn begin_request(&mut self) {
        if let Err(error) = pwrite(&self.memory, &[1], IN_REQUEST) {
            self.complain(&error.to_string());
        }
    }

    /// Whether that worked.
    fn write(&mut self, state: &RawValue, unsent: &[u8]) -> bool {
        let stored = Stored { state: state.to_owned(), unsent: unsent.to_owned() };
        let Ok(text) = serde_json::to_vec(&stored) else { return false };
        if text.len() + HEADER > HALF as usize {
            self.complain("the state is too long");
            return false;
        }
        self.sequence += 1;
        let header = [self.sequence, text.len() as u64, checksum(&text)].map(u64::to_le_bytes).concat();
        let offset = (self.sequence % 2) * HALF;
        let written = pwrite(&self.memory, &text, offset + HEADER as u64)
            .and_then(|_| pwrite(&self.memory, &header, offset))
            .and_then(|_| pwrite(&self.memory, &[0], IN_REQUEST));
        if let Err(error) = &written {
            self.complain(&error.to_string());
        }
        written.is_ok()
    }

    fn notify(&mut self, text: &str, fd: Option<BorrowedFd<'_>>) {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fd.into_iter().collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let bytes = [io::IoSlice::new(text.as_bytes())];
        if let Err(error) = sendmsg(&self.socket, &bytes, &mut control, SendFlags::NOSIGNAL) {
            self.complain(&error.to_string());
        }
    }

    /// Waits until systemd has read everything: descriptors of a process that is dead by then are lost.
    fn barrier(&mut self) {
        if self.failed {
            return;
        }
        let Ok((read, write)) = pipe_with(PipeFlags::CLOEXEC) else { return };
        self.notify("BARRIER=1", Some(write.as_fd()));
        drop(write);
        let limit = Timespec::try_from(BARRIER).ok();
        if !matches!(poll(&mut [PollFd::new(&read, PollFlags::IN)], limit.as_ref()), Ok(1)) {
            self.complain("it does not answer");
        }
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.failed, true) {
            warn!("systemd does not keep the state, a restart of the unit would start afresh: {why}");
        }
    }
}

/// The descriptors that systemd passes from its store, by name. Those of a socket unit come before them, and are the command
/// line's to name.
fn passed() -> BTreeMap<String, OwnedFd> {
    let number = |name| env::var(name).ok()?.parse::<i32>().ok();
    let is_own =
        number("LISTEN_PID").is_some() && number("LISTEN_PID") == i32::try_from(std::process::id()).ok();
    let names = env::var("LISTEN_FDNAMES").ok().filter(|_| is_own).unwrap_or_default();
    let numbers = FIRST..FIRST.saturating_add(number("LISTEN_FDS").unwrap_or(0));
    let named =
        names.split(':').zip(numbers).filter(|(name, _)| *name == STATE || FdId::from_name(name).is_some());
    named.filter_map(|(name, number)| Some((name.to_owned(), fds::take(&[number]).ok()?.pop()?))).collect()
}

/// The newer half that is whole, with its number, and whether a request had begun after it.
fn read(memory: BorrowedFd<'_>) -> Option<(u64, Stored, bool)> {
    let half = |offset: u64| {
        let mut header = [[0; 8]; 3];
        pread(memory, header.as_flattened_mut(), offset).ok().filter(|read| *read == HEADER)?;
        let [sequence, len, sum] = header.map(u64::from_le_bytes);
        let mut text = vec![0; usize::try_from(len).ok().filter(|len| *len < HALF as usize)?];
        pread(memory, text.as_mut_slice(), offset + HEADER as u64).ok().filter(|read| *read == text.len())?;
        let whole = sequence > 0 && checksum(&text) == sum;
        Some((sequence, serde_json::from_slice(whole.then_some(&text[..])?).ok()?))
    };
    let (sequence, stored) =
        [half(0), half(HALF)].into_iter().flatten().max_by_key(|(sequence, _)| *sequence)?;
    let mut byte = [0];
    let in_request = pread(memory, &mut byte, IN_REQUEST).is_ok_and(|read| read == 1) && byte == [1];
    Some((sequence, stored, in_request))
}

/// FNV-1a, against a half that was being written.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_that_was_being_written_does_not_count() {
        let (socket, _theirs) = UnixDatagram::pair().unwrap();
        let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let mut store = Store {
            socket,
            memory,
            stored: BTreeSet::new(),
            sequence: 0,
            holds_state: true,
            ready: true,
            failed: false,
        };
        assert!(read(store.memory.as_fd()).is_none());
        for number in 1..4 {
            let state = RawValue::from_string(format!("{number}")).unwrap();
            store.write(&state, &[number]);
            let (sequence, stored, in_request) = read(store.memory.as_fd()).unwrap();
            assert_eq!((sequence, stored.unsent, in_request), (u64::from(number), vec![number], false));
            store.begin_request();
            assert!(read(store.memory.as_fd()).unwrap().2);
        }
        // The third is in the second half.
        pwrite(&store.memory, b"x", HALF + HEADER as u64).unwrap();
        assert_eq!(read(store.memory.as_fd()).unwrap().0, 2);
    }
}
