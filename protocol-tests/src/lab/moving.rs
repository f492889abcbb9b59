//! A guest under traffic that migrates: TCP both ways with its data compared, one connection that outlives
//! all migrations, and numbered echo requests around each of them.

use std::path::Path;

use serde_json::json;

use super::PATIENCE;
use super::echo::{Account, Echo, Outage};
use super::live::Live;
use super::migration::{Device, Figures, Guest, Host, Leg};
use super::parked::Parking;
use super::traffic::{Traffic, value};
use crate::daemon::poll_until;

/// MiB each way in a round of TCP.
const MIB: usize = 2;
/// Answers after a migration that show that the guest is reached at its new host.
const ENOUGH: usize = 20;

/// Data that is not sent as empty pages, and what the guest does without its network: it writes memory.
const NOISE: &str = "dd if=/dev/urandom of=/tmp/noise bs=1M count=4 2>/dev/null";
const WRITE: &str = "dd if=/tmp/noise of=/tmp/written bs=64k conv=notrunc 2>/dev/null";

/// What a migration took.
#[derive(Clone, Copy, Debug)]
pub struct Passage {
    /// QEMU's figures.
    pub figures: Figures,
    /// The echo requests meanwhile, one every [`INTERVAL`](super::echo::INTERVAL).
    pub account: Account,
    /// Their interruption.
    pub outage: Outage,
}

impl std::fmt::Display for Passage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { downtime, total, sent, passes } = self.figures;
        let (Account { sent: requests, lost, repeated }, Outage { longest, holes, stale }) =
            (self.account, self.outage);
        write!(
            formatter,
            "stood still for {downtime} of {total} ms, {} MiB in {passes} passes; without answers for {} ms; \
             {requests} echo requests, {lost} lost in {holes} periods, {repeated} repeated, {stale} from \
             before",
            sent >> 20,
            longest.as_millis()
        )
    }
}

/// The guest with its traffic.
pub struct Moving {
    /// The guest.
    pub guest: Guest,
    /// The QEMU in which it runs.
    pub at: Leg,
    device: Device,
    traffic: Traffic,
    live: Live,
    parking: Parking,
}

impl Moving {
    /// Boots a guest of `machine` at `host`, which also runs `each` in each round of TCP. Returns when the
    /// first round has begun.
    ///
    /// # Panics
    /// If it does not boot.
    #[track_caller]
    pub fn start(
        directory: &Path,
        host: &Host,
        machine: &'static str,
        device: Device,
        each: impl FnOnce(&Traffic) -> String,
    ) -> Moving {
        let (traffic, live, parking) = (Traffic::of(MIB), Live::listen(), Parking::listen());
        // Without IPv6: its neighbour discovery complains of the announcements of this same guest, which the
        // TAP of a host that it has left keeps until it is back.
        let script = format!(
            "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; {NOISE}; dmesg -c >/dev/null; \
             (step live {}; touch /tmp/over) & (while :; do {}; done) & \
             until [ -e /tmp/over ]; do report round; {}; {}; \
             ({}; touch /tmp/go) & until [ -e /tmp/go ]; do {WRITE}; done; rm /tmp/go; done; complaints",
            Live::guest(),
            Parking::guest(),
            traffic.both_ways_at_once(),
            each(&traffic),
            Live::gate(),
        );
        let mut guest = Guest::new(directory, machine, device.pairs, &script);
        let at = guest.boot(host, device);
        guest.console.wait_for("VOLT round", PATIENCE);
        poll_until(PATIENCE, || (live.bytes() > 0).then_some(())).expect("a live connection");
        Moving { guest, at, device, traffic, live, parking }
    }

    /// Moves the guest to `host`.
    ///
    /// # Panics
    /// If the migration fails, or the guest does not get on.
    #[track_caller]
    pub fn migrate(&mut self, host: &Host) -> Passage {
        let (next, address) = self.awaited_at(host);
        let echo = Echo::start();
        self.at.go(&address);
        self.arrives(next, echo)
    }

    /// Moves the guest to the QEMU that awaits it, and does `this` half-way. Afterwards, but before the guest
    /// leaves, it receives data that only its device writes.
    ///
    /// # Panics
    /// As [`Moving::migrate`], or if the guest finds other data at the destination.
    #[track_caller]
    pub fn migrate_and(&mut self, (next, address): (Leg, String), this: impl FnOnce()) -> Passage {
        let mut parked = self.parking.accept();
        let echo = Echo::start();
        self.at.go_half_way(&address);
        this();
        // Otherwise the guest's processor has just cleared the pages that its device writes next.
        self.live.pause();
        self.at.copy_again();
        parked.park();
        self.at.finish();
        let passage = self.arrives(next, echo);
        parked.judge();
        passage
    }

