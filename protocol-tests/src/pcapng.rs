//! A pcapng parser written from the draft (draft-ietf-opsawg-pcapng): a second opinion on the writer.

use std::fmt;

/// A file with one section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// Names of its interfaces.
    pub interfaces: Vec<String>,
    /// Its frames, in the file's order.
    pub frames: Vec<Captured>,
    /// For each Interface Statistics Block: the interface, frames received, frames dropped.
    pub statistics: Vec<(u32, u64, u64)>,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Number of its interface.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Length of the whole frame.
    pub len: u32,
    /// The captured bytes.
    pub bytes: Vec<u8>,
    /// Its direction: inbound or outbound.
    pub inbound: bool,
    /// Frames lost before it.
    pub lost: u64,
    /// Its comments.
    pub comments: Vec<String>,
}

/// A violation of the draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Offset in the file.
    pub at: usize,
    /// The error.
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.at, self.what)
    }
}

impl std::error::Error for Malformed {}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Two words, the upper one first.
fn time_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32_at(bytes, at)?) << 32 | u64::from(u32_at(bytes, at + 4)?))
}

/// Returns codes and values up to the end of options, which must exist and come last.
fn options(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut options = Vec::new();
    loop {
        let (code, len) = (u16_at(bytes, 0)?, usize::from(u16_at(bytes, 2)?));
        let value = bytes.get(4..4 + len)?;
        bytes = bytes.get(4 + len.next_multiple_of(4)..)?;
        if code == 0 {
            return (len == 0 && bytes.is_empty()).then_some(options);
        }
        options.push((code, value));
    }
}

fn number(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*value.first_chunk()?))
}

impl Capture {
    /// Reads a complete file.
    ///
    /// # Errors
    /// Returns the first violation of the draft.
    pub fn parse(file: &[u8]) -> Result<Capture, Malformed> {
        let (mut capture, mut at) = (Capture::default(), 0);
        while at < file.len() {
            let wrong = |what| Malformed { at, what };
            let kind = u32_at(file, at).ok_or(wrong("incomplete block"))?;
            let total = u32_at(file, at + 4).ok_or(wrong("incomplete block"))? as usize;
            let block = file.get(at..at.saturating_add(total)).ok_or(wrong("incomplete block"))?;
            if total < 12 || !total.is_multiple_of(4) || u32_at(block, total - 4) != Some(total as u32) {
                return Err(wrong("wrong block length"));
            }
            if (kind == 0x0a0d_0d0a) != (at == 0) {
                return Err(wrong("a second section"));
            }
            capture.block(kind, &block[8..total - 4]).ok_or(wrong("wrong block body"))?;
            at += total;
        }
        Ok(capture)
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> Option<()> {
        match kind {
            0x0a0d_0d0a => {
                options(body.get(16..)?)?;
                (body[..8] == [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]).then_some(())
            }
            1 => {
                let options = options(body.get(8..)?)?;
                let nanoseconds = options.contains(&(9, &[9][..]));
                let name = options.iter().find(|(code, _)| *code == 2)?.1;
                self.interfaces.push(String::from_utf8(name.to_vec()).ok()?);
                (u16_at(body, 0) == Some(1) && nanoseconds).then_some(())
            }
            6 => self.frame(body),
            5 => {
                let options = options(body.get(12..)?)?;
                let value = |code| number(options.iter().find(|(other, _)| *other == code)?.1);
                self.statistics.push((u32_at(body, 0)?, value(4)?, value(5)?));
                Some(())
            }
            _ => None,
        }
    }

    fn frame(&mut self, body: &[u8]) -> Option<()> {
        let captured = u32_at(body, 12)? as usize;
        let bytes = body.get(20..20 + captured)?.to_vec();
        let options = options(body.get(20 + captured.next_multiple_of(4)..)?)?;
        let of = |code| options.iter().filter(move |(other, _)| *other == code).map(|(_, value)| *value);
        let interface = u32_at(body, 0)?;
        self.interfaces.get(interface as usize)?;
        self.frames.push(Captured {
            interface,
            time: time_at(body, 4)?,
            len: u32_at(body, 16)?,
            bytes,
            inbound: match of(2).next()?.first()? & 3 {
                1 => true,
                2 => false,
                _ => return None,
            },
            lost: of(4).next().map_or(Some(0), number)?,
            comments: of(1).map(|text| String::from_utf8_lossy(text).into_owned()).collect(),
        });
        Some(())
    }
}
