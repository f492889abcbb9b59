//! A TFTP server (RFC 1350, with the block size of RFC 2348) that keeps one file in memory. busybox has a
//! client, which gives UDP with a comparable content and sends lost datagrams again.

use std::net::UdpSocket;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const OPTIONS: u16 = 6;

/// Block size if the client asks for none.
const BLOCK: usize = 512;

/// The file, and the client's options.
struct Server {
    file: Vec<u8>,
    block: usize,
    /// Blocks written so far during an upload.
    written: u16,
}

/// Serves clients at `port`, for as long as the returned value exists.
///
/// # Panics
/// If the port is not available.
#[track_caller]
pub(super) fn serve(port: u16) -> Arc<()> {
    let socket =
        UdpSocket::bind(("0.0.0.0", port)).unwrap_or_else(|error| panic!("UDP port {port}: {error}"));
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    let wanted = Arc::new(());
    let still = Arc::downgrade(&wanted);
    thread::spawn(move || {
        let mut server = Server { file: Vec::new(), block: BLOCK, written: 0 };
        let mut packet = vec![0; 1 << 16];
        while still.strong_count() > 0 {
            if let Ok((len, from)) = socket.recv_from(&mut packet)
                && let Some(answer) = server.answer(&packet[..len])
            {
                // A client that has gone needs no answer.
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    wanted
}

impl Server {
    fn answer(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let (code, rest) = packet.split_first_chunk()?;
        let number = || rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        match u16::from_be_bytes(*code) {
            request @ (READ | WRITE) => {
                let words: Vec<_> = rest.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
                let size = words.windows(2).find(|pair| pair[0] == "blksize").map(|pair| pair[1].to_string());
                self.block = size.as_deref().and_then(|size| size.parse().ok()).unwrap_or(BLOCK);
                if request == WRITE {
                    (self.file, self.written) = (Vec::new(), 0);
                }
                match (size, request) {
                    (Some(size), _) => {
                        Some([&OPTIONS.to_be_bytes(), format!("blksize\0{size}\0").as_bytes()].concat())
                    }
                    (None, WRITE) => Some(ack(0)),
                    (None, _) => self.data(1),
                }
            }
            DATA => {
                let number = number()?;
                if number == self.written.wrapping_add(1) {
                    self.file.extend(&rest[2..]);
                    self.written = number;
                }
                Some(ack(number))
            }
            ACK => self.data(number()?.wrapping_add(1)),
            _ => None,
        }
    }

    /// Returns block `number`, counted from 1; `None` after the last one, which is shorter than the others.
    fn data(&self, number: u16) -> Option<Vec<u8>> {
        let at = usize::from(number).checked_sub(1)? * self.block;
        let block = self.file.get(at..)?;
        let block = &block[..block.len().min(self.block)];
        Some([&DATA.to_be_bytes(), &number.to_be_bytes(), block].concat())
    }
}

fn ack(number: u16) -> Vec<u8> {
    [ACK.to_be_bytes(), number.to_be_bytes()].concat()
}
