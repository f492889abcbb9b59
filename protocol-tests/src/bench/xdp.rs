//! The cost of a frame by AF_XDP: volt-netd on one end of a veth pair, beside a bare loop that copies each
//! frame once, volt-netd on a TAP, and the bare system calls on a TAP, in interleaved rounds.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::bench::card::{Card, LIMIT};
use crate::bench::case::{Case, Direction, TSO, plan};
use crate::bench::filtered::Options;
use crate::bench::floor::{Floor, Shape, thread_time};
use crate::bench::host::{FarEnd, add_tap};
use crate::bench::process::{Process, own_daemon};
use crate::bench::report::Spread;
use crate::bench::run::run as drive;
use crate::bench::suite::{Target, start};
use crate::bench::{BenchError, pin};
use crate::netns::Netns;

/// The interface of a daemon or loop, and the other end of a veth pair.
const NAME: &str = "near0";
const PEER: &str = "far0";
/// Frames that wait for the receiver at most: fewer than the receive ring has entries.
const ROOM: usize = 960;
/// Frames of a run.
const FRAMES: usize = 48_000;

/// A daemon with its interface.
struct Bed {
    // Ends before the namespace and the directory.
    process: Process,
    far: FarEnd,
    dir: tempfile::TempDir,
    _netns: Netns,
}

impl Bed {
    fn new(options: &Options, by_xdp: bool) -> Result<Bed, BenchError> {
        let (netns, dir) = (Netns::new()?, tempfile::tempdir()?);
        let (option, far) = if by_xdp { ("--xdp", PEER) } else { ("--tap", NAME) };
        match by_xdp {
            true => netns.add_veth(NAME, PEER, false)?,
            false => add_tap(&netns, NAME, false)?,
        }
        let program = daemon()?;
        let text = format!("{program} {option} {{tap}} --socket {{socket}} --log-level warn");
        let socket = dir.path().join("s");
        let process = start(&netns, &Target::Command(text), options.back_cpu, &socket, NAME, 1)?;
        netns.wait_until_up(NAME, LIMIT)?;
        let far = FarEnd::open(&netns, far, 0)?.with_room(ROOM);
        Ok(Bed { process, far, dir, _netns: netns })
    }

    /// Returns the daemon's CPU time for a frame of `case`, in nanoseconds.
    fn measure(&self, case: &Case) -> Result<f64, BenchError> {
        let mut card = Card::connect(case, &self.dir.path().join("s"))?;
        let frames = if case.size == TSO { FRAMES / 16 } else { FRAMES };
        drive(case, &mut card, &self.far, &self.process, 2 * usize::from(case.ring))?;
        let cost = drive(case, &mut card, &self.far, &self.process, frames)?;
        Ok(cost.cpu.as_nanos() as f64 / cost.frames as f64)
    }
}

fn daemon() -> Result<String, BenchError> {
    let program =
        own_daemon().ok_or_else(|| BenchError::Wrong("no volt-netd beside this program".to_owned()))?;
    Ok(program.display().to_string())
}

/// The bare loop with its interface.
struct Bare {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    far: FarEnd,
    /// CPU time of the sender for a frame to the loop, in nanoseconds. On a veth it includes the kernel's
    /// part of receiving it.
    sender: f64,
    _netns: Netns,
}

impl Bare {
    fn new(options: &Options) -> Result<Bare, BenchError> {
        let netns = Netns::new()?;
        netns.add_veth(NAME, PEER, false)?;
        netns.wait_until_up(NAME, LIMIT)?;
        let mut command = netns.command(daemon()?);
        command.args(["xdp-helper", NAME, "--"]).arg(std::env::current_exe()?);
        command.args(["xdp-loop", "--cpu", &options.back_cpu.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().ok_or_else(|| BenchError::Wrong("no output".to_owned()))?;
        let far = FarEnd::open(&netns, PEER, 0)?.with_room(ROOM);
        let mut bare =
            Bare { child, orders, answers: BufReader::new(answers), far, sender: 0.0, _netns: netns };
        // It is ready when it answers.
        bare.order("tx 64 64")?;
        Ok(bare)
    }

    fn order(&mut self, order: &str) -> Result<f64, BenchError> {
        if let Some(orders) = &mut self.orders {
            writeln!(orders, "{order}")?;
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().map_err(|_| BenchError::Wrong(format!("the bare loop answers '{line}'")))
    }

    /// Returns the loop's CPU time for a frame of `case`, in nanoseconds.
    fn measure(&mut self, case: &Case) -> Result<f64, BenchError> {
        if case.direction == Direction::Tx {
            return Ok(self.order(&format!("tx {} {FRAMES}", case.size))? / FRAMES as f64);
        }
        let (mut done, mut total) = (0, 0.0);
        self.sender = 0.0;
        while done < FRAMES {
            let start = thread_time();
            self.far.burst(case, ROOM)?;
            self.sender += (thread_time() - start).as_nanos() as f64 / FRAMES as f64;
            total += self.order(&format!("rx {ROOM}"))?;
            done += ROOM;
        }
        Ok(total / done as f64)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.wait();
    }
}

/// Measures both ways at 64 and 1500 bytes, and segments that the daemon cuts, and returns a table. The ratio
/// to the bare loop includes the kernel's part of receiving, which the sender pays.
pub fn run(options: &Options) -> Result<String, BenchError> {
    pin(options.front_cpu)?;
    let floor = Floor::new(options.back_cpu)?;
    let (mut bare, tap, xdp) = (Bare::new(options)?, Bed::new(options, false)?, Bed::new(options, true)?);
    let cases = [Direction::Tx, Direction::Rx]
        .into_iter()
        .flat_map(|direction| [64, 1500].map(|size| Case { direction, size, ..plan()[0] }));
    let segments = Case { direction: Direction::Tx, size: TSO, ..plan()[0] };
    let mut table = String::from(
        "| frames | bare TAP, ns | volt-netd on TAP, ns | sender, ns | bare AF_XDP, ns | volt-netd on \
         AF_XDP, ns | to bare AF_XDP | to bare TAP |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for case in cases.chain([segments]) {
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            let cut = case.size == TSO;
            let bare_tap = floor.measure(&case, Shape::Best, if cut { FRAMES / 16 } else { FRAMES })?;
            let bare_xdp = if cut { f64::NAN } else { bare.measure(&case)? };
            let sender = if case.direction == Direction::Rx { bare.sender } else { 0.0 };
            let (by_tap, by_xdp) = (tap.measure(&case)?, xdp.measure(&case)?);
            rounds.push([bare_tap.as_nanos() as f64, by_tap, sender, bare_xdp, by_xdp]);
        }
        let median = |of: usize| Spread::of(rounds.iter().map(|round| round[of])).median;
        let ratio = |of: &dyn Fn(&[f64; 5]) -> f64| Spread::of(rounds.iter().map(of)).median;
        table += &format!(
            "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} |\n",
            case.name(),
            median(0),
            median(1),
            median(2),
            median(3),
            median(4),
            ratio(&|[_, _, sender, bare, daemon]| (sender + daemon) / (sender + bare)),
            ratio(&|[tap, _, _, _, daemon]| daemon / tap),
        );
    }
    Ok(table)
}
