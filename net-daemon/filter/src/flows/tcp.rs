//! The state of a TCP connection, as far as frames show it.
//!
//! ```text
//!            SYN                SYN, ACK               ACK
//!  (none) --------> Opening ------------> Answered ----------> Open --- FIN both ways, or RST ---> Over
//!            opener              other                opener
//! ```
//!
//! A segment must fit the windows that both ends have announced, by the rules of "Real Stateful TCP Packet
//! Filtering in IP Filter" (Guido van Rooij, 2000), which Linux's connection tracking also follows:
//!
//! 1. It does not begin beyond what the receiver has allowed the sender to send.
//! 2. It does not end before what the receiver may still miss.
//! 3. It acknowledges nothing that the receiver has not sent,
//! 4. and nothing that was acknowledged long ago.

use crate::Way;
use crate::flows::entry::Entry;
use crate::reason::Reason;
use crate::wire::tcp::{ACK, FIN, PSH, RST, SYN, Tcp, URG};

/// Lifetimes in seconds: RFC 5382 for an open connection; the others cover retransmissions.
const OPENING: u32 = 60;
const OPEN: u32 = 7440;
const CLOSING: u32 = 300;
const OVER: u32 = 30;

/// Bytes before the newest acknowledgement that old segments may acknowledge.
const OLDEST_ACK: u32 = 66_000;

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening = 0,
    Answered = 1,
    Open = 2,
    Over = 3,
}

/// Bits of the state: one FIN for each way.
const FIN_SEEN: [u32; 2] = [4, 8];
/// Both ends scale their windows.
const SCALED: u32 = 16;

fn phase(state: u32) -> Phase {
    match state & 3 {
        0 => Phase::Opening,
        1 => Phase::Answered,
        2 => Phase::Open,
        _ => Phase::Over,
    }
}

/// One end of a connection, as its frames have shown it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    /// Sequence number behind the last byte that it sent.
    sent: u32,
    /// Sequence number behind the last byte that it may send.
    limit: u32,
    /// The largest window that it announced.
    window: u32,
    /// Shift of its windows.
    scale: u8,
}

impl End {
    /// Reads both ends: the one that sends this way, and the other.
    ///
    /// The words of a way have what frames of that way change: what its sender sent, and how far it lets the
    /// other end send. So threads that carry both ways of a connection store different words.
    #[inline]
    fn both(entry: Entry<'_>, way: Way) -> (End, End) {
        let ([mine, my_window], [theirs, their_window]) = (entry.end(way), entry.end(way.back()));
        let end = |sent: u64, limit: u64, window: u64| End {
            sent: (sent >> 32) as u32,
            limit: limit as u32,
            window: (window >> 32) as u32,
            scale: window as u8,
        };
        (end(mine, theirs, my_window), end(theirs, mine, their_window))
    }

    /// Stores both ends, as far as they have changed.
    #[inline]
    fn store(entry: Entry<'_>, way: Way, sender: End, receiver: End) {
        let words = |end: End, other: End| {
            let numbers = u64::from(end.sent) << 32 | u64::from(other.limit);
            [numbers, u64::from(end.window) << 32 | u64::from(end.scale)]
        };
        entry.set_end(way, words(sender, receiver));
        entry.set_end(way.back(), words(receiver, sender));
    }
}

/// Whether `a` lies behind `b`, in the order of sequence numbers.
fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// Checks the segment that begins a connection: SYN alone, without data.
///
/// # Errors
///
/// [`Reason::NoFlow`] for segments that belong to a connection, [`Reason::TcpFlags`] for impossible ones.
pub fn opens(segment: &Tcp) -> Result<(), Reason> {
    check_flags(segment)?;
    match segment.flags & (SYN | ACK | RST | FIN) {
        SYN if segment.data == 0 => Ok(()),
        SYN => Err(Reason::TcpFlags),
        _ => Err(Reason::NoFlow),
    }
}

/// Begins the state of a connection in `entry`, with the segment that opens it.
pub fn open(entry: Entry<'_>, way: Way, segment: &Tcp) {
    let sent = segment.end();
    let window = u32::from(segment.window).max(1);
    let opener = End { sent, limit: sent, window, scale: segment.scale.unwrap_or(0) };
    End::store(entry, way, opener, End::default());
    let scaled = if segment.scale.is_some() { SCALED } else { 0 };
    entry.set_state(Phase::Opening as u32 | scaled, OPENING);
}

/// Refuses flags that no host sends together.
#[inline]
fn check_flags(segment: &Tcp) -> Result<(), Reason> {
    let flags = segment.flags & (FIN | SYN | RST | PSH | ACK | URG);
    let known = match flags & (SYN | FIN | RST | ACK) {
        SYN => flags & URG == 0,
        ACK | RST => true,
        both if both == SYN | ACK || both == FIN | ACK || both == RST | ACK => true,
        _ => false,
    };
    if known { Ok(()) } else { Err(Reason::TcpFlags) }
}

/// What a segment means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It belongs to the connection.
    Fits,
    /// It begins a new connection between the same ends: to be decided like one.
    Reopens,
}

/// Follows a segment that goes `way`.
///
/// # Errors
///
/// Returns why it does not belong to the connection, which stays as it was.
#[inline]
pub fn follow(entry: Entry<'_>, way: Way, segment: &Tcp) -> Result<Step, Reason> {
    check_flags(segment)?;
    let state = entry.state();
    if segment.flags & (SYN | ACK) == SYN {
        return again(entry, way, segment, phase(state));
    }
    if segment.has(SYN | ACK) && phase(state) == Phase::Opening {
        return answer(entry, way, segment, state);
    }
    if phase(state) == Phase::Opening {
        return unanswered(entry, way, segment);
    }
    let (mut sender, mut receiver) = End::both(entry, way);
    advance(&mut sender, &mut receiver, segment)?;
    End::store(entry, way, sender, receiver);
    step(entry, way, segment, state);
    Ok(Step::Fits)
}

