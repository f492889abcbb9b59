//! The environment of most tests of volt-netd: a namespace with a TAP or another port, the daemon on it, and
//! the wire behind it.
//!
//! [`Rig::new`] or [`Rig::on`] builds it, [`Rig::session`] connects a scripted front-end, [`Rig::both_ways`]
//! moves frames and compares them byte by byte. Tests of hostile input end with [`Rig::well`].

use std::fs::{File, read_link};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::{Daemon, Usage, next_netd};
use crate::far_end::{PortKind, Wire};
use crate::frame::{NetHeader, number_of, numbered};
use crate::frontend::Frontend;
use crate::netns::Netns;
use crate::session::{Session, Setup};

/// Time limit of every wait. On a quiet machine no wait comes near it, and no test may depend on its expiry:
/// it allows for a slow and busy machine, and makes faults visible.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Time to wait for an event that must not happen.
pub const QUIET: Duration = Duration::from_millis(120);

/// A daemon with a port in a separate namespace. A TAP is called `tap0`.
#[derive(Debug)]
pub struct Rig {
    /// The daemon. Fields are dropped in this order.
    pub daemon: Daemon,
    /// The far side of the port.
    pub wire: Wire,
    /// The kind of the port.
    pub port: PortKind,
    /// The namespace.
    pub netns: Netns,
    /// The directory with the socket.
    pub dir: tempfile::TempDir,
    next_number: u32,
}

impl Rig {
    /// Starts volt-netd on a TAP with these further arguments. `{control}` becomes [`Rig::control`],
    /// `{metrics}` the address of [`Rig::metrics`]. Returns `None`, and prints that `test` is skipped, if the
    /// machine allows no namespace.
    ///
    /// # Panics
    /// If the daemon does not start.
    pub fn new(test: &str, arguments: &[&str]) -> Option<Rig> {
        Rig::on(PortKind::Tap, test, arguments)
    }

    /// Like [`Rig::new`], on another kind of port.
    ///
    /// # Panics
    /// As [`Rig::new`].
    pub fn on(port: PortKind, test: &str, arguments: &[&str]) -> Option<Rig> {
        if port != PortKind::Tap && std::env::var_os("VOLT_NETD_BEFORE").is_some() {
            eprintln!("SKIP {test}: an earlier volt-netd may not have {port:?}");
            return None;
        }
        let netns = namespace(test)?;
        if port == PortKind::Xdp && !rustix::process::geteuid().is_root() {
            eprintln!("SKIP {test} by AF_XDP: not root");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        Wire::add_interface(port, &netns, arguments.contains(&"--queues")).expect("an interface of our own");
        let peer = Wire::peer(port, dir.path()).expect("a socket in a directory of our own");
        let daemon = start(port, &netns, &dir.path().join("s"), arguments);
        let wire = peer.unwrap_or_else(|| Wire::of_interface(port, &netns).expect("a packet socket"));
        Some(Rig { daemon, wire, port, netns, dir, next_number: 1_000_000 })
    }

    /// Starts another daemon after one has been stopped.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self, arguments: &[&str]) {
        self.daemon = start(self.port, &self.netns, &self.socket(), arguments);
    }

