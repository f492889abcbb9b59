//! A user's terminal: raw while the machine uses it, and restored in the background and at every end.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::console::echo;
use crate::guest::{Code, Machine, Running, eventually, kvm};
use crate::output::PIPE;

/// A pseudo-terminal: the user's side, the machine's side, and its original settings.
pub(crate) struct Terminal {
    pub(crate) user: File,
    side: OwnedFd,
    found: Termios,
}

pub(crate) fn terminal() -> Terminal {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let side = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let found = tcgetattr(&side).unwrap();
    Terminal { user: File::from(user), side, found }
}

impl Terminal {
    pub(crate) fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.side).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    #[track_caller]
    pub(crate) fn assert_restored(&self) {
        let now = tcgetattr(&self.side).unwrap();
        assert_eq!(now.local_modes, self.found.local_modes);
        assert_eq!(now.input_modes, self.found.input_modes);
        assert_eq!(now.output_modes, self.found.output_modes);
    }

    pub(crate) fn start(&self, code: Code) -> Running {
        let stdin = self.side.try_clone().unwrap();
        let mut machine = Machine::new(&code.bzimage()).stdin(stdin).spawn();
        machine.expect("up");
        assert!(self.is_raw());
        machine
    }
}

/// The terminal is restored however the process ends: by the guest, by a signal, by a crash.
#[test]
fn the_terminal_is_restored() {
    if !kvm("the_terminal_is_restored") {
        return;
    }
    // No exit status means that the signal's default action ended the process.
    let crashes =
        [Signal::SEGV, Signal::BUS, Signal::ILL, Signal::FPE, Signal::ABORT, Signal::TRAP, Signal::SYS];
    let ends = [(None, Some(0)), (Some(Signal::TERM), Some(143)), (Some(Signal::XCPU), Some(152))];
    for (signal, status) in ends.into_iter().chain(crashes.map(|signal| (Some(signal), None))) {
        let mut terminal = terminal();
        let machine = terminal.start(echo());
        match signal {
            Some(signal) => machine.signal(signal),
            None => terminal.user.write_all(b"q").unwrap(),
        }
        let end = machine.wait();
        assert_eq!(end.status.code(), status, "{signal:?}: {end:?}");
        terminal.assert_restored();
    }
}

/// A machine's end restores the terminal before it waits for a reader of the last output. The first signal
/// does not change that end: the status is the guest's.
#[test]
fn an_end_that_waits_has_given_the_terminal_back() {
    if !kvm("an_end_that_waits_has_given_the_terminal_back") {
        return;
    }
    // The wait takes a second, which may be over before the check on a busy machine.
    let seen = (0..10).any(|_| {
        let mut terminal = terminal();
        let mut machine = terminal.start(print_on_key(PIPE as u32 + 1024).power_off());
        fcntl_setpipe_size(machine.child.stdout.as_ref().unwrap(), PIPE).unwrap();
        terminal.user.write_all(b"x").unwrap();
        eventually("the terminal is given back", || !terminal.is_raw());
        let waits = machine.child.try_wait().unwrap().is_none();
        if waits {
            machine.signal(Signal::TERM);
        }
        let end = machine.wait_unread();
        assert_eq!(end.status.code(), Some(0), "{end:?}");
        terminal.assert_restored();
        waits && end.log.contains("bytes of serial output were lost")
    });
    assert!(seen, "no end has waited");
}

/// Prints "up", and `count` digits after a key press.
fn print_on_key(count: u32) -> Code {
    // next: mov dx, 0x3fd; in al, dx; test al, 1; jz next
    let key = [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7];
    Code::new().print("up").out(0x3f9, 1).raw(&key).digits(count)
}

/// A machine that was stopped makes the terminal raw again when it continues, whatever a shell has changed.
#[test]
fn a_machine_that_goes_on_is_raw_again() {
    if !kvm("a_machine_that_goes_on_is_raw_again") {
        return;
    }
    let mut terminal = terminal();
    let mut machine = terminal.start(echo());
    machine.signal(Signal::STOP);
    eventually("it stops", || machine.is_stopped());
    tcsetattr(&terminal.side, OptionalActions::Now, &terminal.found).unwrap();
    machine.signal(Signal::CONT);
    eventually("the terminal is raw again", || terminal.is_raw());
    terminal.user.write_all(b"x\x03").unwrap();
    machine.expect("x\x03");
    terminal.user.write_all(b"\x01x").unwrap();
    assert_eq!(machine.wait().status.code(), Some(0));
    terminal.assert_restored();
}

/// In a shell's background, the guest runs and the shell has the terminal. In the foreground, the guest gets
/// the keys. SIGTSTP restores the terminal. When the shell continues the machine, the terminal is raw again.
#[test]
fn a_shell_puts_it_into_the_background_and_back() {
    if !kvm("a_shell_puts_it_into_the_background_and_back") {
        return;
    }
    let mut terminal = terminal();
    // The shell prints when it has the terminal, as far as it knows, and reads a line before each `fg`.
    let script = r#"set -m; "$@" & read -r _; fg >/dev/null; echo stopped >&2; read -r _; fg >/dev/null"#;
    let shell = ["setsid", "--ctty", "--wait", "dash", "-c", script, "dash"];
    let stdin = terminal.side.try_clone().unwrap();
    let machine = Machine::new(&echo().bzimage()).by(&shell).stdin(stdin);
    let mut machine = machine.spawn();
    machine.expect("up");
    assert!(!terminal.is_raw(), "the shell has the terminal");
    terminal.user.write_all(b"\n").unwrap();
    eventually("the terminal is raw in the foreground", || terminal.is_raw());
    terminal.user.write_all(b"a\x03").unwrap();
    machine.expect("a\x03");
    machine.signal(Signal::TSTP);
    eventually("the terminal is the shell's again", || !terminal.is_raw());
    terminal.assert_restored();
    // Before that, input may still go to the guest.
    eventually("it stops", || machine.is_stopped());
    terminal.user.write_all(b"\n").unwrap();
    eventually("the terminal is raw again", || terminal.is_raw());
    terminal.user.write_all(b"bq").unwrap();
    machine.expect("b");
    let end = machine.wait();
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    assert!(end.log.contains("in the background") && end.log.contains("stopped"), "{}", end.log);
    terminal.assert_restored();
}

/// In a process group that no shell could continue, the kernel ignores SIGTSTP. The guest continues and gets
/// its keys.
#[test]
fn a_stop_that_the_kernel_ignores_leaves_the_keys_to_the_guest() {
    if !kvm("a_stop_that_the_kernel_ignores_leaves_the_keys_to_the_guest") {
        return;
    }
    let mut terminal = terminal();
    let stdin = terminal.side.try_clone().unwrap();
    let machine = Machine::new(&echo().bzimage()).by(&["setsid", "--ctty", "--wait"]).stdin(stdin);
    let mut machine = machine.spawn();
    machine.expect("up");
    assert!(terminal.is_raw());
    // Shows when the signal was handled, because the machine then makes the terminal raw again.
    tcsetattr(&terminal.side, OptionalActions::Now, &terminal.found).unwrap();
    machine.signal(Signal::TSTP);
    eventually("the terminal is raw again", || terminal.is_raw());
    assert!(!machine.is_stopped());
    terminal.user.write_all(b"x\x03").unwrap();
    machine.expect("x\x03");
    terminal.user.write_all(b"\x01x").unwrap();
    assert_eq!(machine.wait().status.code(), Some(0));
    terminal.assert_restored();
}
