//! What most tests of volt-netd stand in: a namespace with a TAP, the daemon on it, and the wire behind it.
//!
//! [`Rig::new`] builds it, [`Rig::session`] connects a scripted front-end, [`Rig::both_ways`] moves frames
//! and compares them byte by byte, [`Rig::well`] is asked at the end of every abuse.

use std::fs::{File, read_link};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::{Daemon, Usage, next_netd};
use crate::frame::{NetHeader, number_of, numbered};
use crate::frontend::Frontend;
use crate::netns::{Netns, TapWire};
use crate::session::{Session, Setup};

/// How long anything may take that is waited for. Nothing waits so long on a quiet machine, and no test may
/// need that it is over: this is for a machine that is slow and busy, and for a fault to show at all.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How long is waited for something that must not happen.
pub const QUIET: Duration = Duration::from_millis(120);

/// A daemon with a TAP called `tap0` in a namespace of its own.
#[derive(Debug)]
pub struct Rig {
    /// The daemon. Fields end in this order.
    pub daemon: Daemon,
    /// The far side of the TAP.
    pub wire: TapWire,
    /// The namespace.
    pub netns: Netns,
    /// The directory with the socket.
    pub dir: tempfile::TempDir,
    next_number: u32,
}

impl Rig {
    /// Starts volt-netd on a TAP with these further arguments, of which `{control}` becomes
    /// [`Rig::control`], and `{metrics}` what serves at [`Rig::metrics`]. `None`: the machine allows no
    /// namespace, and a line says that `test` was skipped.
    ///
    /// # Panics
    /// When the daemon does not start.
    pub fn new(test: &str, arguments: &[&str]) -> Option<Rig> {
        let netns = namespace(test)?;
        netns.add_tap("tap0", arguments.contains(&"--queues")).expect("a TAP in a namespace of our own");
        let dir = tempfile::tempdir().expect("a directory");
        let daemon = start(&netns, &dir.path().join("s"), arguments);
        let wire = netns.wire("tap0").expect("a packet socket on the TAP");
        Some(Rig { daemon, wire, netns, dir, next_number: 1_000_000 })
    }

