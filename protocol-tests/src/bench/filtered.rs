//! The cost of a filter: frames of known flows through volt-netd without a filter, with the guard, and with a
//! policy, in interleaved rounds; and frames that a policy refuses.

use std::fs;

use crate::bench::card::{Card, LIMIT};
use crate::bench::case::{Case, Direction, FLOWS, Traffic, plan};
use crate::bench::host::{FarEnd, add_tap};
use crate::bench::process::{Process, own_daemon};
use crate::bench::report::Spread;
use crate::bench::run::run as drive;
use crate::bench::suite::{Target, frames, start};
use crate::bench::{BenchError, pin};
use crate::netns::Netns;

/// The guest and its network are those of [`Traffic::Known`].
const POLICY: &str = "
[network]
gateways = ['10.9.0.254']
gateway-mac = '02:00:00:00:00:11'
[[allow]]
to = '198.51.100.0/24'
";
const GUARD: &str = "--guard --mac 02:00:00:00:00:12 --guest-ip 10.9.0.1";

/// Options of this measurement and of that of AF_XDP.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Repetitions of each measurement
    #[arg(long, default_value_t = 7)]
    pub(super) rounds: usize,
    /// Processor of the front-end
    #[arg(long, default_value_t = 0)]
    pub(super) front_cpu: usize,
    /// Processor of the daemons
    #[arg(long, default_value_t = 1)]
    pub(super) back_cpu: usize,
}

/// A daemon with its TAP.
struct Bed {
    // Ends before the namespace and the directory.
    process: Process,
    far: FarEnd,
    dir: tempfile::TempDir,
    _netns: Netns,
}

impl Bed {
    fn new(options: &Options, filter: &str) -> Result<Bed, BenchError> {
        let (netns, dir) = (Netns::new()?, tempfile::tempdir()?);
        fs::write(dir.path().join("policy.toml"), POLICY)?;
        add_tap(&netns, "judged", false)?;
        let program =
            own_daemon().ok_or_else(|| BenchError::Wrong("no volt-netd beside this program".to_owned()))?;
        let filter = filter.replace("{policy}", &dir.path().join("policy.toml").display().to_string());
        let text =
            format!("{} --tap {{tap}} --socket {{socket}} --log-level warn {filter}", program.display());
        let socket = dir.path().join("s");
        let process = start(&netns, &Target::Command(text), options.back_cpu, &socket, "judged", 1)?;
        netns.wait_until_up("judged", LIMIT)?;
        let far = FarEnd::open(&netns, "judged", 0)?;
        Ok(Bed { process, far, dir, _netns: netns })
    }

    /// Returns the daemon's CPU time for a frame of `case`, in nanoseconds.
    fn measure(&self, case: &Case) -> Result<f64, BenchError> {
        let socket = self.dir.path().join("s");
        if case.direction == Direction::Rx {
            // The guest opens the flows.
            let opens = Case { direction: Direction::Tx, ..*case };
            drive(&opens, &mut Card::connect(&opens, &socket)?, &self.far, &self.process, 4 * FLOWS)?;
        }
        let mut card = Card::connect(case, &socket)?;
        drive(case, &mut card, &self.far, &self.process, 2 * usize::from(case.ring))?;
        let cost = drive(case, &mut card, &self.far, &self.process, frames(case))?;
        Ok(cost.cpu.as_nanos() as f64 / cost.frames as f64)
    }
}

/// Measures known flows both ways at 64 and 1500 bytes, and refused frames, and returns a table.
pub fn run(options: &Options) -> Result<String, BenchError> {
    pin(options.front_cpu)?;
    let policy = format!("{GUARD} --policy {{policy}}");
    let beds = [Bed::new(options, "")?, Bed::new(options, GUARD)?, Bed::new(options, &policy)?];
    let base = Case { traffic: Traffic::Known, ..plan()[0] };
    let known = [Direction::Tx, Direction::Rx]
        .into_iter()
        .flat_map(|direction| [64, 1500].map(|size| Case { direction, size, ..base }));
    let refused = Case { traffic: Traffic::Refused, ..base };
    let mut table = String::from(
        "| frames | no filter, ns | guard, ns | ratio | policy, ns | ratio |\n\
         |---|---:|---:|---:|---:|---:|\n",
    );
    for case in known.chain([refused]) {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..options.rounds {
            for (bed, times) in beds.iter().zip(&mut times) {
                times.push(bed.measure(&case)?);
            }
        }
        let ratio = |of: usize| {
            Spread::of(times[of].iter().zip(&times[0]).map(|(filtered, plain)| filtered / plain)).median
        };
        let median = |of: usize| Spread::of(times[of].iter().copied()).median;
        table += &format!(
            "| {} | {:.0} | {:.0} | {:.2} | {:.0} | {:.2} |\n",
            case.name(),
            median(0),
            median(1),
            ratio(1),
            median(2),
            ratio(2),
        );
    }
    Ok(table)
}
