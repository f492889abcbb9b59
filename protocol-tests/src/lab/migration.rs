//! Live migration: a guest moves from one QEMU to another, with a volt-netd at each end.
//!
//! Each [`Host`] is a network namespace: a bridge with the daemon's TAP and an uplink. The namespace of the
//! test is the switch between them: it joins the uplinks, and has the far side's address. A bridge that still
//! sends to the old host would show as frames that stay lost.
//!
//! The guest's console is one FIFO through all its QEMUs, so a line that begins in one and ends in the next
//! is whole. It ends when no QEMU is left.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::guest::{Accel, Flavour, Image, QemuNet, Spec};
use super::netd::{TAP, address, ip};
use super::process::Process;
use super::qmp::Qmp;
use super::{PATIENCE, guest_file, program};
use crate::daemon::{child, poll_until};
use crate::netns::Netns;

const SWITCH: &str = "switch";
/// Milliseconds for which a guest may stand still: QEMU's default.
const DOWNTIME: u64 = 300;
/// Bytes a second while the whole memory is sent, in a migration that is to be held: a pass takes long enough
/// to be seen.
const PACE: u64 = 48 << 20;
/// Bytes a second while a migration is held: a guest that runs writes more.
const SLOW: u64 = 1 << 20;

/// Passes that certainly began and ended in a pause of the network.
const PASSES: u64 = 3;

/// The QEMUs that can run a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// Debian's stable one, of the machine.
    Debian,
    /// The newer one of the lab, or the machine's if `scripts/setup` needed none.
    Newer,
}

/// A network device, the same at both ends unless a test wants a refusal.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Queue pairs.
    pub pairs: u16,
    /// Properties, as `name=value` separated by commas.
    pub properties: &'static str,
}

/// A host: its volt-netd, its QEMU and its part of the network.
pub struct Host {
    /// The daemon; after a take-over, the successor.
    pub daemon: Process,
    /// The host's QEMU.
    pub emulator: Emulator,
    directory: PathBuf,
    supervise: bool,
    netns: Netns,
}

/// Makes the switch, with the far side's address.
///
/// # Panics
/// If the namespace has one, or `ip` fails.
pub fn switch() {
    ip(&["link", "add", SWITCH, "type", "bridge"]);
    address(SWITCH);
}

impl Host {
    /// Starts a host behind the switch: `name` of a few letters, `directory` for its sockets, `options` of
    /// its volt-netd.
    ///
    /// # Panics
    /// If the namespace or the daemon cannot be made.
    #[track_caller]
    pub fn start(directory: &Path, name: &str, emulator: Emulator, options: &[&str]) -> Host {
        let netns = Netns::new().expect("a network namespace");
        let (uplink, inside) = (format!("to-{name}"), netns.id().to_string());
        ip(&["link", "add", &uplink, "type", "veth", "peer", "name", "uplink", "netns", &inside]);
        ip(&["link", "set", &uplink, "master", SWITCH, "up"]);
        let directory = directory.join(name);
        std::fs::create_dir(&directory).expect("a directory");
        let mut command = netns.command(program("volt-netd"));
        command.args(["--tap", TAP, "--socket"]).arg(directory.join("net.sock"));
        command.arg("--control").arg(directory.join("net.ctl")).args(options);
        let mut daemon = Process::start(&format!("volt-netd {name}"), &mut command);
        daemon.wait_for("listening on", PATIENCE);
        let commands =
            ["link add bridge type bridge", "link set bridge up", "link set uplink master bridge up"];
        for command in commands.into_iter().chain([format!("link set {TAP} master bridge up").as_str()]) {
            netns.ip(command).unwrap_or_else(|error| panic!("ip {command}: {error}"));
        }
        Host { daemon, emulator, directory, supervise: options.contains(&"--supervise"), netns }
    }

    /// Replaces the daemon by `volt-netd --take-over`.
    ///
    /// # Panics
    /// If one of the two fails.
    #[track_caller]
    pub fn take_over(&mut self) {
        let mut command = self.netns.command(program("volt-netd"));
        command.args(self.supervise.then_some("--supervise"));
        command.arg("--take-over").arg(self.directory.join("net.ctl"));
        let mut successor = Process::start("volt-netd, successor", &mut command);
        successor.wait_for("took over from", PATIENCE);
        let mut old = std::mem::replace(&mut self.daemon, successor);
        assert!(old.wait_exit(PATIENCE).success(), "the previous daemon failed: {old}");
    }

