//! Live state as data: one process writes it, another reads it.
//!
//! A state is one JSON document and the open descriptors that it names. Each part of the daemon has a
//! `...State` structure, with an `export` and an `import`. Descriptors pass through [`Exporter`] and
//! [`Importer`]. A descriptor gets its number ([`FdId`]) once and keeps it from process to process, so that a
//! holder needs to be sent new descriptors only. Hand-over, recovery after a crash and systemd's descriptor
//! store use states.
//!
//! A state does not contain guest memory: a ring continues at its used index at that time.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use volt_virtio::features::{Class, Features};

use crate::shared_words::WordsError;

pub mod transfer;

/// Version of a state's format: see `docs/reference/state-formats.md`. A program reads all known formats, and
/// writes the newest one that the reader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Format(u32);

impl Format {
    /// All formats that this program knows, the newest last. From format 2 on, counters are in shared memory.
    /// From format 3 on, a state can have a filter, and from format 4 on a peer's socket or
    /// AF_XDP.
    pub const ALL: [Format; 4] = [Format(1), Format(2), Format(3), Format(4)];
    /// The newest format that this program reads.
    pub const NEWEST: Format = Format(4);

    /// Returns the newest format that this program and a reader of `theirs` know.
    pub fn in_common(theirs: &[Format]) -> Option<Format> {
        Format::ALL.into_iter().rev().find(|format| theirs.contains(format))
    }

    /// Whether this program knows the format.
    pub fn is_known(self) -> bool {
        Format::ALL.contains(&self)
    }

    /// Whether the state can have a filter. A program that knows no such format would pass all frames.
    pub fn has_filter(self) -> bool {
        self >= Format(3)
    }

    /// Whether the port can be a peer's socket or an interface by AF_XDP. An older program knows no such
    /// port.
    pub fn has_recent_ports(self) -> bool {
        self >= Format(4)
    }

    /// Returns the format for a state with or without a filter and a recent kind of port, which older
    /// programs read, too, if they can.
    #[must_use]
    pub fn with_only(self, filter: bool, recent_port: bool) -> Format {
        match (filter, recent_port) {
            (_, true) => self,
            (true, false) => self.min(Format(3)),
            (false, false) => self.min(Format(2)),
        }
    }

    /// Whether the state names shared memory for counters instead of containing them.
    pub fn has_counter_memory(self) -> bool {
        self >= Format(2)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a descriptor within a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdId(u64);

static NEXT: AtomicU64 = AtomicU64::new(1);

impl FdId {
    /// Returns a number that no other descriptor of this process has.
    pub fn fresh() -> FdId {
        FdId(NEXT.fetch_add(1, Relaxed))
    }

    /// Returns the number as text, for holders that name descriptors by text.
    pub fn name(self) -> String {
        format!("volt-fd-{}", self.0)
    }

    /// Parses a text of [`FdId::name`].
    pub fn from_name(name: &str) -> Option<FdId> {
        name.strip_prefix("volt-fd-")?.parse().ok().map(FdId)
    }
}

/// A descriptor with its number in a state.
#[derive(Debug)]
pub struct Numbered<T> {
    id: FdId,
    fd: T,
}

impl<T: AsFd> Numbered<T> {
    /// Gives a new number to a descriptor.
    pub fn fresh(fd: T) -> Numbered<T> {
        Numbered { id: FdId::fresh(), fd }
    }

    /// Wraps a descriptor that has the number `id` already.
    pub fn known(id: FdId, fd: T) -> Numbered<T> {
        Numbered { id, fd }
    }

    /// Returns its number.
    pub fn id(&self) -> FdId {
        self.id
    }

    /// Adds it to a state. Returns its name in the state.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> FdId {
        out.fd(self.id, &self.fd)
    }

    /// Returns the descriptor alone.
    pub fn into_inner(self) -> T {
        self.fd
    }
}

impl<T> Deref for Numbered<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.fd
    }
}

