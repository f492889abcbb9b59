//! The size of guest memory: `--mem`.

use std::str::FromStr;

use thiserror::Error;

/// The smallest machine, with room for boot data and the smallest kernels.
const MIN_MEMORY: u64 = 16 << 20;

/// Why a size is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each text says what its variant and fields mean")]
pub enum MemorySizeError {
    #[error("'{0}' is not a size: give a number, then K, M or G, like 512M")]
    Size(String),
    #[error("{0} is too little: a machine needs at least 16M")]
    TooSmall(String),
    #[error("{0} is not a multiple of 4K, the page size")]
    Pages(String),
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    fn from_str(text: &str) -> Result<MemorySize, MemorySizeError> {
        let wrong = || MemorySizeError::Size(text.to_owned());
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match text.get(digits.len()..).unwrap_or_default() {
            "" => 0,
            "k" | "K" => 10,
            "m" | "M" => 20,
            "g" | "G" => 30,
            _ => return Err(wrong()),
        };
        // u64::from_str would accept a sign.
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
        if bytes < MIN_MEMORY {
            return Err(MemorySizeError::TooSmall(text.to_owned()));
        }
        if !bytes.is_multiple_of(4096) {
            return Err(MemorySizeError::Pages(text.to_owned()));
        }
        Ok(MemorySize(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        for (text, bytes) in
            [("16777216", 16 << 20), ("16384K", 16 << 20), ("512m", 512 << 20), ("4G", 4 << 30)]
        {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)));
        }
    }
}
