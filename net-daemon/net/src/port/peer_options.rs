//! How to reach a peer: `PATH[,listen]` of a stream, `PATH,local=PATH[,vfkit]` of datagrams.

use std::io;
use std::path::{Path, PathBuf, absolute};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text does not say how to reach a peer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PeerOptionError {
    /// There is no path.
    #[error("the path of the peer's socket comes first")]
    NoPath,
    /// An unknown word of a stream's.
    #[error("'{0}' is unknown: only 'listen' can follow the path (a path cannot contain a comma)")]
    Stream(String),
    /// An unknown word of datagrams'.
    #[error("'{0}' is unknown: 'local=PATH' and 'vfkit' can follow the path (a path cannot contain a comma)")]
    Datagram(String),
    /// Datagrams need a path for answers.
    #[error("add ',local=PATH', the path of an own socket, to which the peer sends")]
    NoLocal,
    /// A socket cannot be its own peer.
    #[error("the peer's path and 'local=' must differ")]
    Same,
}

/// A peer behind a stream socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// The path of the socket.
    #[serde(with = "crate::state::path")]
    pub path: PathBuf,
    /// Whether the peer connects.
    pub listen: bool,
}

/// A peer behind a datagram socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramOptions {
    /// The path of the peer's socket.
    #[serde(with = "crate::state::path")]
    pub path: PathBuf,
    /// The path of the own socket.
    #[serde(with = "crate::state::path")]
    pub local: PathBuf,
    /// Whether to begin with the datagram that programs in vfkit's place send.
    pub vfkit: bool,
}

/// How to reach a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerOptions {
    /// By a stream.
    Stream(StreamOptions),
    /// By datagrams.
    Datagram(DatagramOptions),
}

impl FromStr for StreamOptions {
    type Err = PeerOptionError;

    fn from_str(text: &str) -> Result<StreamOptions, PeerOptionError> {
        let (path, words) = split(text)?;
        let mut listen = false;
        for word in words {
            match word {
                "listen" => listen = true,
                _ => return Err(PeerOptionError::Stream(word.to_owned())),
            }
        }
        Ok(StreamOptions { path, listen })
    }
}

impl FromStr for DatagramOptions {
    type Err = PeerOptionError;

    fn from_str(text: &str) -> Result<DatagramOptions, PeerOptionError> {
        let (path, words) = split(text)?;
        let (mut local, mut vfkit) = (None, false);
        for word in words {
            match word.split_once('=') {
                None if word == "vfkit" => vfkit = true,
                Some(("local", path)) if !path.is_empty() => local = Some(PathBuf::from(path)),
                _ => return Err(PeerOptionError::Datagram(word.to_owned())),
            }
        }
        let local = local.ok_or(PeerOptionError::NoLocal)?;
        if local == path {
            return Err(PeerOptionError::Same);
        }
        Ok(DatagramOptions { path, local, vfkit })
    }
}

fn split(text: &str) -> Result<(PathBuf, impl Iterator<Item = &str>), PeerOptionError> {
    let mut words = text.split(',');
    let path = words.next().filter(|path| !path.is_empty()).ok_or(PeerOptionError::NoPath)?;
    Ok((path.into(), words))
}

impl PeerOptions {
    /// Returns the path of the socket of the peer, or of the one that listens for it.
    pub fn path(&self) -> &Path {
        match self {
            PeerOptions::Stream(stream) => &stream.path,
            PeerOptions::Datagram(datagram) => &datagram.path,
        }
    }

    /// Returns the path of the socket that this program creates, if it creates one.
    pub fn own_path(&self) -> Option<&Path> {
        match self {
            PeerOptions::Stream(stream) => stream.listen.then_some(&*stream.path),
            PeerOptions::Datagram(datagram) => Some(&datagram.local),
        }
    }

    /// Returns the name of the port: the file name of [`PeerOptions::path`].
    pub fn name(&self) -> String {
        self.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Makes the paths absolute, for a process with another working directory.
    ///
    /// # Errors
    ///
    /// Fails if this process has no working directory.
    pub fn absolute(self) -> io::Result<PeerOptions> {
        Ok(match self {
            PeerOptions::Stream(StreamOptions { path, listen }) => {
                PeerOptions::Stream(StreamOptions { path: absolute(path)?, listen })
            }
            PeerOptions::Datagram(DatagramOptions { path, local, vfkit }) => {
                PeerOptions::Datagram(DatagramOptions {
                    path: absolute(path)?,
                    local: absolute(local)?,
                    vfkit,
                })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let stream = |text: &str| text.parse::<StreamOptions>();
        assert_eq!(stream("/run/p").unwrap(), StreamOptions { path: "/run/p".into(), listen: false });
        assert!(stream("p,listen").unwrap().listen);
        assert_eq!(stream(""), Err(PeerOptionError::NoPath));
        assert_eq!(stream("p,local=q"), Err(PeerOptionError::Stream("local=q".into())));
        let datagram = |text: &str| text.parse::<DatagramOptions>();
        let both = DatagramOptions { path: "a".into(), local: "b".into(), vfkit: true };
        assert_eq!(datagram("a,vfkit,local=b").unwrap(), both);
        assert_eq!(datagram("a,vfkit"), Err(PeerOptionError::NoLocal));
        assert_eq!(datagram("a,local=a"), Err(PeerOptionError::Same));
        assert_eq!(datagram("a,local="), Err(PeerOptionError::Datagram("local=".into())));
        assert_eq!(datagram("a,local=b,listen"), Err(PeerOptionError::Datagram("listen".into())));
        assert_eq!(PeerOptions::Datagram(both).name(), "a");
    }
}
