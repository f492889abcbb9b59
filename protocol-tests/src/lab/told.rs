//! A guest that runs what it is told over one TCP connection, which must last as long as the guest.
//!
//! The guest connects to [`PORT`] of the far host, and runs each line that it receives. It reports on its
//! console. `nc` sends nothing, so only acknowledgements go from the guest on this connection.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use super::PATIENCE;
use super::process::Process;
use crate::daemon::poll_until;

/// The port of the commands.
const PORT: u16 = 7100;

/// The listening end.
pub struct Commands {
    listener: TcpListener,
}

impl Commands {
    /// Listens in the namespace of the caller.
    ///
    /// # Panics
    /// If the port is not available.
    pub fn listen() -> Commands {
        Commands { listener: TcpListener::bind(("0.0.0.0", PORT)).expect("a port for commands") }
    }

    /// Returns shell commands by which the guest obeys, until the connection ends.
    pub fn obey(host: &str) -> String {
        format!(
            "mkfifo /tmp/commands; exec 4<>/tmp/commands
             nc {host} {PORT} <&4 | while read -r command; do eval \"$command\" </dev/null; done
             report connection ended"
        )
    }

    /// Waits for the guest's connection.
    ///
    /// # Panics
    /// If there is none in time.
    #[track_caller]
    pub fn accept(self, guest: Process) -> Told {
        self.listener.set_nonblocking(true).expect("a listener that can be asked");
        let accepted = poll_until(PATIENCE, || self.listener.accept().ok());
        let (stream, _) = accepted.unwrap_or_else(|| panic!("no connection of the guest: {guest}"));
        stream.set_nonblocking(false).expect("a connection that waits");
        Told { guest, stream, told: 0 }
    }
}

/// The guest, with its connection.
pub struct Told {
    guest: Process,
    stream: TcpStream,
    told: usize,
}

impl Told {
    /// Tells the guest to run `commands`, and returns what they reported.
    ///
    /// # Panics
    /// If the guest does not do so in time.
    #[track_caller]
    pub fn run(&mut self, commands: &str) -> Vec<String> {
        self.told += 1;
        let before = self.guest.reports().len();
        let (line, done) = (commands.replace('\n', " "), format!("told {} done", self.told));
        writeln!(self.stream, "{line}; report {done}").expect("the connection lasts");
        self.guest.wait_for(&done, PATIENCE);
        self.guest.reports().split_off(before)
    }

    /// Runs a step (`scripts/guest/init`), which must succeed.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn step(&mut self, name: &str, command: &str) {
        let reports = self.run(&format!("step {name} {command}"));
        assert!(reports.contains(&format!("{name} ok")), "{command}: {reports:?}: {}", self.guest);
    }

    /// Ends the connection, upon which the guest ends.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn finish(mut self) {
        drop(self.stream);
        self.guest.wait_for("VOLT connection ended", PATIENCE);
        assert!(self.guest.wait_exit(PATIENCE).success(), "{}", self.guest);
    }
}
