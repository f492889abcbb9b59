//! The console: passes standard input to the UART, with Ctrl-A as the escape character, and drives the UART's
//! output when it has to wait.
//!
//! The machine's main loop polls [`Console::wanted_input`] and [`Console::room`], and calls
//! [`Console::serve`] after each poll.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use log::warn;
use rustix::io::Errno;

use crate::serial::{Output, Room, Uart};

pub mod terminal;

/// A command of the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Leave the machine.
    Quit,
}

/// The events that a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Input from the user.
    pub input: bool,
    /// A message from the UART.
    pub room: bool,
}

/// The host's side of the serial port.
pub struct Console {
    uart: Arc<Mutex<Uart>>,
    room: Arc<Room>,
    output: Output,
    /// When to serve the output even without a message from the UART.
    deadline: Option<Instant>,
    input: Option<Input>,
}

/// Input on its way to the guest.
struct Input {
    fd: OwnedFd,
    /// Bytes that the UART has not taken yet.
    pending: Vec<u8>,
    /// Set on a terminal only. Input from elsewhere is passed unchanged.
    escape: Option<Escape>,
    ended: bool,
}

impl Console {
    /// Creates the console of `uart`, with its room and output, and without input.
    pub fn new(uart: Arc<Mutex<Uart>>, room: Arc<Room>, output: Output) -> Console {
        Console { uart, room, output, deadline: None, input: None }
    }

    /// Reads `input` for the guest. With `terminal`, Ctrl-A is the escape character.
    #[must_use]
    pub fn with_input(mut self, input: OwnedFd, terminal: bool) -> Console {
        let escape = terminal.then(Escape::default);
        self.input = Some(Input { fd: input, pending: Vec::new(), escape, ended: false });
        self
    }

    /// Reads this process's standard input.
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    pub fn with_stdin(self) -> io::Result<Console> {
        let stdin = io::stdin();
        let input = stdin.as_fd().try_clone_to_owned()?;
        Ok(self.with_input(input, stdin.is_terminal()))
    }

    /// Returns the input to poll now, if any.
    pub fn wanted_input(&self) -> Option<&impl AsFd> {
        self.input.as_ref().filter(|input| input.wants_more()).map(|input| &input.fd)
    }

    /// Returns when to call [`Console::serve`] even without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns whether the console has an input.
    pub fn has_input(&self) -> bool {
        self.input.is_some()
    }

    /// Returns the source of messages from the UART. It is always polled.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Handles the events in `ready`: reads input, passes it to the UART, and lets the UART send again.
    pub fn serve(&mut self, ready: Ready) -> Option<Command> {
        let command = self.input.as_mut().filter(|_| ready.input).and_then(Input::read);
        if ready.room {
            // Non-blocking. The count does not matter.
            let _ = self.room.event().read();
        }
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(input) = &mut self.input {
            let taken = uart.feed(&input.pending);
            input.pending.drain(..taken);
        }
        self.deadline = uart.serve_output();
        command
    }

    /// Returns whether the guest has written anything yet.
    pub fn has_output(&self) -> bool {
        self.output.has_started()
    }

    /// Waits a bounded time for the reader of the output, when the guest writes no more.
    pub fn finish(&self) {
        self.output.finish();
    }
}

impl Input {
    /// Limit for a terminal. Reading goes on while the guest does not read, so that Ctrl-A x always works.
    const PENDING_TERMINAL: usize = 1 << 20;
    /// Limit for a file or a pipe. No more is read than can be passed on soon.
    const PENDING_FILE: usize = 4096;

    fn wants_more(&self) -> bool {
        let limit = if self.escape.is_some() { Self::PENDING_TERMINAL } else { Self::PENDING_FILE };
        !self.ended && self.pending.len() < limit
    }

    fn read(&mut self) -> Option<Command> {
        let mut buffer = [0; 4096];
        let len = match rustix::io::read(&self.fd, &mut buffer) {
            Ok(len) => len,
            Err(Errno::INTR | Errno::AGAIN) => return None,
            // The terminal went to another process during the wait for input.
            Err(Errno::IO) if self.escape.is_some() && !terminal::is_foreground() => return None,
            // The terminal no longer exists.
            Err(Errno::IO) => 0,
            Err(error) => {
                warn!(event = "console_input_ended"; "the guest gets no more input: standard input: {error}");
                0
            }
        };
        self.ended = len == 0;
        let bytes = buffer.get(..len).unwrap_or_default();
        let Some(escape) = &mut self.escape else {
            self.pending.extend(bytes);
            return None;
        };
        for &byte in bytes {
            if escape.take(byte, &mut self.pending) {
                return Some(Command::Quit);
            }
        }
        None
    }
}

