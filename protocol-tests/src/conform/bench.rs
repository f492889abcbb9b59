//! The tools of a check: fresh connections to the back-end, numbered frames, and the far side if there is
//! one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use super::LIMIT;
use super::instance::{Instance, Next};
use super::{Finding, ensure};
use crate::frame::{ETHERTYPE, NetHeader, number_of, numbered};
use crate::frontend::Frontend;
use crate::netns::TapWire;
use crate::nic::{Frame, NicError, Queue};
use crate::session::{Session, Setup, negotiate};
use crate::wire::{WireError, protocol};

/// Time limit for an answer: a back-end may delay the next front-end after it has refused one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time to wait for an event that must not happen.
pub const QUIET: Duration = Duration::from_millis(80);

/// Number of the next check's first frame.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Source and destination of a back-end's frames.
#[derive(Debug)]
pub enum Far {
    /// Unknown: checks that need it do not run.
    Unseen,
    /// The back-end returns each frame on the receive queue of the same pair.
    Echo,
    /// An interface with a packet socket.
    Tap(TapWire),
}

/// One back-end under a check.
#[derive(Debug)]
pub struct Bench {
    instance: Instance,
    far: Far,
    /// Lower numbers belong to frames of other checks, which a back-end that serves them all may still hold.
    first: u32,
    number: u32,
}

impl Bench {
    pub(super) fn new(instance: Instance, far: Far) -> Bench {
        let first = NEXT.fetch_add(100_000, Ordering::Relaxed);
        Bench { instance, far, first, number: first }
    }

    /// Returns the check's result, together with an unusual end of the back-end.
    pub(super) fn verdict(self, result: Result<(), Finding>) -> Result<(), Finding> {
        self.instance.verdict(result)
    }

    /// Returns the back-end's behaviour after its first connection.
    pub(super) fn next(&self) -> &Next {
        &self.instance.next
    }

    /// Finds that behaviour by running the usual session twice.
    pub(super) fn try_next(&self) -> Next {
        if let Err(finding) = self.session(&Setup::default()) {
            return Next::Unknown(finding);
        }
        let Err(found) = self.session(&Setup::default()) else { return Next::Served };
        let ended = self.instance.ended();
        let seen = found.reason();
        let finding = match ended {
            Some(status) if !status.success() => {
                Finding::Died { status, why: format!("after its first connection; {seen}") }
            }
            Some(status) => {
                Finding::Broken(format!("after its first connection it ended with {status}; {seen}"))
            }
            None => Finding::Broken(format!("a second connection was not served: {seen}")),
        };
        Next::Lost { finding, ended }
    }

    /// Returns whether the check can see frames.
    pub fn sees_frames(&self) -> bool {
        !matches!(self.far, Far::Unseen)
    }

    /// Returns whether frames for the guest can arrive without frames from it.
    pub fn has_wire(&self) -> bool {
        matches!(self.far, Far::Tap(_))
    }

    /// Makes a fresh connection.
    pub fn connect(&self) -> Result<Frontend, Finding> {
        let mut frontend = self.instance.connect()?;
        frontend.channel().set_patience(PATIENCE);
        Ok(frontend)
    }

    /// Makes a fresh connection and negotiates the usual features and the protocol features `want`, all of
    /// which the back-end must offer.
    pub fn negotiated(&self, want: u64) -> Result<Frontend, Finding> {
        let mut frontend = self.connect()?;
        let (_, both) = negotiate(&mut frontend, Setup::default().features, want)?;
        if both != want {
            return Err(Finding::NotOffered(format!("protocol features {:#x}", want & !both)));
        }
        Ok(frontend)
    }

    /// Makes a fresh connection on which requests can be acknowledged, but only when a check asks for it.
    pub fn acking(&self) -> Result<Frontend, Finding> {
        let mut frontend = self.negotiated(protocol::REPLY_ACK)?;
        frontend.want_replies(false);
        Ok(frontend)
    }

    /// Starts a session by the usual script, with a kick for each ring: a back-end may wait for one before it
    /// starts a ring (vhost-user, Ring states), though those in use do not.
    pub fn started(&self, setup: &Setup) -> Result<Session, Finding> {
        let mut session = Session::start(self.connect()?, setup)?;
        session.nic.queues.iter_mut().try_for_each(Queue::kick_always)?;
        Ok(session)
    }

    /// Like `started`, with up to 32 receive buffers of 2 KiB on the first pair.
    pub fn session(&self, setup: &Setup) -> Result<Session, Finding> {
        let mut session = self.started(setup)?;
        session.rx(0).fill(usize::from(setup.size).min(32), &[2048])?;
        Ok(session)
    }