    #[track_caller]
    fn arrives(&mut self, mut next: Leg, echo: Echo) -> Passage {
        let figures = self.at.ended().unwrap_or_else(|state| panic!("the migration failed: {state:#}"));
        next.wait_until_running();
        self.live.resume();
        std::mem::replace(&mut self.at, next).quit();
        let answered = echo.answered();
        let again = poll_until(PATIENCE, || {
            // Tells at once if the connection is lost.
            self.live.bytes();
            (echo.answered() >= answered + ENOUGH).then_some(())
        });
        assert!(again.is_some(), "the guest is not reached at its new host");
        let (account, outage) = echo.stop_and_tell();
        self.gets_on();
        let passage = Passage { figures, account, outage };
        eprintln!("{passage}");
        passage
    }

    /// Starts to move the guest to `host`, gives up half-way, and waits until the guest has got on.
    ///
    /// # Panics
    /// If it does not, or the migration ends otherwise.
    #[track_caller]
    pub fn cancel_half_way(&mut self, host: &Host) {
        let (mut next, address) = self.awaited_at(host);
        self.at.begin(&address);
        self.at.qmp.done("migrate_cancel", &json!({}));
        let state = self.at.ended().expect_err("it was cancelled");
        assert_eq!(state["status"], "cancelled", "{state:#}");
        // A destination whose source has gone has nothing to run.
        assert!(!next.process.wait_exit(PATIENCE).success());
        self.moves_data();
    }

    /// Starts a QEMU for the guest at `host`.
    ///
    /// # Panics
    /// If it refuses.
    #[track_caller]
    pub fn awaited_at(&mut self, host: &Host) -> (Leg, String) {
        self.guest.awaited_at(host, self.device).unwrap_or_else(|mut process| {
            process.output();
            panic!("the destination did not start: {process}")
        })
    }

    /// Waits until the live connection has moved data, and the next round of TCP has begun.
    ///
    /// # Panics
    /// If they do not.
    #[track_caller]
    pub fn gets_on(&mut self) {
        // Rounds before now do not count.
        self.guest.console.output();
        self.moves_data();
        self.guest.console.wait_for("VOLT round", PATIENCE);
    }

    #[track_caller]
    fn moves_data(&self) {
        let before = self.live.bytes();
        let moved = poll_until(PATIENCE, || (self.live.bytes() > before + (1 << 20)).then_some(()));
        assert!(moved.is_some(), "the live connection stands still at {before} bytes");
    }

    /// Ends the guest, and returns its reports.
    ///
    /// # Panics
    /// If data was lost or wrong, a connection was reset, or the guest's kernel complained.
    #[track_caller]
    pub fn finish(mut self) -> Vec<String> {
        let bytes = self.live.end();
        self.guest.console.wait_for("VOLT exit 0", PATIENCE);
        let status = self.at.process.wait_exit(PATIENCE);
        assert!(status.success(), "{status}: {}", self.at.process);
        let reports = self.guest.console.reports();
        let rounds: Vec<_> = reports.split(|report| report == "round").skip(1).collect();
        assert!(!rounds.is_empty());
        for round in &rounds {
            self.traffic.judge_tcp(round);
            assert_eq!(value(round, "tcp_out status"), "0", "{round:?}");
        }
        assert!(reports.iter().any(|report| report == "live ok"), "{reports:?}");
        assert_eq!(complaints(&reports), Vec::<&str>::new());
        assert_eq!(resets(), 0, "connections were reset");
        eprintln!("{} rounds of TCP with {MIB} MiB each way; one connection of {bytes} bytes", rounds.len());
        reports
    }
}

/// Returns what the guest's kernel complained about. That it has measured its clock is no complaint: it says
/// so two seconds after its start.
///
/// # Panics
/// If the guest did not report the number of complaints.
#[track_caller]
fn complaints(reports: &[String]) -> Vec<&str> {
    let all: Vec<_> = reports.iter().filter_map(|report| report.strip_prefix("complaint ")).collect();
    assert_eq!(value(reports, "complaints"), all.len().to_string(), "{reports:?}");
    let of_clock = |text: &str| text.contains(" tsc: ") || text.contains("] clocksource: ");
    all.into_iter().filter(|text| !of_clock(text)).collect()
}

/// Returns the TCP connections of the test's namespace that a reset ended (`EstabResets`, RFC 4022).
///
/// # Panics
/// If the kernel does not count them.
#[track_caller]
fn resets() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("the counters");
    let mut rows = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (rows.next().expect("names"), rows.next().expect("values"));
    let at = names.split(' ').position(|name| name == "EstabResets").expect("the counter");
    values.split(' ').nth(at).expect("a value").parse().expect("a number")
}