/// The reason why a state cannot be taken over.
#[derive(Debug, Error)]
pub enum StateError {
    /// It is not JSON, or has another structure.
    #[error("the state does not have the structure of its format")]
    Shape(#[from] serde_json::Error),
    /// A format that this program does not know.
    #[error("the state has format {0}, and this program reads 1 to {newest}", newest = Format::NEWEST)]
    Format(Format),
    /// A descriptor was not passed along.
    #[error("the state names descriptor {}, which was not passed with it", .0.0)]
    Descriptor(FdId),
    /// Features that a guest uses and this program lacks.
    #[error("the guest uses features that this program does not offer: {}", .0.named(Class::Net))]
    Features(Features),
    /// Its parts contradict each other.
    #[error("the state contradicts itself: {0}")]
    Contradiction(&'static str),
    /// Counters.
    #[error("counters of the state")]
    Counters(#[source] WordsError),
    /// Frames on their way.
    #[error("frames of the state on their way")]
    Frames(#[source] WordsError),
    /// Guest memory.
    #[error("guest memory of the state")]
    Memory(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A system call failed.
    #[error("{0}")]
    System(&'static str, #[source] std::io::Error),
}

/// Collects the descriptors of a state during export.
#[derive(Debug, Default)]
pub struct Exporter<'a> {
    fds: Vec<(FdId, BorrowedFd<'a>)>,
}

impl<'a> Exporter<'a> {
    /// Adds a descriptor. Returns its name in the state.
    pub fn fd(&mut self, id: FdId, fd: &'a impl AsFd) -> FdId {
        self.fds.push((id, fd.as_fd()));
        id
    }

    /// Returns all descriptors of the state.
    pub fn into_fds(self) -> Vec<(FdId, BorrowedFd<'a>)> {
        self.fds
    }
}

/// Hands out the descriptors of a state during import.
#[derive(Debug, Default)]
pub struct Importer {
    fds: BTreeMap<FdId, OwnedFd>,
}

impl Importer {
    /// Creates it for the descriptors that came with a state.
    pub fn new(fds: BTreeMap<FdId, OwnedFd>) -> Importer {
        if let Some((last, _)) = fds.last_key_value() {
            NEXT.fetch_max(last.0.saturating_add(1), Relaxed);
        }
        Importer { fds }
    }

    /// Takes a descriptor that the state names.
    ///
    /// # Errors
    ///
    /// Fails if it did not come, or was taken already.
    pub fn take(&mut self, id: FdId) -> Result<OwnedFd, StateError> {
        self.fds.remove(&id).ok_or(StateError::Descriptor(id))
    }
}

/// Bytes in a state, as hexadecimal text.
pub mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes bytes as hexadecimal text.
    ///
    /// # Errors
    ///
    /// Fails if the serializer fails.
    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// Reads bytes from hexadecimal text.
    ///
    /// # Errors
    ///
    /// Fails if the text is not pairs of hexadecimal digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        match digits {
            Some(digits) if digits.len() % 2 == 0 => {
                Ok(digits.as_chunks().0.iter().map(|[high, low]| high << 4 | low).collect())
            }
            _ => Err(D::Error::custom("not pairs of hexadecimal digits")),
        }
    }
}

/// Paths in a state: as text, or, if not UTF-8, as an object with the bytes.
pub mod path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Other {
            #[serde(with = "super::hex")]
            bytes: Vec<u8>,
        },
    }

    /// Writes a path.
    ///
    /// # Errors
    ///
    /// Fails if the serializer fails.
    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        let text = path.to_str().map(|text| Form::Text(text.to_owned()));
        text.unwrap_or_else(|| Form::Other { bytes: path.as_os_str().as_bytes().to_vec() }).serialize(to)
    }

    /// Reads a path.
    ///
    /// # Errors
    ///
    /// Fails if it is neither text nor such an object.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(match Form::deserialize(from)? {
            Form::Text(text) => text.into(),
            Form::Other { bytes } => OsString::from_vec(bytes).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct At(#[serde(with = "path")] PathBuf);

    #[test]
    fn every_path_can_be_written_and_read() {
        // Older programs write and read text.
        assert_eq!(serde_json::to_string(&At("/run/ä".into())).unwrap(), "\"/run/ä\"");
        for name in [&b"/run/\xff\xfe"[..], b"/run/text", b""] {
            let at = At(OsStr::from_bytes(name).into());
            let text = serde_json::to_string(&at).unwrap();
            assert_eq!(serde_json::from_str::<At>(&text).unwrap(), at, "{text}");
        }
        assert!(serde_json::from_str::<At>("7").is_err());
    }
}