    /// Kills the worker of a supervised daemon, and waits for the next one.
    ///
    /// # Panics
    /// If none continues.
    #[track_caller]
    pub fn kill_worker(&mut self) {
        let worker: Pid = poll_until(PATIENCE, || child(self.daemon.id())).expect("a worker");
        kill_process(worker, Signal::KILL).expect("the worker lives");
        self.daemon.wait_for("a new worker continues with its state", PATIENCE);
    }

    /// Returns what `volt-netd ctl status` says.
    ///
    /// # Panics
    /// If the daemon does not answer.
    #[track_caller]
    pub fn status(&self) -> Value {
        let mut command = Command::new(program("volt-netd"));
        command.args(["ctl", "status", "--json", "--control"]).arg(self.directory.join("net.ctl"));
        let output = command.output().expect("volt-netd ctl");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

/// A QEMU, with or without the guest in it.
pub struct Leg {
    /// Its own messages.
    pub process: Process,
    /// Its monitor.
    pub qmp: Qmp,
}

/// The guest of a test, wherever it runs.
pub struct Guest {
    /// Its console.
    pub console: Process,
    spec: Spec,
    machine: &'static str,
    directory: PathBuf,
    legs: usize,
}

/// A result of a migration, as the source reports it.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Milliseconds in which no processor of the guest ran.
    pub downtime: u64,
    /// Milliseconds in all.
    pub total: u64,
    /// Bytes of memory that were sent.
    pub sent: u64,
    /// Passes over the memory.
    pub passes: u64,
}

impl Guest {
    /// Prepares a guest of 128 MiB that runs `run`, with a processor for each of `pairs`.
    ///
    /// # Panics
    /// If `directory` cannot hold its console.
    pub fn new(directory: &Path, machine: &'static str, pairs: u16, run: &str) -> Guest {
        let base = Spec::new(run);
        let cpus = pairs.into();
        let spec = Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, cpus, memory: 128, ..base };
        let made = Command::new("mkfifo").arg(directory.join("console")).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo");
        let mut reader = Command::new("cat");
        reader.arg(directory.join("console"));
        let console = Process::start("the guest", &mut reader);
        Guest { console, spec, machine, directory: directory.into(), legs: 0 }
    }

    /// Boots it at `host`.
    ///
    /// # Panics
    /// If QEMU does not start.
    #[track_caller]
    pub fn boot(&mut self, host: &Host, device: Device) -> Leg {
        self.leg(host, device, &[]).unwrap_or_else(|mut process| {
            process.output();
            panic!("QEMU did not start: {process}")
        })
    }

    /// Starts a QEMU at `host` that waits for the guest, and returns it with the address for the source. If
    /// it does not start, returns its process.
    pub fn awaited_at(&mut self, host: &Host, device: Device) -> Result<(Leg, String), Box<Process>> {
        let address = format!("unix:{}", self.directory.join(format!("migration-{}", self.legs)).display());
        let leg = self.leg(host, device, &["-incoming", &address])?;
        Ok((leg, address))
    }