    /// Returns an error unless the session has these features: the check then does not apply.
    pub fn offered(session: &Session, features: u64, what: &str) -> Result<(), Finding> {
        match session.nic.features & features == features {
            true => Ok(()),
            false => Err(Finding::NotOffered(what.to_owned())),
        }
    }

    /// Returns a frame of `len` bytes that no check has used before.
    pub fn frame(&mut self, len: usize) -> Vec<u8> {
        self.number += 1;
        numbered(self.number, len)
    }

    /// Returns the check's next frame to leave by the far side, or `None` if none leaves within `limit`.
    pub fn leaves(&self, session: &mut Session, limit: Duration) -> Result<Option<Vec<u8>>, Finding> {
        let Far::Tap(wire) = &self.far else { return self.guest_gets(session, limit).map(frame_bytes) };
        let deadline = Instant::now() + limit;
        while let Some((_, bytes)) = wire.recv(deadline.saturating_duration_since(Instant::now()))? {
            if self.ours(&bytes) {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Checks that this frame is the next to leave.
    pub fn expect(&self, session: &mut Session, frame: &[u8]) -> Result<(), Finding> {
        match self.leaves(session, LIMIT)? {
            Some(got) => same(frame, &got, "left"),
            None => Err(Finding::Fail(format!("frame of {} bytes never left", frame.len()))),
        }
    }

    /// Checks that no frame leaves.
    pub fn expect_none(&self, session: &mut Session) -> Result<(), Finding> {
        match self.leaves(session, QUIET)? {
            Some(got) => Err(Finding::Fail(format!("frame left that should not: {}", show(&got)))),
            None => Ok(()),
        }
    }

    /// Makes a frame for the guest arrive at the far side.
    pub fn inject(&self, session: &mut Session, frame: &[u8]) -> Result<(), Finding> {
        match &self.far {
            Far::Tap(wire) => Ok(wire.send(frame)?),
            _ => Ok(session.tx(0).send(frame, LIMIT).map(drop)?),
        }
    }

    /// Makes a frame with offloads arrive.
    pub fn inject_with(
        &self,
        session: &mut Session,
        header: &NetHeader,
        frame: &[u8],
    ) -> Result<(), Finding> {
        match &self.far {
            Far::Tap(wire) => Ok(wire.send_with(header, frame)?),
            _ => Ok(session.tx(0).send_cut(header, frame, &[], LIMIT).map(drop)?),
        }
    }

    /// Checks that the guest receives this frame next.
    pub fn arrives(&self, session: &mut Session, frame: &[u8]) -> Result<Frame, Finding> {
        let got = self.guest_gets(session, LIMIT)?;
        let got =
            got.ok_or_else(|| Finding::Fail(format!("frame of {} bytes never arrived", frame.len())))?;
        same(frame, &got.bytes, "arrived")?;
        Ok(got)
    }

    /// Checks that this frame, sent by a pair, is the next to leave; an echo comes back on the same pair.
    pub fn expect_on(&self, session: &mut Session, pair: usize, frame: &[u8]) -> Result<(), Finding> {
        match &self.far {
            Far::Tap(_) => self.expect(session, frame),
            _ => same(frame, &session.rx(pair).recv(LIMIT)?.bytes, "came back"),
        }
    }

    /// Returns the next frame to leave that fits, whoever made it; `None` if none leaves in time.
    pub fn leaves_such(
        &self,
        session: &mut Session,
        fits: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>, Finding> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let next = match &self.far {
                Far::Tap(wire) => wire.recv(left)?.map(|(_, bytes)| bytes),
                _ => match session.rx(0).recv(left) {
                    Ok(frame) => Some(frame.bytes),
                    Err(NicError::Timeout { used, taken, .. }) if used == taken => None,
                    Err(error) => return Err(error.into()),
                },
            };
            if next.as_deref().is_none_or(&fits) {
                return Ok(next);
            }
        }
    }

    /// Returns the header with which exactly this frame leaves. The frame need not have a number.
    pub fn leaves_exactly(&self, session: &mut Session, frame: &[u8]) -> Result<NetHeader, Finding> {
        let deadline = Instant::now() + LIMIT;
        if let Far::Tap(wire) = &self.far {
            while let Some((header, bytes)) = wire.recv(deadline.saturating_duration_since(Instant::now()))? {
                if bytes == frame {
                    return Ok(header);
                }
            }
            return Err(Finding::Fail(format!("no frame of {} bytes left unchanged", frame.len())));
        }
        self.gets_exactly(session, frame)
    }

    /// Makes a frame with offloads arrive and returns the header that the guest receives. `None`: an echo has
    /// shown it already.
    pub fn arrives_with(
        &self,
        session: &mut Session,
        header: &NetHeader,
        frame: &[u8],
    ) -> Result<Option<NetHeader>, Finding> {
        if !matches!(self.far, Far::Tap(_)) {
            return Ok(None);
        }
        self.inject_with(session, header, frame)?;
        self.gets_exactly(session, frame).map(Some)
    }

    fn gets_exactly(&self, session: &mut Session, frame: &[u8]) -> Result<NetHeader, Finding> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let got = session.rx(0).recv(deadline.saturating_duration_since(Instant::now()))?;
            if got.bytes == frame {
                return Ok(got.header);
            }
        }
    }

