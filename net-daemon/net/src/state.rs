//! Live state as data: everything that a daemon holds, written out by one process and read back by another.
//!
//! A state is one JSON document and the open descriptors that it names. Each part of the daemon has a
//! `...State` structure beside it, with an `export` and an `import`; [`Exporter`] and [`Importer`] are what
//! descriptors go through. A descriptor's number ([`FdId`]) is given once and stays with it from process to
//! process, so that a holder can be sent only what it has not got yet. Hand-over, recovery after a crash and
//! systemd's descriptor store all use this.
//!
//! What lies in the guest's memory is not part of it: a ring continues at its used index, wherever that is by
//! then.

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

/// Version of a state's format: see `docs/continuity.md`. A program reads all of them, and writes the newest
/// that the reader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Format(u32);

impl Format {
    /// All that this program knows, the newest last. In 2, counters are in memory of their own.
    pub const ALL: [Format; 2] = [Format(1), Format(2)];
    /// What this program reads by itself later.
    pub const NEWEST: Format = Format(2);

    /// The newest that this program and one that reads `theirs` know.
    pub fn in_common(theirs: &[Format]) -> Option<Format> {
        Format::ALL.into_iter().rev().find(|format| theirs.contains(format))
    }

    /// Whether it is one that this program knows.
    pub fn is_known(self) -> bool {
        Format::ALL.contains(&self)
    }

    /// Whether counters are in memory that the state names, and not in the state.
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
    /// A number that no other descriptor of this process has.
    pub fn fresh() -> FdId {
        FdId(NEXT.fetch_add(1, Relaxed))
    }

    /// The number as text, for holders that name descriptors by text.
    pub fn name(self) -> String {
        format!("volt-fd-{}", self.0)
    }

    /// The number that [`FdId::name`] made `name` of.
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
    /// A descriptor that is new.
    pub fn fresh(fd: T) -> Numbered<T> {
        Numbered { id: FdId::fresh(), fd }
    }

    /// One that has the number `id` already.
    pub fn known(id: FdId, fd: T) -> Numbered<T> {
        Numbered { id, fd }
    }

    /// Its number.
    pub fn id(&self) -> FdId {
        self.id
    }

    /// Adds it to a state, which names it by what is returned.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> FdId {
        out.fd(self.id, &self.fd)
    }

    /// The descriptor alone.
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

/// Why a state cannot be taken over.
#[derive(Debug, Error)]
pub enum StateError {
    /// It is no JSON, or not of this shape.
    #[error("the state is not of the shape that its format has")]
    Shape(#[from] serde_json::Error),
    /// A version from another time.
    #[error("the state has format {0}, and this program reads 1 to {newest}", newest = Format::NEWEST)]
    Format(Format),
    /// A descriptor did not come with it.
    #[error("the state names descriptor {}, which did not come with it", .0.0)]
    Descriptor(FdId),
    /// Features that a guest uses and this program lacks.
    #[error("the guest uses features that this program does not offer: {}", .0.named(Class::Net))]
    Features(Features),
    /// Its parts do not go together.
    #[error("the state contradicts itself: {0}")]
    Contradiction(&'static str),
    /// Counters.
    #[error("counters of the state")]
    Counters(#[source] WordsError),
    /// Guest memory.
    #[error("guest memory of the state")]
    Memory(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system refuses.
    #[error("{0}")]
    System(&'static str, #[source] std::io::Error),
}

/// Collects the descriptors of a state while it is written.
#[derive(Debug, Default)]
pub struct Exporter<'a> {
    fds: Vec<(FdId, BorrowedFd<'a>)>,
}

impl<'a> Exporter<'a> {
    /// Adds a descriptor; the state names it by what is returned.
    pub fn fd(&mut self, id: FdId, fd: &'a impl AsFd) -> FdId {
        self.fds.push((id, fd.as_fd()));
        id
    }

    /// All descriptors of the state.
    pub fn into_fds(self) -> Vec<(FdId, BorrowedFd<'a>)> {
        self.fds
    }
}

/// Hands out the descriptors of a state while it is read.
#[derive(Debug, Default)]
pub struct Importer {
    fds: BTreeMap<FdId, OwnedFd>,
}

impl Importer {
    /// Over the descriptors that came with a state.
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
    /// When it did not come, or was taken already.
    pub fn take(&mut self, id: FdId) -> Result<OwnedFd, StateError> {
        self.fds.remove(&id).ok_or(StateError::Descriptor(id))
    }
}

/// Bytes in a state: hexadecimal text.
pub mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes bytes as text.
    ///
    /// # Errors
    ///
    /// The serializer's.
    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// Reads bytes from text.
    ///
    /// # Errors
    ///
    /// For text that is not pairs of hexadecimal digits.
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

/// Paths in a state: text, or for one that is no UTF-8 an object with its bytes.
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
    /// The serializer's.
    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        let text = path.to_str().map(|text| Form::Text(text.to_owned()));
        text.unwrap_or_else(|| Form::Other { bytes: path.as_os_str().as_bytes().to_vec() }).serialize(to)
    }

    /// Reads a path.
    ///
    /// # Errors
    ///
    /// For what is neither of the two.
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
        // As text it is what older programs write and read.
        assert_eq!(serde_json::to_string(&At("/run/ä".into())).unwrap(), "\"/run/ä\"");
        for name in [&b"/run/\xff\xfe"[..], b"/run/text", b""] {
            let at = At(OsStr::from_bytes(name).into());
            let text = serde_json::to_string(&at).unwrap();
            assert_eq!(serde_json::from_str::<At>(&text).unwrap(), at, "{text}");
        }
        assert!(serde_json::from_str::<At>("7").is_err());
    }
}