    fn leg(&mut self, host: &Host, device: Device, options: &[&str]) -> Result<Leg, Box<Process>> {
        let monitor = self.directory.join(format!("qmp-{}", self.legs));
        self.legs += 1;
        // Without MSI-X: QEMU 7.2 crashes when an emulated guest's vhost-user device starts with it.
        let properties = format!("vectors=0,mac=52:54:00:12:34:56,{}", device.properties);
        let socket = host.directory.join("net.sock");
        let net = QemuNet::VhostUser { socket, pairs: device.pairs, properties };
        let common = self.spec.qemu(Accel::Tcg, &net);
        let newer = guest_file("lab-qemu/usr");
        let mut command = if host.emulator == Emulator::Newer && newer.exists() {
            let mut command = Command::new(newer.join("bin/qemu-system-x86_64"));
            command.arg("-L").arg(newer.join("share/qemu")).args(["-L", "/usr/share/seabios"]);
            command
        } else {
            Command::new(common.get_program())
        };
        command.args(common.get_args().map(|word| match word.to_str() {
            Some("stdio") => "chardev:console".as_ref(),
            _ => word,
        }));
        let console = self.directory.join("console");
        command
            .args(["-chardev", &format!("file,id=console,append=on,path={}", console.display())])
            // A processor that both versions emulate.
            .args(["-machine", self.machine, "-cpu", "qemu64", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .args(options);
        let mut process = Process::start(&format!("qemu {}", self.legs), &mut command);
        let up = poll_until(PATIENCE, || match Qmp::connect(&monitor) {
            Ok(qmp) => Some(Some(qmp)),
            // Without the back-end it needs, QEMU ends, or tries for ever.
            Err(_) => {
                let tries = process.output().iter().any(|line| line.contains("failed to init vhost_net"));
                (process.has_ended() || tries).then_some(None)
            }
        });
        match up.flatten() {
            Some(qmp) => Ok(Leg { process, qmp }.told_of_failures()),
            None => Err(process.into()),
        }
    }
}

impl Leg {
    /// Lets a destination report a failure, even of the last step: without a return path the source ends in
    /// the belief that the guest has arrived.
    fn told_of_failures(mut self) -> Leg {
        let capability = json!({ "capability": "return-path", "state": true });
        self.qmp.done("migrate-set-capabilities", &json!({ "capabilities": [capability] }));
        self
    }

    /// Starts a migration, as fast as it can.
    pub fn go(&mut self, address: &str) {
        self.start(address, 0, DOWNTIME);
    }

    /// Starts a migration, and waits until some memory has been sent.
    ///
    /// # Panics
    /// If it does not get there.
    #[track_caller]
    pub fn begin(&mut self, address: &str) {
        self.start(address, SLOW, 1);
        self.wait_until(|ram| ram["transferred"].as_u64() >= Some(SLOW / 4));
    }

    /// Starts a migration, waits until all memory has been sent once, and holds it there.
    ///
    /// # Panics
    /// If it does not get there.
    #[track_caller]
    pub fn go_half_way(&mut self, address: &str) {
        self.start(address, PACE, 1);
        self.wait_until(|ram| ram["dirty-sync-count"].as_u64() >= Some(2));
        self.set(SLOW, 1);
    }

    /// Continues a migration that is held until what is written from now on arrives only if it is logged. The
    /// guest must write some megabytes in each pass, or it leaves.
    ///
    /// # Panics
    /// If it has left.
    #[track_caller]
    pub fn copy_again(&mut self) {
        let passes = |ram: &Value| ram["dirty-sync-count"].as_u64().expect("a number");
        let before = passes(&self.state()["ram"]);
        self.set(PACE, 1);
        self.wait_until(|ram| passes(ram) >= before + PASSES);
    }

    /// Lets a migration end that is held.
    ///
    /// # Panics
    /// If it has ended.
    #[track_caller]
    pub fn finish(&mut self) {
        let state = self.state();
        assert_eq!(state["status"], "active", "it was not half-way: {state:#}");
        self.set(0, DOWNTIME);
    }

    fn set(&mut self, bandwidth: u64, downtime: u64) {
        let parameters = json!({ "max-bandwidth": bandwidth, "downtime-limit": downtime });
        self.qmp.done("migrate-set-parameters", &parameters);
    }

    fn start(&mut self, address: &str, bandwidth: u64, downtime: u64) {
        self.set(bandwidth, downtime);
        self.qmp.done("migrate", &json!({ "uri": address }));
    }

    #[track_caller]
    fn wait_until(&mut self, done: impl Fn(&Value) -> bool) {
        let there = poll_until(PATIENCE, || {
            let state = self.state();
            let going = state["status"] == "setup" || state["status"] == "active";
            assert!(going, "the migration ended too early: {state:#}");
            done(&state["ram"]).then_some(())
        });
        assert!(there.is_some(), "the migration stands still: {:#}", self.state());
    }

    /// Returns the state of the migration.
    pub fn state(&mut self) -> Value {
        self.qmp.done("query-migrate", &json!({}))
    }

    /// Waits for the end of the migration. The error is QEMU's last state.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn ended(&mut self) -> Result<Figures, Value> {
        let state = poll_until(PATIENCE, || {
            let state = self.state();
            let status = state["status"].as_str().unwrap_or_default();
            ["completed", "failed", "cancelled"].contains(&status).then_some(state)
        });
        let state = state.unwrap_or_else(|| panic!("the migration does not end: {:#}", self.state()));
        if state["status"] != "completed" {
            return Err(state);
        }
        let number = |value: &Value| value.as_u64().expect("a number");
        Ok(Figures {
            downtime: number(&state["downtime"]),
            total: number(&state["total-time"]),
            sent: number(&state["ram"]["transferred"]),
            passes: number(&state["ram"]["dirty-sync-count"]),
        })
    }

    /// Waits until the guest runs here.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn wait_until_running(&mut self) {
        let running = || self.qmp.done("query-status", &json!({}))["running"].as_bool()?.then_some(());
        assert!(poll_until(PATIENCE, running).is_some(), "the guest does not run");
    }

    /// Ends a QEMU that the guest has left.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn quit(mut self) {
        self.qmp.done("quit", &json!({}));
        let status = self.process.wait_exit(PATIENCE);
        assert!(status.success(), "{status}: {}", self.process);
    }
}
