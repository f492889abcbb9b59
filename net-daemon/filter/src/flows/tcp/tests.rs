use std::sync::atomic::AtomicU64;

use super::*;
use crate::flows::entry::WORDS;

/// A connection under test.
struct Connection(Vec<AtomicU64>);

fn segment(flags: u8, sequence: u32, acknowledgement: u32, data: u32) -> Tcp {
    Tcp {
        source: 1,
        destination: 2,
        sequence,
        acknowledgement,
        flags,
        window: 1000,
        header: 20,
        data,
        scale: None,
    }
}

impl Connection {
    /// The guest has sent a SYN with sequence number 99.
    fn new() -> Connection {
        let words = Connection((0..WORDS).map(|_| AtomicU64::new(0)).collect());
        open(words.entry(), Way::Out, &segment(SYN, 99, 0, 0));
        words
    }

    /// Both ends have agreed: the guest goes on at 100, the other end at 500.
    fn established() -> Connection {
        let connection = Connection::new();
        connection.passes(Way::In, segment(SYN | ACK, 499, 100, 0));
        connection.passes(Way::Out, segment(ACK, 100, 500, 0));
        connection
    }

    fn entry(&self) -> Entry<'_> {
        Entry::new(&self.0)
    }

    fn passes(&self, way: Way, segment: Tcp) {
        assert_eq!(follow(self.entry(), way, &segment), Ok(Step::Fits), "{segment:?}");
    }

    fn fails(&self, way: Way, segment: Tcp, reason: Reason) {
        let before: Vec<_> =
            self.0.iter().map(|word| word.load(std::sync::atomic::Ordering::Relaxed)).collect();
        assert_eq!(follow(self.entry(), way, &segment), Err(reason), "{segment:?}");
        let after: Vec<_> =
            self.0.iter().map(|word| word.load(std::sync::atomic::Ordering::Relaxed)).collect();
        assert_eq!(before, after, "{segment:?}");
    }
}

#[test]
fn a_connection_begins_with_a_plain_syn() {
    assert_eq!(opens(&segment(SYN, 0, 0, 0)), Ok(()));
    assert_eq!(opens(&segment(SYN, 0, 0, 1)), Err(Reason::TcpFlags));
    for flags in 0..64 {
        let expected = match flags & !PSH {
            SYN => Ok(()),
            RST | ACK => Err(Reason::NoFlow),
            other if other & !URG == ACK || other & !URG == RST => Err(Reason::NoFlow),
            other if [SYN | ACK, FIN | ACK, RST | ACK].contains(&(other & !URG)) => Err(Reason::NoFlow),
            _ => Err(Reason::TcpFlags),
        };
        assert_eq!(opens(&segment(flags, 0, 0, 0)), expected, "{flags:#x}");
    }
}

#[test]
fn only_the_answer_follows_a_syn() {
    let connection = Connection::new();
    connection.fails(Way::Out, segment(ACK, 100, 500, 0), Reason::TcpFlags);
    connection.fails(Way::Out, segment(ACK | PSH, 100, 500, 9), Reason::TcpFlags);
    connection.fails(Way::In, segment(SYN | ACK, 499, 101, 0), Reason::TcpWindow);
    connection.fails(Way::In, segment(ACK, 499, 100, 9), Reason::TcpWindow);
    connection.fails(Way::In, segment(RST | ACK, 0, 101, 0), Reason::TcpWindow);
    connection.fails(Way::In, segment(SYN, 499, 0, 0), Reason::TcpFlags);
    connection.fails(Way::Out, segment(SYN | ACK, 499, 100, 0), Reason::TcpFlags);
    // Repeated, and answered.
    connection.passes(Way::Out, segment(SYN, 99, 0, 0));
    connection.passes(Way::In, segment(SYN | ACK, 499, 100, 0));
    connection.passes(Way::In, segment(SYN | ACK, 499, 100, 0));
}

/// The other end still has an earlier connection between the same ports: it says so, the opener resets that,
/// and begins again.
#[test]
fn an_earlier_connection_is_reset() {
    let connection = Connection::new();
    connection.passes(Way::In, segment(ACK, 7000, 3000, 0));
    connection.passes(Way::Out, segment(RST, 3000, 0, 0));
    assert_eq!(follow(connection.entry(), Way::Out, &segment(SYN, 99, 0, 0)), Ok(Step::Reopens));
}