    /// Sends frames each way. Compares their bytes where the far side can be seen; else each must be used.
    pub fn both_ways(&mut self, session: &mut Session, count: usize) -> Result<(), Finding> {
        for at in 0..count {
            let frame = self.frame(60 + at * 97 % 1400);
            let used = session.tx(0).send(&frame, LIMIT)?;
            ensure!(used.len == 0, "used length {} of a transmit chain", used.len);
            if self.sees_frames() {
                self.expect(session, &frame)?;
            }
            if matches!(self.far, Far::Tap(_)) {
                self.inject(session, &frame)?;
                self.arrives(session, &frame)?;
            }
        }
        Ok(())
    }

    /// Returns the check's next frame that the guest receives.
    fn guest_gets(&self, session: &mut Session, limit: Duration) -> Result<Option<Frame>, Finding> {
        let deadline = Instant::now() + limit;
        loop {
            match session.rx(0).recv(deadline.saturating_duration_since(Instant::now())) {
                Ok(frame) if self.ours(&frame.bytes) => return Ok(Some(frame)),
                Ok(_) => {}
                // A used buffer without a call is a fault of its own.
                Err(NicError::Timeout { used, taken, .. }) if used == taken => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns whether a frame belongs to this check: it is neither the host's own (such as neighbour
    /// discovery) nor an intact one of another check.
    fn ours(&self, frame: &[u8]) -> bool {
        let foreign = frame.len() >= 14 && frame.get(12..14) != Some(&ETHERTYPE.to_be_bytes());
        !foreign && number_of(frame).is_none_or(|number| number > self.first)
    }

    /// Checks that the back-end serves a usual session after a hostile one has disconnected.
    pub fn serves(&mut self) -> Result<(), Finding> {
        let mut session = self.session(&Setup::default()).map_err(afterwards)?;
        // Frames left over from the hostile session may come first.
        while self.sees_frames() && self.leaves(&mut session, Duration::from_millis(10))?.is_some() {}
        self.both_ways(&mut session, 2).map_err(afterwards)
    }
}

fn afterwards(finding: Finding) -> Finding {
    let text = |text| format!("no session is served afterwards: {text}");
    match finding {
        Finding::Broken(why) => Finding::Broken(text(why)),
        Finding::Fail(why) => Finding::Fail(text(why)),
        other => other,
    }
}

fn frame_bytes(frame: Option<Frame>) -> Option<Vec<u8>> {
    frame.map(|frame| frame.bytes)
}

fn same(frame: &[u8], got: &[u8], how: &str) -> Result<(), Finding> {
    let was = number_of(frame);
    ensure!(frame == got, "frame {was:?} of {} bytes {how} as {}", frame.len(), show(got));
    Ok(())
}

/// Describes a frame by its number, length and first bytes.
fn show(bytes: &[u8]) -> String {
    let number = number_of(bytes).map_or("no intact frame".to_owned(), |number| format!("frame {number}"));
    format!("{number}, {} bytes, {:02x?}", bytes.len(), bytes.get(..32).unwrap_or(bytes))
}

/// Checks that a request is refused: by a status other than 0, or by the end of the connection.
pub(super) fn refused(answer: Result<u64, WireError>, what: &str) -> Result<(), Finding> {
    match answer {
        Ok(0) => Err(Finding::Fail(format!("{what} was acknowledged with status 0"))),
        Ok(_) | Err(WireError::Closed(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The header of a frame without offloads.
pub(super) const PLAIN: NetHeader = NetHeader {
    flags: 0,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 0,
};