/// State of the escape character. Ctrl-A x quits. Ctrl-A a and Ctrl-A Ctrl-A are one Ctrl-A. Before any other
/// character, Ctrl-A is passed to the guest as well.
#[derive(Default)]
struct Escape {
    seen: bool,
}

impl Escape {
    const CTRL_A: u8 = 1;

    /// Appends the bytes for the guest to `out`. Returns true for quit.
    fn take(&mut self, byte: u8, out: &mut Vec<u8>) -> bool {
        let seen = self.seen;
        self.seen = !seen && byte == Self::CTRL_A;
        match (seen, byte) {
            (true, b'x') => return true,
            (true, b'a' | Self::CTRL_A) => out.push(Self::CTRL_A),
            (true, other) => out.extend([Self::CTRL_A, other]),
            (false, Self::CTRL_A) => {}
            (false, other) => out.push(other),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::board::bus::BusDevice;

    const BOTH: Ready = Ready { input: true, room: true };

    fn console(terminal: bool) -> (Console, io::PipeWriter, Arc<Mutex<Uart>>) {
        let (reader, writer) = io::pipe().unwrap();
        let room = Arc::new(Room::new().unwrap());
        let sink = Output::file("/dev/null".as_ref(), Arc::clone(&room)).unwrap();
        let uart = Uart::new(EventFd::new(EFD_NONBLOCK).unwrap(), Arc::clone(&room), sink.clone());
        let uart = Arc::new(Mutex::new(uart));
        let console = Console::new(Arc::clone(&uart), room, sink).with_input(reader.into(), terminal);
        (console, writer, uart)
    }

    fn typed(bytes: &[u8]) -> (Vec<u8>, bool) {
        let (mut escape, mut out) = (Escape::default(), Vec::new());
        let quit = bytes.iter().any(|&byte| escape.take(byte, &mut out));
        (out, quit)
    }

    #[test]
    fn ctrl_a_escapes() {
        assert_eq!(typed(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(typed(b"q\x01x"), (b"q".to_vec(), true));
        assert_eq!(typed(b"\x01ax"), (b"\x01x".to_vec(), false));
        assert_eq!(typed(b"\x01\x01x"), (b"\x01x".to_vec(), false));
        assert_eq!(typed(b"\x01bx"), (b"\x01bx".to_vec(), false));
        assert_eq!(typed(b"\x01\x01\x01x"), (b"\x01".to_vec(), true));
    }

    #[test]
    fn a_pipe_is_fed_as_it_is_and_its_end_is_no_spin() {
        let (mut console, mut writer, uart) = console(false);
        uart.lock().unwrap().write(1, &[1]);
        writer.write_all(b"a\x01x").unwrap();
        assert_eq!(console.serve(BOTH), None);
        let mut seen = [0; 3];
        uart.lock().unwrap().read(0, &mut seen);
        assert_eq!(&seen, b"a\x01x");
        drop(writer);
        console.serve(BOTH);
        assert!(console.wanted_input().is_none());
    }

    #[test]
    fn reading_stops_until_the_guest_takes_its_input() {
        let (mut console, mut writer, uart) = console(false);
        writer.write_all(&[b'x'; 5000]).unwrap();
        console.serve(BOTH);
        assert!(console.wanted_input().is_none());
        uart.lock().unwrap().write(1, &[1]);
        console.serve(Ready { input: false, room: true });
        assert!(console.wanted_input().is_some());
    }

    #[test]
    fn a_guest_that_does_not_read_can_be_left() {
        let (mut console, mut writer, _uart) = console(true);
        for _ in 0..20 {
            writer.write_all(&[b'x'; 4096]).unwrap();
            console.serve(BOTH);
        }
        writer.write_all(b"\x01x").unwrap();
        assert!(console.wanted_input().is_some());
        assert_eq!(console.serve(BOTH), Some(Command::Quit));
    }
}
