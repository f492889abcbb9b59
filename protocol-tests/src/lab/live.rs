//! One TCP connection that must outlive everything that a test does: the guest sends back what it receives,
//! and each byte is compared.
//!
//! The position decides the bytes, so a lost, repeated or foreign segment is found wherever it is. A test can
//! pause the connection, and with it whatever the guest does behind [`Live::gate`].

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use super::PATIENCE;
use super::traffic::HOST;
use crate::daemon::poll_until;

const PORT: u16 = 7005;
const GATE: u16 = 7008;
const BLOCK: usize = 4096;
/// Blocks on their way at any time: less than the least buffer that both ends have.
const WINDOW: u64 = 8;

/// The far side of the connection.
pub struct Live {
    state: Arc<State>,
    _gate: Gate,
    thread: JoinHandle<io::Result<u64>>,
}

/// The listener at which the guest's rounds ask whether there is a pause.
struct Gate(Arc<TcpListener>);

#[derive(Default)]
struct State {
    over: AtomicBool,
    paused: AtomicBool,
    /// Nothing is on its way.
    idle: AtomicBool,
    /// The guest waits at the gate.
    waiting: AtomicBool,
    /// Blocks that have come back.
    returned: AtomicU64,
    failure: OnceLock<String>,
}

impl Live {
    /// Waits for the guest in the namespace of the calling thread.
    ///
    /// # Panics
    /// If a port is not available.
    pub fn listen() -> Live {
        let listen = |port| TcpListener::bind(("0.0.0.0", port)).expect("a port");
        let (listener, gate, state) = (listen(PORT), Arc::new(listen(GATE)), Arc::new(State::default()));
        let (accepting, gate_state, own) = (gate.clone(), state.clone(), state.clone());
        spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                while gate_state.paused.load(Relaxed) {
                    gate_state.waiting.store(true, Relaxed);
                    sleep(Duration::from_millis(2));
                }
                gate_state.waiting.store(false, Relaxed);
                drop(stream);
            }
        });
        Live { state, _gate: Gate(gate), thread: spawn(move || observed(listener.accept()?.0, &own)) }
    }

    /// Returns a command for `volt.run` that ends with the connection: 0 only if the far side closed it.
    pub fn guest() -> String {
        format!("nc {HOST} {PORT} -e cat")
    }

    /// Returns a command for `volt.run` that ends when the connection is not paused.
    pub fn gate() -> String {
        format!("nc {HOST} {GATE} -e cat")
    }

    /// Pauses until [`Live::resume`]. Returns when all bytes are back and the guest waits at the gate.
    ///
    /// # Panics
    /// If it does not come there.
    #[track_caller]
    pub fn pause(&self) {
        self.state.paused.store(true, Relaxed);
        let quiet = || self.bytes() > 0 && self.state.idle.load(Relaxed) && self.state.waiting.load(Relaxed);
        assert!(poll_until(PATIENCE, || quiet().then_some(())).is_some(), "the guest does not pause");
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.state.paused.store(false, Relaxed);
    }

    /// Returns the bytes that have come back unchanged.
    ///
    /// # Panics
    /// As [`Live::end`].
    #[track_caller]
    pub fn bytes(&self) -> u64 {
        if let Some(error) = self.state.failure.get() {
            panic!("the connection to the guest failed: {error}");
        }
        self.state.returned.load(Relaxed) * BLOCK as u64
    }

    /// Closes the connection after the last byte has come back, and returns the bytes.
    ///
    /// # Panics
    /// If the connection failed, or a byte was lost, repeated or changed.
    #[track_caller]
    pub fn end(self) -> u64 {
        self.state.over.store(true, Relaxed);
        match self.thread.join() {
            Ok(Ok(blocks)) => blocks * BLOCK as u64,
            Ok(Err(error)) => panic!("the connection to the guest failed: {error}"),
            Err(_) => panic!("the connection's thread panicked"),
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Wakes the thread in accept.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// Returns block `number`: no two are equal.
fn block(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (at, word) in block.as_chunks_mut().0.iter_mut().enumerate() {
        *word = (number << 16 | at as u64).to_le_bytes();
    }
    block
}

fn observed(stream: TcpStream, state: &State) -> io::Result<u64> {
    let result = exchange(stream, state);
    if let Err(error) = &result {
        let _ = state.failure.set(error.to_string());
    }
    result
}

fn exchange(mut stream: TcpStream, state: &State) -> io::Result<u64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut sent = 0;
    let pending = |sent| sent - state.returned.load(Relaxed);
    while !state.over.load(Relaxed) {
        let paused = state.paused.load(Relaxed);
        state.idle.store(paused && pending(sent) == 0, Relaxed);
        if paused && pending(sent) == 0 {
            sleep(Duration::from_millis(2));
        } else if paused || pending(sent) >= WINDOW {
            receive(&mut stream, &state.returned)?;
        } else {
            stream.write_all(&block(sent))?;
            sent += 1;
        }
    }
    while pending(sent) > 0 {
        receive(&mut stream, &state.returned)?;
    }
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(sent),
        Ok(_) => Err(io::Error::other("more came back than was sent")),
        Err(error) => Err(error),
    }
}

fn receive(stream: &mut TcpStream, returned: &AtomicU64) -> io::Result<()> {
    let (number, mut bytes) = (returned.load(Relaxed), [0; BLOCK]);
    stream.read_exact(&mut bytes)?;
    if bytes != block(number) {
        return Err(io::Error::other(format!("block {number} came back changed")));
    }
    returned.store(number + 1, Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Answers with what `change` makes of each block, by its number.
    fn with_guest(change: impl Fn(u64, &mut [u8; BLOCK]) + Send + 'static, body: impl FnOnce(Live)) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let gate = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
        let mut guest = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let far = listener.accept().expect("a guest").0;
        let state = Arc::new(State::default());
        let own = state.clone();
        let thread = spawn(move || observed(far, &own));
        let guest = spawn(move || {
            let (mut bytes, mut number) = ([0; BLOCK], 0);
            while guest.read_exact(&mut bytes).is_ok() {
                change(number, &mut bytes);
                number += 1;
                if guest.write_all(&bytes).is_err() {
                    break;
                }
            }
        });
        body(Live { state, _gate: Gate(gate), thread });
        guest.join().expect("a guest");
    }

    fn moved(live: &Live, blocks: u64) {
        let from = live.bytes();
        let moved = || (live.bytes() > from + blocks * BLOCK as u64).then_some(());
        poll_until(PATIENCE, moved).expect("it moves");
    }

    #[test]
    fn bytes_that_come_back_are_counted() {
        with_guest(
            |_, _| {},
            |live| {
                moved(&live, 100);
                live.state.waiting.store(true, Relaxed);
                live.pause();
                let paused = live.bytes();
                sleep(Duration::from_millis(50));
                assert_eq!(live.bytes(), paused);
                live.resume();
                moved(&live, 100);
                assert!(live.end() > paused + 100 * BLOCK as u64);
            },
        );
    }

    #[test]
    #[should_panic(expected = "block 40 came back changed")]
    fn one_changed_byte_is_found() {
        let change = |number, bytes: &mut [u8; BLOCK]| bytes[4000] ^= u8::from(number == 40);
        with_guest(change, |live| {
            poll_until(PATIENCE, || live.thread.is_finished().then_some(())).expect("it ends");
            live.end();
        });
    }
}
