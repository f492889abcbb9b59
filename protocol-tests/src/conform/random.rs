//! Random sessions, repeatable by their seed: valid requests of a front-end in any order, and some invalid
//! ones. The expected result of each step is known in advance.

use super::bench::{Bench, LIMIT, PLAIN};
use super::{Finding, ensure};
use crate::memory::RegionSpec;
use crate::session::{Session, Setup, offer_vring};
use crate::wire::{WireError, feature, protocol, request, words};

type Result<T = ()> = std::result::Result<T, Finding>;

/// Steps of one session.
const DEEDS: usize = 60;

/// splitmix64.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }

    pub(crate) fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// Returns a valid set-up.
    fn setup(&mut self) -> Setup {
        let base = Setup::default();
        let mut features = base.features;
        for optional in [feature::EVENT_IDX, feature::INDIRECT_DESC, feature::MRG_RXBUF] {
            if self.chance(3) {
                features &= !optional;
            }
        }
        let end = 0x10_0000 + (16 << 20);
        let border = 0x10_0000 + (1 + self.below(4094)) * 4096;
        let regions = match self.chance(2) {
            true => RegionSpec::adjoining(0x10_0000, &[(border, 0), (end, 0x1000)]),
            false => vec![RegionSpec::linear(0x10_0000, 16 << 20, 0)],
        };
        let size = 8 << self.below(6);
        // Sometimes at the end of the index range, so that indices wrap within the session.
        let start = if self.chance(2) {
            0_u16.wrapping_sub(self.below(64) as u16)
        } else {
            self.below(0x1_0000) as u16
        };
        Setup { features, size, start, regions, protocol: protocol::REPLY_ACK, ..base }
    }
}

/// Plays the session of `seed`.
///
/// # Errors
///
/// Returns the back-end's fault, and the step at which it occurred.
pub fn session(bench: &mut Bench, seed: u64) -> Result {
    let mut random = Random(seed);
    let setup = random.setup();
    let mut session = bench.session(&setup)?;
    let mut last = "set-up".to_owned();
    for at in 0..DEEDS {
        session = deed(bench, &mut random, session, &setup, &mut last).map_err(|finding| {
            let text = |why| format!("seed {seed}, deed {at}, {last}: {why}");
            match finding {
                Finding::Fail(why) => Finding::Fail(text(why)),
                Finding::Broken(why) => Finding::Broken(text(why)),
                other => other,
            }
        })?;
    }
    Ok(())
}

fn deed(
    bench: &mut Bench,
    random: &mut Random,
    mut session: Session,
    setup: &Setup,
    name: &mut String,
) -> Result<Session> {
    let (kind, acks) = (random.below(9), session.protocol & protocol::REPLY_ACK != 0);
    *name = [
        "transmit",
        "burst",
        "receive",
        "good message",
        "bad message",
        "off and on",
        "stop",
        "memory",
        "reconnect",
    ][kind as usize]
        .to_owned();
    match kind {
        0 => transmit(bench, random, &mut session)?,
        1 => burst(bench, random, &mut session)?,
        2 if bench.sees_frames() => {
            let frame = bench.frame(60 + random.below(1400) as usize);
            bench.inject(&mut session, &frame)?;
            bench.arrives(&mut session, &frame)?;
        }
        2 => {}
        3 => {
            let vring = random.below(2) as u32;
            session.frontend.tell(request::SET_VRING_ENABLE, &words(&[vring, 1]), &[])?;
            let now = session.frontend.get_features()?;
            ensure!(now & session.nic.features == session.nic.features, "GET_FEATURES answers {now:#x} now");
        }
        4 if acks => bad_message(random, &session)?,
        4 => {}
        5 => {
            let vring = random.below(2) as u32;
            session.frontend.set_vring_enable(vring, false)?;
            session.frontend.set_vring_enable(vring, true)?;
        }
        6 => stop(&mut session)?,
        7 => session.frontend.set_mem_table(&session.nic.mem)?,
        _ => {
            let Session { nic, frontend, .. } = session;
            drop(frontend);
            session = Session::resume(bench.connect()?, nic, setup)?;
        }
    }
    Ok(session)
}

fn transmit(bench: &mut Bench, random: &mut Random, session: &mut Session) -> Result {
    let len = 60 + random.below(1400) as usize;
    let frame = bench.frame(len);
    let most = usize::from(session.nic.queues[1].ring.layout().size.min(8)) - 1;
    let mut cuts: Vec<usize> =
        (0..random.below(most as u64)).map(|_| 1 + random.below(len as u64 + 10) as usize).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let pieces: Vec<usize> =
        cuts.iter().scan(0, |from, to| Some(to - std::mem::replace(from, *to))).collect();
    let used = session.tx(0).send_cut(&PLAIN, &frame, &pieces, LIMIT)?;
    ensure!(used.len == 0, "used length {} of a transmit chain", used.len);
    session.tx(0).parts(used);
    match bench.sees_frames() {
        true => bench.expect(session, &frame),
        false => Ok(()),
    }
}

fn burst(bench: &mut Bench, random: &mut Random, session: &mut Session) -> Result {
    let room = u64::from(session.nic.queues[1].ring.layout().size);
    let frames: Vec<_> = (0..1 + random.below(room.min(16))).map(|_| bench.frame(100)).collect();
    for frame in &frames {
        session.tx(0).offer(&PLAIN, frame, &[])?;
    }
    session.tx(0).kick()?;
    for _ in &frames {
        let used = session.tx(0).used(LIMIT)?;
        session.tx(0).parts(used);
    }
    match bench.sees_frames() {
        true => frames.iter().try_for_each(|frame| bench.expect(session, frame)),
        false => Ok(()),
    }
}

/// Sends a request that must be refused by a status, and change nothing.
fn bad_message(random: &mut Random, session: &Session) -> Result {
    let far = 100 + random.below(1 << 20) as u32;
    let (request, body) = match random.below(5) {
        0 => (request::SET_VRING_NUM, words(&[far, 8])),
        1 => (request::SET_VRING_NUM, words(&[random.below(2) as u32, 0])),
        2 => (request::SET_VRING_NUM, words(&[random.below(2) as u32, 65_536 + far])),
        3 => (request::SET_VRING_BASE, words(&[far, 0])),
        _ => (request::SET_VRING_ENABLE, words(&[far, 1])),
    };
    match session.frontend.tell_acked(request, &body, &[]) {
        Ok(0) => {
            Err(Finding::Fail(format!("{} {body:02x?} was acknowledged", crate::wire::request_name(request))))
        }
        Ok(_) => Ok(()),
        // A back-end may end the connection instead, which ends the session.
        Err(WireError::Closed(_)) => {
            Err(Finding::NotOffered("it ends connections instead of refusing".to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Stops a ring and starts it again at the same index.
fn stop(session: &mut Session) -> Result {
    for vring in 0..2u32 {
        let base = session.frontend.get_vring_base(vring)?;
        let used = session.nic.queues[vring as usize].ring.used_idx();
        // The receive ring may take a frame from elsewhere until it has stopped.
        ensure!(base == u32::from(used), "vring {vring} stopped at {base}, used.idx is {used}");
        let queue = &session.nic.queues[vring as usize];
        offer_vring(&session.frontend, &session.nic.mem, queue, used)?;
        session.frontend.set_vring_enable(vring, true)?;
    }
    Ok(())
}
