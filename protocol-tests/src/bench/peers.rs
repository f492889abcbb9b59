//! Ports to peers: what segmentation for a peer costs, and what two guests cost that are each other's peer,
//! beside two guests on TAPs of one bridge.

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::bench::card::{Card, LIMIT};
use crate::bench::case::{Case, Direction, MTU, TSO, plan};
use crate::bench::process::{Process, own_daemon};
use crate::bench::{BenchError, host, pin};
use crate::frame::NET_HEADER_LEN;
use crate::netns::Netns;

/// Frames between two guests that are under way at most, so that no interface drops any.
const UNDER_WAY: usize = 256;

/// Options of the measurement.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Number of rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Frames of 64 bytes in a round; fewer of longer frames
    #[arg(long, default_value_t = 400_000)]
    frames: usize,
    /// volt-netd to measure (default: the one beside this program)
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// A row of the table: frames and bytes for each second of processor time, one a round.
struct Row {
    name: &'static str,
    frames: Vec<f64>,
    bytes: Vec<f64>,
}

/// What two guests have between them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    Stream,
    Bridge,
}

/// Measures, and returns the tables.
///
/// # Errors
/// As [`BenchError`] tells.
pub fn run(options: &Options) -> Result<String, BenchError> {
    pin(0)?;
    let program = options.program.clone().or_else(own_daemon);
    let program = program.ok_or_else(|| BenchError::Wrong("no volt-netd; build it".to_owned()))?;
    let of = |size| plan().into_iter().find(|case| case.direction == Direction::Tx && case.size == size);
    let [small, plain, tso] = [64, 1500, TSO].map(|size| of(size).expect("a case of the plan"));
    let row = |name| Row { name, frames: Vec::new(), bytes: Vec::new() };
    let mut to_peer = [row("segments, cut by the guest"), row("65,000 bytes, cut by the daemon")];
    let mut between = [
        row("64 bytes, stream"),
        row("64 bytes, TAP + bridge + TAP"),
        row("1500 bytes, stream"),
        row("1500 bytes, TAP + bridge + TAP"),
        row("65,000 bytes, stream, cut by the daemon"),
        row("65,000 bytes, stream, whole"),
        row("65,000 bytes, TAP + bridge + TAP"),
    ];
    for _ in 0..options.rounds {
        to_peer[0].add(drained(&program, &plain, options.frames)?, 1500);
        to_peer[1].add(drained(&program, &tso, options.frames / 20)?, TSO);
        for (at, case, count, whole, what) in [
            (0, &small, options.frames, false, Between::Stream),
            (1, &small, options.frames, false, Between::Bridge),
            (2, &plain, options.frames / 2, false, Between::Stream),
            (3, &plain, options.frames / 2, false, Between::Bridge),
            (4, &tso, options.frames / 20, false, Between::Stream),
            (5, &tso, options.frames / 20, true, Between::Stream),
            (6, &tso, options.frames / 20, false, Between::Bridge),
        ] {
            between[at].add(guests(&program, case, count, whole, what)?, case.size);
        }
    }
    Ok(table("a guest to a peer that reads", &to_peer) + &table("guest to guest", &between))
}

impl Row {
    fn add(&mut self, (frames, cpu): (usize, Duration), size: usize) {
        let rate = frames as f64 / cpu.as_secs_f64();
        self.frames.push(rate);
        self.bytes.push(rate * size as f64);
    }
}

fn table(title: &str, rows: &[Row]) -> String {
    let median = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    let mut text =
        format!("\n| {title} | frames a processor second | MB a processor second |\n|---|---:|---:|\n");
    for row in rows {
        let ((frames, least, most), (bytes, ..)) = (median(&row.frames), median(&row.bytes));
        let _ = writeln!(
            text,
            "| {} | {:.0} k ({:.0}-{:.0}) | {:.0} |",
            row.name,
            frames / 1e3,
            least / 1e3,
            most / 1e3,
            bytes / 1e6
        );
    }
    text
}

fn daemon(netns: &Netns, program: &Path, socket: &Path, port: &[&str]) -> Result<Process, BenchError> {
    let mut command = netns.command(program);
    command.args(port).args(["--log-level", "error", "--control"]).arg(socket.with_extension("ctl"));
    command.arg("--socket").arg(socket);
    Process::start(command, 1, socket)
}

