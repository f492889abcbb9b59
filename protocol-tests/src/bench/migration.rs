//! The back-end's share of a live migration's downtime: the stop of the rings at the source, and the set-up
//! at the destination up to the first frame.
//!
//! Two daemons serve one card in turn. As with QEMU, the destination is connected and has negotiated before
//! the source stops; after that come the features, the memory table and the rings.

use std::time::{Duration, Instant};

use crate::bench::card::LIMIT;
use crate::bench::host::add_tap;
use crate::bench::report::Spread;
use crate::bench::suite::{Target, start};
use crate::bench::{BenchError, pin};
use crate::dirty_log::DirtyLog;
use crate::frame::numbered;
use crate::frontend::Frontend;
use crate::netns::Netns;
use crate::session::{Session, SessionError, Setup, negotiate};
use crate::wire::{feature, protocol};

/// Options of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Migrations of each number of queue pairs
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Processor of the front-end
    #[arg(long, default_value_t = 0)]
    front_cpu: usize,
    /// Processor of the daemons
    #[arg(long, default_value_t = 1)]
    back_cpu: usize,
}

/// Measures migrations with one queue pair and with four, and returns a table.
pub fn run(options: &Options) -> Result<String, BenchError> {
    pin(options.front_cpu)?;
    let mut table = String::from(
        "| queue pairs | migrations | stop at the source, ms: median | \
         start at the destination, ms: median | together, ms: median | worst |\n\
         |---:|---:|---:|---:|---:|---:|\n",
    );
    for pairs in [1, 4] {
        let times = migrations(options, pairs)?;
        let spread = |of: fn(&Times) -> Duration| Spread::of(times.iter().map(|t| of(t).as_secs_f64() * 1e3));
        let all = spread(|times| times.stop + times.start);
        table += &format!(
            "| {pairs} | {} | {:.2} | {:.2} | {:.2} | {:.2} |\n",
            times.len(),
            spread(|times| times.stop).median,
            spread(|times| times.start).median,
            all.median,
            all.max,
        );
    }
    Ok(table)
}

/// The times of one migration.
struct Times {
    stop: Duration,
    start: Duration,
}

fn migrations(options: &Options, pairs: u32) -> Result<Vec<Times>, BenchError> {
    let (netns, dir) = (Netns::new()?, tempfile::tempdir()?);
    let mut daemons = Vec::new();
    for name in ["move0", "move1"] {
        add_tap(&netns, name, pairs > 1)?;
        let socket = dir.path().join(name);
        let process = start(&netns, &Target::Own, options.back_cpu, &socket, name, pairs as usize)?;
        netns.wait_until_up(name, LIMIT)?;
        daemons.push((process, socket));
    }
    let wanted = protocol::MQ | protocol::REPLY_ACK | protocol::LOG_SHMFD;
    let setup = Setup { protocol: wanted, ..Setup::pairs(pairs) };
    let connect = |at: usize| Frontend::connect(&daemons[at % 2].1, LIMIT);
    let mut session = Session::start(connect(0)?, &setup)?;
    session.rx(0).fill(64, &[2048]).map_err(SessionError::from)?;
    let mut times = Vec::new();
    for round in 1..=options.rounds {
        let _log = log(&session)?;
        session.tx(0).send(&numbered(0, 100), LIMIT).map_err(SessionError::from)?;
        let mut destination = connect(round)?;
        negotiate(&mut destination, setup.features, setup.protocol)?;
        let begin = Instant::now();
        let (_, nic) = session.stop()?;
        let stopped = Instant::now();
        destination.set_features(nic.features)?;
        session = Session { frontend: destination, nic, protocol: wanted };
        session.restart()?;
        session.tx(0).send(&numbered(1, 100), LIMIT).map_err(SessionError::from)?;
        times.push(Times { stop: stopped - begin, start: stopped.elapsed() });
    }
    Ok(times)
}

/// Switches logging on, as a migration does at its beginning.
fn log(session: &Session) -> Result<DirtyLog, BenchError> {
    let nic = &session.nic;
    let end = nic.mem.specs().iter().map(|spec| spec.guest + spec.size).max().unwrap_or(0);
    let log = DirtyLog::covering(end)?;
    session.frontend.set_log_base(&log)?;
    session.frontend.set_features(nic.features | feature::LOG_ALL)?;
    for queue in &nic.queues {
        let layout = queue.ring.layout();
        session.frontend.set_vring_addr_logged(queue.vring, &nic.mem, &layout, Some(layout.used))?;
    }
    Ok(log)
}
