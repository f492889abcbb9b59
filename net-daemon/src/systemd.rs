//! systemd's descriptor store, where a supervisor keeps its state for the unit's next start (`sd_notify(3)`,
//! `FDSTORE=1`; `sd_listen_fds(3)`).
//!
//! Each descriptor is stored under its name in the state. The state itself is in a memfd that is stored once.
//! It has two halves, written in turn, so that one of them is complete whenever this process dies.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use log::{info, warn};
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
use crate::launch::{Given, Inheritance};
use crate::state::DaemonState;

/// Name of the memfd with the state.
const STATE: &str = "volt-state";
/// Size of one of its halves.
const HALF: u64 = 1 << 20;
/// Offset of a byte after both halves. It is 1 if a request was read from its connection, but is not in the
/// state.
const IN_REQUEST: u64 = 2 * HALF;
/// Sequence number, length, checksum: 8 bytes each.
const HEADER: usize = 24;
/// Longest time for systemd to read its messages.
const BARRIER: Duration = Duration::from_secs(1);
/// First descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// The contents of one half of the memfd.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    state: Box<RawValue>,
    #[serde(with = "hex")]
    unsent: Vec<u8>,
}

/// The descriptor store of this process's unit.
#[derive(Debug)]
pub(crate) struct Store {
    socket: UnixDatagram,
    memory: OwnedFd,
    stored: BTreeSet<FdId>,
    sequence: u64,
    /// The memfd is stored.
    holds_state: bool,
    ready: bool,
    /// The last state could not be stored.
    unkept: bool,
    /// systemd did not read its messages in time: do not wait for it any more.
    silent: bool,
}

