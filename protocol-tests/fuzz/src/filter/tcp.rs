//! A TCP connection in the model. Flags and phases are exact. Windows are coarse: the model knows bounds of
//! what each end may send, and leaves what lies between them to the filter.

use volt_filter::reason::Reason;

use super::read::Segment;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const URG: u8 = 32;

/// Acknowledgements and quotations this far back may still pass.
const OLD: i64 = 66_000;

/// What the model says about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Passes,
    /// It would begin a new connection.
    Reopens,
    /// The windows decide, which the model does not know exactly.
    Unsure,
    Refuses(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Answered,
    Open,
    Over,
}

#[derive(Clone, Copy, Debug, Default)]
struct End {
    /// Sequence number behind what it sent.
    sent: u32,
    /// The other end's segments are at most this far beyond what was acknowledged.
    window: i64,
    scale: u8,
    fin: bool,
}

/// A connection. Ends are numbered: 0 has opened it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    phase: Phase,
    scaled: bool,
    ends: [End; 2],
}

/// Refuses flags that no host sends together.
fn check_flags(flags: u8) -> Result<(), Reason> {
    let good = match flags & (FIN | SYN | RST | ACK) {
        SYN => flags & URG == 0,
        ACK | RST => true,
        other => other == SYN | ACK || other == FIN | ACK || other == RST | ACK,
    };
    if good { Ok(()) } else { Err(Reason::TcpFlags) }
}

/// Whether a segment of no connection may begin one.
pub(super) fn opens(segment: &Segment) -> Result<(), Reason> {
    check_flags(segment.flags)?;
    match segment.flags & (FIN | SYN | RST | ACK) {
        SYN if segment.data == 0 => Ok(()),
        SYN => Err(Reason::TcpFlags),
        _ => Err(Reason::NoFlow),
    }
}

/// Returns how far `a` lies behind `b`.
fn behind(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

fn end(segment: &Segment) -> u32 {
    let marks = u32::from(segment.flags & SYN > 0) + u32::from(segment.flags & FIN > 0);
    segment.sequence.wrapping_add(segment.data).wrapping_add(marks)
}

impl Connection {
    pub(super) fn new(segment: &Segment) -> Connection {
        let opener = End {
            sent: end(segment),
            window: i64::from(segment.window.max(1)),
            scale: segment.scale.unwrap_or(0),
            fin: false,
        };
        let scaled = segment.scale.is_some();
        Connection { phase: Phase::Opening, scaled, ends: [opener, End::default()] }
    }

    /// Returns for how many seconds it lives without segments.
    pub(super) fn lifetime(&self) -> u32 {
        match self.phase {
            Phase::Opening | Phase::Answered => 60,
            Phase::Over => 30,
            Phase::Open if self.ends.iter().any(|end| end.fin) => 300,
            Phase::Open => 7440,
        }
    }

    /// Judges a segment of this end.
    pub(super) fn judge(&self, from: usize, segment: &Segment) -> Says {
        match self.refusal(from, segment) {
            Err(reason) => Says::Refuses(reason),
            Ok(says) => says,
        }
    }

    fn refusal(&self, from: usize, segment: &Segment) -> Result<Says, Reason> {
        let flags = segment.flags;
        check_flags(flags)?;
        if flags & (SYN | ACK) == SYN {
            return match self.phase {
                _ if segment.data > 0 => Err(Reason::TcpFlags),
                Phase::Over => Ok(Says::Reopens),
                _ if from == 0 => Ok(Says::Passes),
                _ => Err(Reason::TcpFlags),
            };
        }
        if self.phase != Phase::Opening {
            return self.windows(from, segment);
        }
        let answers = segment.acknowledged == self.ends[0].sent;
        match (flags & (SYN | RST | ACK), from) {
            (both, 1) if both == SYN | ACK && segment.data == 0 && answers => Ok(Says::Passes),
            (both, 1) if both == SYN | ACK && segment.data == 0 => Err(Reason::TcpWindow),
            (both, _) if both == SYN | ACK => Err(Reason::TcpFlags),
            // The other end refuses, or the opener gives up.
            (both, 1) if both == RST | ACK && answers => Ok(Says::Passes),
            (some, 0) if some & RST > 0 => Ok(Says::Passes),
            (_, 0) => Err(Reason::TcpFlags),
            // It has an earlier connection.
            (ACK, 1) if flags & FIN == 0 && segment.data == 0 => Ok(Says::Passes),
            _ => Err(Reason::TcpWindow),
        }
    }

    fn windows(&self, from: usize, segment: &Segment) -> Result<Says, Reason> {
        let (sender, receiver) = (&self.ends[from], &self.ends[1 - from]);
        let acknowledged = match segment.flags & ACK {
            0 => 0,
            _ => behind(segment.acknowledged, receiver.sent),
        };
        let begin = behind(segment.sequence, sender.sent);
        let finish = behind(end(segment), sender.sent);
        let good = begin <= receiver.window
            && finish > -receiver.window - 1
            && acknowledged <= 0
            && acknowledged > -sender.window.max(OLD) - 1;
        match good {
            false => Err(Reason::TcpWindow),
            true if begin == 0 && acknowledged == 0 => Ok(Says::Passes),
            true => Ok(Says::Unsure),
        }
    }

    /// Notes a segment that passed.
    pub(super) fn note(&mut self, from: usize, segment: &Segment) {
        let flags = segment.flags;
        if flags & (SYN | ACK) == SYN {
            if self.phase == Phase::Opening {
                *self = Connection::new(segment);
            }
            return;
        }
        if self.phase == Phase::Opening {
            if flags & RST > 0 {
                self.phase = Phase::Over;
            }
            if flags & SYN == 0 {
                return;
            }
            self.scaled &= segment.scale.is_some();
            let scale = if self.scaled { segment.scale.unwrap_or(0) } else { 0 };
            let window = i64::from(segment.window.max(1));
            self.ends[1] = End { sent: end(segment), window, scale, fin: false };
            self.ends[0].scale *= u8::from(self.scaled);
            self.phase = Phase::Answered;
            return;
        }
        let scale = if flags & SYN > 0 { 0 } else { self.ends[from].scale };
        let window = i64::from(segment.window << scale).max(1);
        self.ends[from].window = self.ends[from].window.max(window);
        let beyond = behind(end(segment), self.ends[from].sent);
        if beyond > 0 {
            self.ends[from].sent = end(segment);
            self.ends[1 - from].window += beyond;
        }
        if flags & RST > 0 {
            self.phase = Phase::Over;
            return;
        }
        if self.phase == Phase::Answered && from == 0 && flags & SYN == 0 {
            self.phase = Phase::Open;
        }
        self.ends[from].fin |= flags & FIN > 0;
        if self.phase == Phase::Open && self.ends.iter().all(|end| end.fin) {
            self.phase = Phase::Over;
        }
    }

    /// Whether an ICMP error may quote a segment that this end sent.
    pub(super) fn quoted(&self, from: usize, sequence: u32) -> Says {
        let back = behind(sequence, self.ends[from].sent);
        let oldest = self.ends[1 - from].window.max(OLD);
        match back {
            1.. => Says::Refuses(Reason::IcmpError),
            _ if back < -oldest => Says::Refuses(Reason::IcmpError),
            _ if back >= -OLD => Says::Passes,
            _ => Says::Unsure,
        }
    }
}