#[test]
fn a_refusal_ends_it() {
    let connection = Connection::new();
    connection.passes(Way::In, segment(RST | ACK, 0, 100, 0));
    assert_eq!(follow(connection.entry(), Way::Out, &segment(SYN, 7000, 0, 0)), Ok(Step::Reopens));
}

#[test]
fn segments_fit_the_windows() {
    let connection = Connection::established();
    connection.passes(Way::Out, segment(ACK, 100, 500, 1000));
    // Beyond the window; acknowledging what was never sent; long past.
    connection.fails(Way::Out, segment(ACK, 1101, 500, 10), Reason::TcpWindow);
    connection.fails(Way::Out, segment(ACK, 1100, 501, 0), Reason::TcpWindow);
    connection.fails(Way::In, segment(ACK, 500, 1101, 0), Reason::TcpWindow);
    connection.fails(Way::In, segment(ACK, 500u32.wrapping_sub(2000), 1100, 10), Reason::TcpWindow);
    connection.fails(Way::In, segment(RST, 5000, 0, 0), Reason::TcpWindow);
    connection.fails(Way::In, segment(ACK, 500, 1100u32.wrapping_sub(70_000), 0), Reason::TcpWindow);
    // Again, and in order.
    connection.passes(Way::Out, segment(ACK, 100, 500, 1000));
    connection.passes(Way::In, segment(ACK, 500, 1100, 300));
    connection.passes(Way::Out, segment(ACK, 1100, 800, 1000));
    connection.passes(Way::In, segment(RST, 800, 0, 0));
}

#[test]
fn windows_are_scaled_if_both_ends_do() {
    for (offered, answered, shift) in [(Some(7), Some(3), 3), (Some(7), None, 0), (None, Some(3), 0)] {
        let connection = Connection::new();
        open(connection.entry(), Way::Out, &Tcp { scale: offered, ..segment(SYN, 99, 0, 0) });
        connection.passes(Way::In, Tcp { scale: answered, ..segment(SYN | ACK, 499, 100, 0) });
        connection.passes(Way::Out, segment(ACK, 100, 500, 0));
        // The other end announces a window of 1000 << shift.
        connection.passes(Way::In, segment(ACK, 500, 100, 0));
        let allowed = 1000 << shift;
        connection.passes(Way::Out, segment(ACK, 100 + allowed, 500, 0));
        connection.fails(Way::Out, segment(ACK, 101 + 8 * allowed + 8000, 500, 1), Reason::TcpWindow);
    }
}

#[test]
fn sequence_numbers_wrap() {
    let connection = Connection::new();
    open(connection.entry(), Way::Out, &segment(SYN, u32::MAX - 1, 0, 0));
    connection.passes(Way::In, segment(SYN | ACK, u32::MAX, u32::MAX, 0));
    connection.passes(Way::Out, segment(ACK, u32::MAX, 0, 500));
    connection.passes(Way::In, segment(ACK, 0, 499, 500));
    connection.passes(Way::Out, segment(ACK, 499, 500, 100));
}

#[test]
fn a_connection_ends_with_both_fins_and_may_begin_again() {
    let connection = Connection::established();
    connection.passes(Way::Out, segment(FIN | ACK, 100, 500, 0));
    // Half-closed: the other end goes on.
    connection.passes(Way::In, segment(ACK, 500, 101, 800));
    assert_eq!(follow(connection.entry(), Way::Out, &segment(SYN, 7000, 0, 0)), Ok(Step::Fits));
    connection.passes(Way::In, segment(FIN | ACK, 1300, 101, 0));
    connection.passes(Way::Out, segment(ACK, 101, 1301, 0));
    assert_eq!(follow(connection.entry(), Way::Out, &segment(SYN, 7000, 0, 0)), Ok(Step::Reopens));
    assert_eq!(follow(connection.entry(), Way::In, &segment(SYN, 7000, 0, 0)), Ok(Step::Reopens));
}

#[test]
fn errors_quote_what_was_sent() {
    let connection = Connection::established();
    connection.passes(Way::Out, segment(ACK, 100, 500, 1000));
    for (sequence, may) in [(1100, true), (100, true), (1101, false), (1100u32.wrapping_sub(70_000), false)] {
        assert_eq!(may_be_quoted(connection.entry(), Way::Out, sequence), may, "{sequence}");
    }
}