impl Store {
    /// Returns the store, if systemd started this process with access to one.
    pub(crate) fn from_environment() -> io::Result<Option<Store>> {
        let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not block this process for long.
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
            unkept: false,
            silent: false,
        }))
    }

    /// Takes the state of the unit's last run, if it fits this command line; otherwise clears the store. If
    /// what is `given` has a socket, it replaces the stored listener: the unit's socket may have been
    /// recreated since. Its filter replaces the state's.
    pub(crate) fn take(&mut self, cli: &Cli, given: &mut Given) -> Option<Inheritance> {
        let socket = &mut given.socket;
        let mut named = passed();
        if named.is_empty() {
            return None;
        }
        let left = named.remove(STATE).and_then(|memory| Some((read(memory.as_fd())?, memory)));
        let Some(((sequence, Stored { state, unsent }, in_request), memory)) = left else {
            warn!(event = "store_without_state"; "systemd stored descriptors, but no state: starting afresh");
            return self.forget(named.keys());
        };
        let listener = match DaemonState::parse(state.get()) {
            Ok(parsed) if parsed.is_for(cli, socket.as_ref()) => {
                let kept = parsed.kept_options(cli);
                if !kept.is_empty() {
                    let kept = kept.join(", ");
                    warn!(
                        event = "options_kept", options:% = kept;
                        "{kept}: the old values stay in force; systemctl stop and start apply new ones"
                    );
                }
                parsed.endpoint.given_listener()
            }
            Ok(_) => {
                warn!(
                    event = "store_of_other_daemon";
                    "the state that systemd kept is of a daemon with other options: starting afresh"
                );
                return self.forget(named.keys());
            }
            Err(error) => {
                let why = volt_virtio::error_chain(&error);
                warn!(event = "store_unusable"; "the state that systemd kept cannot be used: {why}");
                return self.forget(named.keys());
            }
        };
        if in_request {
            warn!(
                event = "ended_in_request";
                "the last run ended in the middle of a request: its front-end's connection is closed"
            );
        }
        let mut fds: BTreeMap<_, _> =
            named.into_iter().filter_map(|(name, fd)| Some((FdId::from_name(&name)?, fd))).collect();
        (self.memory, self.sequence, self.holds_state) = (memory, sequence, true);
        self.stored = fds.keys().copied().collect();
        if let Some(id) = listener
            && let Some(socket) = socket.take()
        {
            self.remove(&id.name());
            self.stored.remove(&id);
            fds.insert(id, socket);
        }
        let (state, unsent) = (state.get().to_owned(), Some(unsent));
        let (read, drop_connection, filter, last) = (Vec::new(), in_request, given.filter.take(), None);
        Some(Inheritance { state, fds, unsent, read, drop_connection, filter, last })
    }

    /// Removes everything that the unit's last run stored.
    pub(crate) fn forget_all(&mut self) {
        self.forget(passed().keys());
    }

    fn forget<'a>(&mut self, names: impl Iterator<Item = &'a String>) -> Option<Inheritance> {
        self.remove_all(names.cloned().chain([STATE.to_owned()]));
        self.barrier();
        None
    }

    /// Stores the supervisor's state. On a failure, the store keeps no state, and the log says so once.
    pub(crate) fn keep(&mut self, fds: &BTreeMap<FdId, OwnedFd>, state: Option<&RawValue>, unsent: &[u8]) {
        let Some(state) = state else { return };
        let kept = self.pass(fds).and_then(|()| self.write(state, unsent));
        match kept {
            Ok(()) if std::mem::take(&mut self.unkept) => info!(
                event = "store_works_again";
                "systemd keeps the state again"
            ),
            Ok(()) => {}
            Err(error) => self.give_up(&error),
        }
        let old: Vec<_> = self.stored.iter().copied().filter(|id| !fds.contains_key(id)).collect();
        for id in old {
            if !self.remove(&id.name()) {
                break;
            }
            self.stored.remove(&id);
        }
        if !std::mem::replace(&mut self.ready, true) {
            self.tell("READY=1");
        }
    }

    /// Sends systemd the descriptors that it does not have yet, including the memfd.
    fn pass(&mut self, fds: &BTreeMap<FdId, OwnedFd>) -> io::Result<()> {
        // FDPOLL=0: systemd must keep the socket of a connection that has ended for the next worker.
        let store = |name: &str| format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        if !self.holds_state {
            self.notify(&store(STATE), Some(self.memory.as_fd()))?;
            self.holds_state = true;
        }
        let new: Vec<_> = fds.iter().filter(|(id, _)| !self.stored.contains(id)).collect();
        for (id, fd) in &new {
            self.notify(&store(&id.name()), Some(fd.as_fd()))?;
            self.stored.insert(**id);
        }
        if !new.is_empty() {
            self.barrier();
        }
        Ok(())
    }

    /// Removes everything from the store.
    pub(crate) fn clear(&mut self) {
        self.erase();
        let stored = std::mem::take(&mut self.stored).into_iter().map(FdId::name);
        self.remove_all(stored.chain([STATE.to_owned()]));
        self.holds_state = false;
        self.barrier();
    }

    /// Records that a request was read or answered, and is not in the stored state. A next start cannot
    /// continue the connection, unless [`Store::keep`] stores the state first.
    pub(crate) fn begin_request(&mut self) {
        if let Err(error) = write_at(&self.memory, &[1], IN_REQUEST) {
            self.give_up(&error);
        }
    }

    fn write(&mut self, state: &RawValue, unsent: &[u8]) -> io::Result<()> {
        let text = serde_json::to_vec(&Stored { state: state.to_owned(), unsent: unsent.to_owned() })?;
        if text.len() + HEADER > HALF as usize {
            return Err(io::Error::other(format!("it has {} bytes, more than {HALF}", text.len())));
        }
        self.sequence += 1;
        let header = [self.sequence, text.len() as u64, checksum(&text)].map(u64::to_le_bytes).concat();
        let offset = (self.sequence % 2) * HALF;
        write_at(&self.memory, &text, offset + HEADER as u64)?;
        write_at(&self.memory, &header, offset)?;
        write_at(&self.memory, &[0], IN_REQUEST)
    }

    /// Erases the stored state after a failure: a next start must not continue from an outdated one.
    fn give_up(&mut self, why: &io::Error) {
        self.erase();
        if !std::mem::replace(&mut self.unkept, true) {
            warn!(
                event = "store_failed";
                "systemd does not keep the state; a restart of the unit would start afresh: {why}"
            );
        }
    }

    /// Erases the state in the memfd, whether or not systemd still holds the memfd.
    fn erase(&self) {
        for half in [0, HALF] {
            // Needs no new memory once the half has been written, so this does not fail.
            let _ = write_at(&self.memory, &[0; HEADER], half);
        }
    }

    /// Removes descriptors one by one. Stops at the first failure: each further one would have to time out.
    fn remove_all(&mut self, mut names: impl Iterator<Item = String>) {
        names.all(|name| self.remove(&name));
    }

    fn remove(&mut self, name: &str) -> bool {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }

    /// Sends a notification on which no state depends. Returns whether it was sent.
    pub(crate) fn tell(&mut self, text: &str) -> bool {
        let sent = self.notify(text, None);
        sent.inspect_err(|error| self.complain(&error.to_string())).is_ok()
    }

    fn notify(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fd.into_iter().collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        sendmsg(&self.socket, &[io::IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits until systemd has read all messages: it loses descriptors if their sender dies before.
    fn barrier(&mut self) {
        if self.silent {
            return;
        }
        let Ok((read, write)) = pipe_with(PipeFlags::CLOEXEC) else { return };
        let sent = self.notify("BARRIER=1", Some(write.as_fd()));
        drop(write);
        let limit = Timespec::try_from(BARRIER).ok();
        if sent.is_err() || !matches!(poll(&mut [PollFd::new(&read, PollFlags::IN)], limit.as_ref()), Ok(1)) {
            self.complain("systemd does not answer");
        }
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.silent, true) {
            warn!(event = "systemd_not_told"; "systemd may have missed a notification of this unit: {why}");
        }
    }
}

fn write_at(memory: &OwnedFd, bytes: &[u8], offset: u64) -> io::Result<()> {
    match pwrite(memory, bytes, offset)? {
        count if count == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Returns the descriptors from systemd's store, by name. Those of a socket unit come before them, and the
/// command line names them.
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

/// Reads the newer complete half. Returns its sequence number, its contents, and whether a request began
/// after it was written.
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

/// FNV-1a. Detects a half that was not written completely.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(socket: UnixDatagram) -> Store {
        Store {
            socket,
            memory: memfd_create("test", MemfdFlags::CLOEXEC).unwrap(),
            stored: BTreeSet::new(),
            sequence: 0,
            holds_state: true,
            ready: true,
            unkept: false,
            silent: false,
        }
    }

    fn state(text: &str) -> Box<RawValue> {
        serde_json::value::to_raw_value(text).unwrap()
    }

    #[test]
    fn a_half_that_was_being_written_does_not_count() {
        let (socket, _theirs) = UnixDatagram::pair().unwrap();
        let mut store = store(socket);
        assert!(read(store.memory.as_fd()).is_none());
        for number in 1..4 {
            store.write(&state("a state"), &[number]).unwrap();
            let (sequence, stored, in_request) = read(store.memory.as_fd()).unwrap();
            assert_eq!((sequence, stored.unsent, in_request), (u64::from(number), vec![number], false));
            store.begin_request();
            assert!(read(store.memory.as_fd()).unwrap().2);
        }
        // The third is in the second half.
        pwrite(&store.memory, b"x", HALF + HEADER as u64).unwrap();
        assert_eq!(read(store.memory.as_fd()).unwrap().0, 2);
    }

    /// A state that cannot be stored erases the older one. The next state is stored again.
    #[test]
    fn a_state_that_cannot_be_kept_leaves_none() {
        let (socket, theirs) = UnixDatagram::pair().unwrap();
        let mut store = store(socket);
        let (short, long) = (state("a state"), state(&"x".repeat(HALF as usize)));
        let fds = BTreeMap::new();
        let kept =
            |store: &Store| read(store.memory.as_fd()).map(|(_, stored, _)| stored.state.get().to_owned());
        for _ in 0..3 {
            store.keep(&fds, Some(&short), &[]);
            store.keep(&fds, Some(&short), &[]);
            assert_eq!(kept(&store).as_deref(), Some(short.get()));
            store.keep(&fds, Some(&long), &[]);
            assert_eq!(kept(&store), None);
            assert!(store.unkept);
        }
        store.keep(&fds, Some(&short), &[]);
        assert!(!store.unkept && kept(&store).is_some());
        // A descriptor that systemd does not accept erases the state, too.
        drop(theirs);
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let fds = BTreeMap::from([(FdId::fresh(), fd)]);
        store.keep(&fds, Some(&short), &[]);
        assert_eq!((kept(&store), store.stored.len()), (None, 0));
        // `clear` erases the state even if systemd does not receive the message.
        store.keep(&BTreeMap::new(), Some(&short), &[]);
        assert!(kept(&store).is_some());
        store.clear();
        assert_eq!(kept(&store), None);
    }
}