    /// Starts another daemon in place of one that has been stopped.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self, arguments: &[&str]) {
        self.daemon = start(&self.netns, &self.socket(), arguments);
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Where the daemon is controlled, if it was started so.
    pub fn control(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    /// Where the daemon serves metrics, if it was started so.
    pub fn metrics(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    /// A fresh connection.
    ///
    /// # Panics
    /// When nobody answers in time.
    pub fn connect(&self) -> Frontend {
        Frontend::connect(&self.socket(), LIMIT).expect("volt-netd takes a connection")
    }

    /// A session by the usual script, with 64 receive buffers of 2 KiB on each enabled pair (fewer on a small
    /// ring).
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn session(&self, setup: &Setup) -> Session {
        let mut session = Session::start(self.connect(), setup).expect("volt-netd serves the usual script");
        for pair in 0..setup.enabled as usize {
            let count = usize::from(setup.size).min(64);
            session.rx(pair).fill(count, &[2048]).expect("receive buffers");
        }
        session
    }

    /// A number that no frame of this rig had before.
    pub fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    /// Moves `count` frames each way on pair 0, of all lengths that fit a buffer, and compares them.
    ///
    /// # Panics
    /// When one is lost, late, or other than it was.
    pub fn both_ways(&mut self, session: &mut Session, count: u32) {
        for _ in 0..count {
            let number = self.number();
            let len = 60 + (number as usize * 97) % 1440;
            self.guest_to_wire(session, &numbered(number, len));
            self.wire_to_guest(session, &numbered(number, len));
        }
    }

    /// Sends one frame from the guest and compares what comes out.
    ///
    /// # Panics
    /// When it does not arrive as it was.
    pub fn guest_to_wire(&self, session: &mut Session, frame: &[u8]) {
        let used =
            session.tx(0).send_cut(&NetHeader::default(), frame, &[], LIMIT).expect("the frame is used");
        assert_eq!(used.len, 0, "nothing is written to a transmit chain");
        self.expect(frame);
    }

    /// Sends one frame to the guest and compares what comes out.
    ///
    /// # Panics
    /// When it does not arrive as it was.
    pub fn wire_to_guest(&self, session: &mut Session, frame: &[u8]) {
        self.wire.send(frame).expect("sent");
        let got = session.rx(0).recv(LIMIT).expect("the guest gets the frame");
        assert!(got.bytes == frame, "frame of {} bytes came as {:02x?}", frame.len(), got.bytes);
    }

    /// Takes the next frame from the wire, which must be this.
    ///
    /// # Panics
    /// When it is not.
    pub fn expect(&self, frame: &[u8]) {
        let (_, got) = self.wire.recv(LIMIT).expect("the wire").expect("a frame on the wire");
        assert!(got == frame, "frame of {} bytes came as {got:02x?}", frame.len());
    }

    /// Takes what abuse has left in the TAP and on the wire, up to a frame of its own each way.
    fn flush(&mut self, session: &mut Session) {
        let number = self.number();
        self.wire.send(&numbered(number, 100)).expect("sent");
        while number_of(&session.rx(0).recv(LIMIT).expect("frames flow to the guest").bytes) != Some(number) {
        }
        session.tx(0).send(&numbered(number, 100), LIMIT).expect("frames flow from the guest");
        let last = |frame: &(NetHeader, Vec<u8>)| number_of(&frame.1) == Some(number);
        while !last(&self.wire.recv(LIMIT).expect("the wire").expect("frames flow from the guest")) {}
    }

    /// The daemon lives, serves a normal session, does not spin, and has no more descriptors and threads than
    /// `before`.
    ///
    /// # Panics
    /// When one of it is not so.
    pub fn well(&mut self, before: &Usage) {
        assert!(!self.daemon.has_exited(), "the daemon has ended:\n{}", self.daemon.log());
        let mut session = self.session(&Setup::default());
        self.flush(&mut session);
        self.both_ways(&mut session, 3);
        let ticks = self.daemon.idle_ticks(QUIET).expect("/proc");
        assert!(ticks <= 3, "the daemon used {ticks} ticks of {QUIET:?} with nothing to do");
        drop(session);
        self.settled(before);
    }

    /// Waits until the daemon has no more descriptors and threads than `before`.
    ///
    /// # Panics
    /// When it keeps more.
    pub fn settled(&self, before: &Usage) {
        let back = crate::daemon::poll_until(LIMIT, || {
            let now = self.daemon.usage().ok()?;
            (now.fds <= before.fds && now.threads <= before.threads).then_some(())
        });
        assert!(back.is_some(), "before: {before:?}, now: {:?}", self.daemon.usage());
    }

    /// What the daemon uses now.
    ///
    /// # Panics
    /// When it has gone.
    pub fn usage(&self) -> Usage {
        self.daemon.usage().expect("the daemon lives")
    }

    /// The file of the daemon's program.
    ///
    /// # Panics
    /// When it has gone.
    pub fn program(&self) -> PathBuf {
        read_link(format!("/proc/{}/exe", self.daemon.pid())).expect("the daemon lives")
    }

    /// Waits for one log line with all of these words.
    ///
    /// # Panics
    /// When none comes.
    pub fn logged(&self, words: &[&str]) {
        let line = self.daemon.logged(0, words, LIMIT);
        assert!(line.is_some(), "no line with {words:?} in:\n{}", self.daemon.log());
    }
}

fn start(netns: &Netns, socket: &Path, arguments: &[&str]) -> Daemon {
    let mut command = netns.command(next_netd());
    command.args(["--tap", "tap0", "--log-level", "debug", "--socket"]).arg(socket);
    for argument in arguments {
        match *argument {
            "{control}" => command.arg(socket.with_file_name("c")),
            "{metrics}" => command.arg(format!("unix:{}", socket.with_file_name("m").display())),
            other => command.arg(other),
        };
    }
    let mut daemon = Daemon::start(command).expect("volt-netd");
    daemon.wait_for_socket(socket, LIMIT).expect("volt-netd listens");
    // It has opened all that it keeps only when it has served somebody.
    Frontend::connect(socket, LIMIT).and_then(|frontend| frontend.sync()).expect("volt-netd answers");
    assert!(daemon.logged(0, &["front-end gone"], LIMIT).is_some(), "{}", daemon.log());
    netns.wait_until_up("tap0", LIMIT).expect("the daemon serves the TAP");
    daemon
}

/// A namespace that can have TAPs, or a line that says why `test` is skipped.
pub fn namespace(test: &str) -> Option<Netns> {
    let made = File::options().read(true).write(true).open("/dev/net/tun").and_then(|_| Netns::new());
    made.inspect_err(|error| eprintln!("SKIP {test}: no network namespace with a TAP here: {error}")).ok()
}