    /// Makes the interface again after a test has deleted it.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn add_port_again(&mut self) {
        Wire::add_interface(self.port, &self.netns, false).expect("the interface again");
        self.wire = Wire::of_interface(self.port, &self.netns).expect("a packet socket");
    }

    /// Returns the path of the daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Returns the path of the daemon's control socket, if it has one.
    pub fn control(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    /// Returns the path of the daemon's metrics socket, if it has one.
    pub fn metrics(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    /// Makes a new connection.
    ///
    /// # Panics
    /// If no answer arrives in time.
    pub fn connect(&self) -> Frontend {
        Frontend::connect(&self.socket(), LIMIT).expect("volt-netd takes a connection")
    }

    /// Starts a session by the usual script, with 64 receive buffers of 2 KiB on each enabled pair (fewer on
    /// a small ring).
    ///
    /// # Panics
    /// If the daemon refuses.
    pub fn session(&self, setup: &Setup) -> Session {
        let mut session = Session::start(self.connect(), setup).expect("volt-netd serves the usual script");
        for pair in 0..setup.enabled as usize {
            let count = usize::from(setup.size).min(64);
            session.rx(pair).fill(count, &[2048]).expect("receive buffers");
        }
        session
    }

    /// Returns a number that no frame of this rig has had before.
    pub fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    /// Moves `count` frames each way on pair 0, of all lengths that fit a buffer, and compares them.
    ///
    /// # Panics
    /// If one is lost, late or changed.
    pub fn both_ways(&mut self, session: &mut Session, count: u32) {
        for _ in 0..count {
            let number = self.number();
            let len = 60 + (number as usize * 97) % 1440;
            self.guest_to_wire(session, &numbered(number, len));
            self.wire_to_guest(session, &numbered(number, len));
        }
    }

    /// Sends one frame from the guest and compares the result.
    ///
    /// # Panics
    /// If it does not arrive unchanged.
    pub fn guest_to_wire(&self, session: &mut Session, frame: &[u8]) {
        let used =
            session.tx(0).send_cut(&NetHeader::default(), frame, &[], LIMIT).expect("the frame is used");
        assert_eq!(used.len, 0, "nothing is written to a transmit chain");
        self.expect(frame);
    }

    /// Sends one frame to the guest and compares the result.
    ///
    /// # Panics
    /// If it does not arrive unchanged.
    pub fn wire_to_guest(&self, session: &mut Session, frame: &[u8]) {
        self.wire.send(frame).expect("sent");
        let got = session.rx(0).recv(LIMIT).expect("the guest gets the frame");
        assert!(got.bytes == frame, "frame of {} bytes arrived as {:02x?}", frame.len(), got.bytes);
    }

    /// Takes the next frame from the wire, and compares it.
    ///
    /// # Panics
    /// If it differs.
    pub fn expect(&self, frame: &[u8]) {
        let (_, got) = self.wire.recv(LIMIT).expect("the wire").expect("a frame on the wire");
        assert!(got == frame, "frame of {} bytes arrived as {got:02x?}", frame.len());
    }

    /// Takes the frames that hostile input has left in the TAP and on the wire, up to a new frame each way.
    fn flush(&mut self, session: &mut Session) {
        let number = self.number();
        self.wire.send(&numbered(number, 100)).expect("sent");
        while number_of(&session.rx(0).recv(LIMIT).expect("frames flow to the guest").bytes) != Some(number) {
        }
        session.tx(0).send(&numbered(number, 100), LIMIT).expect("frames flow from the guest");
        let last = |frame: &(NetHeader, Vec<u8>)| number_of(&frame.1) == Some(number);
        while !last(&self.wire.recv(LIMIT).expect("the wire").expect("frames flow from the guest")) {}
    }

    /// Checks that the daemon lives, serves a normal session, does not spin, and has no more descriptors and
    /// threads than `before`.
    ///
    /// # Panics
    /// If one of these is false.
    pub fn well(&mut self, before: &Usage) {
        assert!(!self.daemon.has_exited(), "the daemon has ended:\n{}", self.daemon.log());
        let mut session = self.session(&Setup::default());
        self.flush(&mut session);
        self.both_ways(&mut session, 3);
        let ticks = self.daemon.idle_ticks(QUIET).expect("/proc");
        assert!(ticks <= 3, "the daemon used {ticks} ticks of {QUIET:?} while idle");
        drop(session);
        self.settled(before);
    }

    /// Waits until the daemon has no more descriptors and threads than `before`.
    ///
    /// # Panics
    /// If it keeps more.
    pub fn settled(&self, before: &Usage) {
        let back = crate::daemon::poll_until(LIMIT, || {
            let now = self.daemon.usage().ok()?;
            (now.fds <= before.fds && now.threads <= before.threads).then_some(())
        });
        assert!(back.is_some(), "before: {before:?}, now: {:?}", self.daemon.usage());
    }

    /// Returns the daemon's resources now.
    ///
    /// # Panics
    /// If it has gone.
    pub fn usage(&self) -> Usage {
        self.daemon.usage().expect("the daemon lives")
    }

    /// Returns the path of the daemon's program.
    ///
    /// # Panics
    /// If it has gone.
    pub fn program(&self) -> PathBuf {
        read_link(format!("/proc/{}/exe", self.daemon.pid())).expect("the daemon lives")
    }

    /// Waits for a log line with all of these words.
    ///
    /// # Panics
    /// If none appears.
    pub fn logged(&self, words: &[&str]) {
        let line = self.daemon.logged(0, words, LIMIT);
        assert!(line.is_some(), "no line with {words:?} in:\n{}", self.daemon.log());
    }
}

fn start(port: PortKind, netns: &Netns, socket: &Path, arguments: &[&str]) -> Daemon {
    let mut command = netns.command(next_netd());
    command.args(port.options(socket.parent().expect("a directory")));
    command.args(["--log-level", "debug", "--socket"]).arg(socket);
    for argument in arguments {
        match *argument {
            "{control}" => command.arg(socket.with_file_name("c")),
            "{metrics}" => command.arg(format!("unix:{}", socket.with_file_name("m").display())),
            other => command.arg(other),
        };
    }
    let mut daemon = Daemon::start(command).expect("volt-netd");
    daemon.wait_for_socket(socket, LIMIT).expect("volt-netd listens");
    // It has opened all its descriptors only after it has served a front-end.
    Frontend::connect(socket, LIMIT).and_then(|frontend| frontend.sync()).expect("volt-netd answers");
    assert!(daemon.logged(0, &["front-end gone"], LIMIT).is_some(), "{}", daemon.log());
    if port == PortKind::Tap {
        netns.wait_until_up("tap0", LIMIT).expect("the daemon serves the TAP");
    }
    daemon
}

/// Returns a namespace that can have TAPs, or prints why `test` is skipped.
pub fn namespace(test: &str) -> Option<Netns> {
    let made = File::options().read(true).write(true).open("/dev/net/tun").and_then(|_| Netns::new());
    made.inspect_err(|error| eprintln!("SKIP {test}: no network namespace with a TAP here: {error}")).ok()
}