/// A segment between the SYN and its answer.
#[cold]
fn unanswered(entry: Entry<'_>, way: Way, segment: &Tcp) -> Result<Step, Reason> {
    let is_opener = way == entry.opened();
    let (_, receiver) = End::both(entry, way);
    match segment.has(RST) {
        false if is_opener => return Err(Reason::TcpFlags),
        // The other end still has an earlier connection, and says so (RFC 5961, 4.2). The opener resets it.
        false if segment.flags & (SYN | FIN) == 0 && segment.data == 0 => return Ok(Step::Fits),
        false => return Err(Reason::TcpWindow),
        true if is_opener => {}
        true if segment.has(ACK) && segment.acknowledgement == receiver.sent => {}
        true => return Err(Reason::TcpWindow),
    }
    entry.set_state(Phase::Over as u32, OVER);
    Ok(Step::Fits)
}

/// A SYN on a known connection: a repetition, a new connection, or a host that has forgotten this one, which
/// the other end will tell it.
#[cold]
fn again(entry: Entry<'_>, way: Way, segment: &Tcp, phase: Phase) -> Result<Step, Reason> {
    if segment.data > 0 {
        return Err(Reason::TcpFlags);
    }
    let is_opener = way == entry.opened();
    match phase {
        Phase::Over => Ok(Step::Reopens),
        _ if !is_opener => Err(Reason::TcpFlags),
        Phase::Opening => {
            open(entry, way, segment);
            Ok(Step::Fits)
        }
        Phase::Answered | Phase::Open => Ok(Step::Fits),
    }
}

/// The answer to the SYN.
#[cold]
fn answer(entry: Entry<'_>, way: Way, segment: &Tcp, state: u32) -> Result<Step, Reason> {
    let (_, mut opener) = End::both(entry, way);
    if way == entry.opened() || segment.data > 0 {
        return Err(Reason::TcpFlags);
    }
    if segment.acknowledgement != opener.sent {
        return Err(Reason::TcpWindow);
    }
    let scaled = state & SCALED != 0 && segment.scale.is_some();
    if !scaled {
        opener.scale = 0;
    }
    let window = u32::from(segment.window).max(1);
    // The window of a SYN is not scaled.
    opener.limit = segment.acknowledgement.wrapping_add(window);
    let sent = segment.end();
    let scale = if scaled { segment.scale.unwrap_or(0) } else { 0 };
    let other = End { sent, limit: sent.wrapping_add(opener.window), window, scale };
    End::store(entry, way, other, opener);
    entry.set_state(Phase::Answered as u32, OPENING);
    Ok(Step::Fits)
}

/// Checks a segment against the windows, and moves them.
#[inline]
fn advance(sender: &mut End, receiver: &mut End, segment: &Tcp) -> Result<(), Reason> {
    let end = segment.end();
    // A reset without an acknowledgement acknowledges nothing.
    let acknowledged = if segment.has(ACK) { segment.acknowledgement } else { receiver.sent };
    let oldest = sender.window.max(OLDEST_ACK);
    let fits = !after(segment.sequence, sender.limit)
        && after(end, sender.sent.wrapping_sub(receiver.window).wrapping_sub(1))
        && !after(acknowledged, receiver.sent)
        && after(acknowledged, receiver.sent.wrapping_sub(oldest).wrapping_sub(1));
    if !fits {
        return Err(Reason::TcpWindow);
    }
    let scale = if segment.has(SYN) { 0 } else { sender.scale };
    let window = u32::from(segment.window) << scale;
    sender.window = sender.window.max(window);
    if after(end, sender.sent) {
        sender.sent = end;
    }
    if after(end, sender.limit) {
        // A window of the receiver was not seen.
        receiver.window = receiver.window.saturating_add(end.wrapping_sub(sender.limit));
        sender.limit = end;
    }
    // A closed window may be probed with one byte.
    let limit = acknowledged.wrapping_add(window.max(1));
    if segment.has(ACK) && after(limit, receiver.limit) {
        receiver.limit = limit;
    }
    Ok(())
}

/// Moves the phase after a segment that fits.
#[inline]
fn step(entry: Entry<'_>, way: Way, segment: &Tcp, state: u32) {
    if segment.has(RST) {
        entry.set_state(Phase::Over as u32, OVER);
        return;
    }
    let mut next = state;
    if phase(state) == Phase::Answered && way == entry.opened() && !segment.has(SYN) {
        next = state & !3 | Phase::Open as u32;
    }
    if segment.has(FIN) {
        next |= FIN_SEEN[way as usize];
    }
    let [out, back] = FIN_SEEN.map(|bit| next & bit != 0);
    let lifetime = match phase(next) {
        Phase::Opening | Phase::Answered => OPENING,
        Phase::Over => OVER,
        Phase::Open if out && back => {
            next = next & !3 | Phase::Over as u32;
            OVER
        }
        Phase::Open if out || back => CLOSING,
        Phase::Open => OPEN,
    };
    entry.set_state(next, lifetime);
}

/// Whether an ICMP error may quote a segment with this sequence number, which went `way`: one that was sent,
/// and not long ago (RFC 5927, 4.1).
pub fn may_be_quoted(entry: Entry<'_>, way: Way, sequence: u32) -> bool {
    let (sender, receiver) = End::both(entry, way);
    let oldest = receiver.window.max(OLDEST_ACK);
    !after(sequence, sender.sent) && after(sequence, sender.sent.wrapping_sub(oldest).wrapping_sub(1))
}

#[cfg(test)]
mod tests;
