//! A disk: `--disk FILE[,ro][,format=raw]`.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// One `--disk` or `--rootfs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image, a raw file or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether the user declared the image as raw, whatever its first bytes look like.
    pub raw: bool,
}

/// Why a disk's options are wrong.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each text says what its variant and fields mean")]
pub enum DiskOptionError {
    #[error("no file is named before '{0}'")]
    NoPath(String),
    #[error("unknown option '{0}': a disk has ro, rw and format=raw (a path cannot contain a comma)")]
    Option(String),
    #[error("format={0}: volt-vmm supports only raw disks; convert the image with 'qemu-img convert -O raw'")]
    Format(String),
}

impl FromStr for DiskConfig {
    type Err = DiskOptionError;

    /// Reads "FILE,option,option".
    fn from_str(text: &str) -> Result<DiskConfig, DiskOptionError> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err(DiskOptionError::NoPath(text.to_owned()));
        }
        let mut disk = DiskConfig { path: PathBuf::from(path), read_only: false, raw: false };
        for option in parts {
            match option {
                "ro" => disk.read_only = true,
                "rw" => disk.read_only = false,
                "format=raw" => disk.raw = true,
                other => match other.strip_prefix("format=") {
                    Some(format) => return Err(DiskOptionError::Format(format.to_owned())),
                    None => return Err(DiskOptionError::Option(other.to_owned())),
                },
            }
        }
        Ok(disk)
    }
}