/// A guest sends to a peer that reads everything.
fn drained(program: &Path, case: &Case, count: usize) -> Result<(usize, Duration), BenchError> {
    let (netns, dir) = (Netns::new()?, tempfile::tempdir()?);
    let (path, socket) = (dir.path().join("peer"), dir.path().join("s"));
    let listener = UnixListener::bind(&path)?;
    let process = daemon(&netns, program, &socket, &["--stream", &path.display().to_string()])?;
    let mut stream = listener.accept()?.0;
    let reader = std::thread::spawn(move || {
        let mut piece = vec![0; 1 << 18];
        while stream.read(&mut piece).is_ok_and(|len| len > 0) {}
    });
    let mut card = Card::connect(case, &socket)?;
    let mut send = |count| {
        let (mut sent, mut done, start) = (0, 0, Instant::now());
        while done < count {
            sent += card.rings[1].offer(count - sent);
            done += card.rings[1].reap();
            alive(start)?;
        }
        Ok::<_, BenchError>(())
    };
    send(count / 10)?;
    process.settle();
    let before = process.cpu_time()?;
    send(count)?;
    process.settle();
    let cpu = process.cpu_time()? - before;
    drop(card);
    drop(process);
    let _ = reader.join();
    Ok((count, cpu))
}

/// Returns the bytes that the other guest gets for a frame, with headers.
fn received(size: usize, is_cut: bool) -> usize {
    const HEADERS: usize = 54;
    const SEGMENT: usize = 1448;
    match is_cut {
        true => size - HEADERS + (size - HEADERS).div_ceil(SEGMENT) * (HEADERS + NET_HEADER_LEN),
        false => size + NET_HEADER_LEN,
    }
}

fn alive(start: Instant) -> Result<(), BenchError> {
    if start.elapsed() > LIMIT {
        return Err(BenchError::Wrong(format!("frames stopped: not done within {LIMIT:?}")));
    }
    Ok(())
}

/// A guest sends to another. `whole`: without an offload header, as frames of their full length.
fn guests(
    program: &Path,
    case: &Case,
    count: usize,
    whole: bool,
    between: Between,
) -> Result<(usize, Duration), BenchError> {
    let (netns, dir) = (Netns::new()?, tempfile::tempdir()?);
    let path = dir.path().join("peer").display().to_string();
    let listen = format!("{path},listen");
    let sockets = ["a", "b"].map(|name| dir.path().join(name));
    if between == Between::Bridge {
        netns.ip("link add br0 type bridge")?;
        netns.ip("link set br0 mtu 9000 up")?;
        for name in ["tap0", "tap1"] {
            host::add_tap(&netns, name, false)?;
            netns.ip(&format!("link set {name} master br0"))?;
        }
    }
    let ports = match between {
        Between::Stream => [["--stream", &listen], ["--stream", &path]],
        Between::Bridge => [["--tap", "tap0"], ["--tap", "tap1"]],
    };
    let a = daemon(&netns, program, &sockets[0], &ports[0])?;
    let b = daemon(&netns, program, &sockets[1], &ports[1])?;
    let mut from = Card::connect(case, &sockets[0])?;
    let mut to = Card::connect(&Case { direction: Direction::Rx, ring: 1024, ..*case }, &sockets[1])?;
    if between == Between::Bridge {
        netns.wait_until_up("tap0", LIMIT)?;
        netns.wait_until_up("tap1", LIMIT)?;
    }
    if whole {
        let parts = case.parts().len();
        let first: Vec<u64> = from.buffers[1].iter().copied().step_by(parts).collect();
        first.iter().for_each(|at| from.write(*at, &[0; NET_HEADER_LEN]));
    }
    let is_cut = between == Between::Stream && !whole && case.size > MTU;
    let received = received(case.size, is_cut);
    let mut send = |count: usize| {
        let (mut sent, mut done, start) = (0, 0, Instant::now());
        let due = (count * received) as u64;
        let before = to.rings[0].written;
        while to.rings[0].written - before < due {
            to.rings[0].offer(usize::MAX);
            to.rings[0].reap();
            let got = (to.rings[0].written - before) as usize / received;
            sent += from.rings[1].offer((got + UNDER_WAY).saturating_sub(sent).min(count - sent));
            done += from.rings[1].reap();
            alive(start)?;
        }
        while done < sent {
            done += from.rings[1].reap();
            to.rings[0].reap();
        }
        Ok::<_, BenchError>(())
    };
    // The first frames are dropped until the bridge forwards and the peer is accepted.
    std::thread::sleep(Duration::from_secs(1));
    send(count / 10)?;
    [&a, &b].iter().for_each(|process| process.settle());
    let before = a.cpu_time()? + b.cpu_time()?;
    send(count)?;
    [&a, &b].iter().for_each(|process| process.settle());
    Ok((count, a.cpu_time()? + b.cpu_time()? - before))
}
