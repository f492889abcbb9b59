use std::io::{self, Read};
use std::time::Duration;

use rustix::io::ioctl_fionread;
use rustix::pipe::fcntl_setpipe_size;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;

/// Bytes in the pipe behind the UART.
const PIPE: usize = 4096;

struct Rig {
    uart: Uart,
    room: Arc<Room>,
    reader: io::PipeReader,
    irq: EventFd,
}

fn rig() -> Rig {
    let (reader, writer) = io::pipe().unwrap();
    assert_eq!(fcntl_setpipe_size(&reader, PIPE).unwrap(), PIPE);
    let room = Arc::new(Room::new().unwrap());
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let output = Output::new(writer, Arc::clone(&room)).unwrap();
    // A busy machine may not run the output's thread for a second.
    output.set_stall(Duration::from_secs(3600));
    let uart = Uart::new(irq.try_clone().unwrap(), Arc::clone(&room), output);
    Rig { uart, room, reader, irq }
}

fn guest_reads(uart: &mut Uart) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        uart.read(5, &mut byte);
        if byte[0] & 1 == 0 {
            return bytes;
        }
        uart.read(0, &mut byte);
        bytes.push(byte[0]);
    }
}

#[test]
fn output_leaves_at_once() {
    let mut rig = rig();
    rig.uart.write(0, b"v");
    rig.uart.write(0, b"olt");
    let mut seen = [0; 4];
    rig.reader.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"volt");
}

#[test]
fn ten_kilobytes_of_input_arrive_whole() {
    let mut rig = rig();
    let input: Vec<u8> = (0..10_240u32).map(|n| (n % 251) as u8).collect();
    let mut seen = Vec::new();
    let mut rest = &input[..];
    assert_eq!(rig.uart.feed(rest), 0, "the guest has not opened the port");
    rig.uart.write(1, &[IER_RECEIVED]);
    assert!(rig.room.event().read().is_ok(), "opening the port asks for input");
    while !rest.is_empty() {
        let taken = rig.uart.feed(rest);
        assert!(taken > 0 && taken <= 64);
        assert!(rig.irq.read().is_ok());
        rest = &rest[taken..];
        assert!(rig.room.event().read().is_err(), "no event before the guest has read");
        seen.extend(guest_reads(&mut rig.uart));
        assert_eq!(rig.room.event().read().is_ok(), !rest.is_empty());
    }
    assert_eq!(seen, input);
}

#[test]
fn a_full_fifo_takes_nothing_and_loses_nothing() {
    let mut rig = rig();
    rig.uart.write(1, &[IER_RECEIVED]);
    assert_eq!(rig.uart.feed(&[7; 100]), 64);
    assert_eq!(rig.uart.feed(&[8; 100]), 0);
    assert_eq!(guest_reads(&mut rig.uart), [7; 64]);
}

#[test]
fn loop_back_mode_delays_input() {
    let mut rig = rig();
    rig.uart.write(1, &[IER_RECEIVED]);
    rig.uart.write(4, &[0x10]);
    assert_eq!(rig.uart.feed(b"x"), 0);
    rig.uart.write(4, &[0]);
    assert!(rig.room.event().read().is_ok());
    assert_eq!(rig.uart.feed(b"x"), 1);
}

/// Returns the transmitter's bits of the line status register.
fn transmitter(uart: &mut Uart) -> u8 {
    let mut status = [0];
    uart.read(5, &mut status);
    status[0] & LSR_EMPTY
}

/// Reads the guest's interrupt reason in IIR, which acknowledges it.
fn interrupt(uart: &mut Uart) -> u8 {
    let mut identification = [0];
    uart.read(2, &mut identification);
    identification[0] & 0xf
}

const NONE: u8 = 1;
const THRE: u8 = 2;

/// Writes a pattern, like a driver that checks the status, until pipe and buffer are full. Returns the bytes.
fn fill(rig: &mut Rig) -> Vec<u8> {
    let mut written = Vec::new();
    // A pipe's page takes either a whole write or nothing.
    while ioctl_fionread(&rig.reader).unwrap() + (output::CHUNK as u64) <= PIPE as u64 {
        while transmitter(&mut rig.uart) == LSR_EMPTY {
            let byte = (written.len() % 251) as u8;
            rig.uart.write(0, &[byte]);
            written.push(byte);
        }
    }
    written
}

/// Waits for the UART's notification, and acts like the console.
fn wait_for_room(rig: &mut Rig) {
    let fd = rig.room.event();
    let mut fds =
        [libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(fd), events: libc::POLLIN, revents: 0 }];
    #[expect(unsafe_code, reason = "EventFd gives its descriptor only as a number")]
    // SAFETY: `fds` is one pollfd.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), 1, 60_000) };
    assert_eq!(ready, 1, "no word from the UART");
    fd.read().unwrap();
    rig.uart.serve_output();
}

#[test]
fn a_full_pipe_is_a_busy_transmitter_until_somebody_reads() {
    let mut rig = rig();
    rig.uart.write(1, &[IER_RECEIVED | IER_THRE]);
    assert_eq!(interrupt(&mut rig.uart), THRE);
    let written = fill(&mut rig);
    // The first interrupt may still be unacknowledged, as with a driver that is printing.
    interrupt(&mut rig.uart);
    while rig.irq.read().is_ok() {}
    assert!(rig.uart.serve_output().is_some(), "who waits is told until when");
    assert_eq!((interrupt(&mut rig.uart), transmitter(&mut rig.uart)), (NONE, 0));
    // The guest still reads back its own bit, and input continues.
    let mut ier = [0];
    rig.uart.read(1, &mut ier);
    assert_eq!(ier, [IER_RECEIVED | IER_THRE]);
    assert_eq!(rig.uart.feed(b"x"), 1);
    assert!(rig.irq.read().is_ok());
    assert_eq!(guest_reads(&mut rig.uart), b"x");
    interrupt(&mut rig.uart);
    // A divisor instead of IER has no effect.
    rig.uart.write(3, &[LCR_DLAB]);
    rig.uart.write(1, &[7]);

    while rig.room.event().read().is_ok() {}
    let mut seen = vec![0; written.len() - LOW_ENOUGH];
    rig.reader.read_exact(&mut seen).unwrap();
    while rig.uart.busy {
        wait_for_room(&mut rig);
    }
    rig.uart.read(1, &mut ier);
    assert_eq!(ier, [7]);
    rig.uart.write(3, &[0]);
    assert!(rig.irq.read().is_ok());
    assert_eq!((interrupt(&mut rig.uart), transmitter(&mut rig.uart)), (THRE, LSR_EMPTY));
    let mut rest = vec![0; LOW_ENOUGH];
    rig.reader.read_exact(&mut rest).unwrap();
    seen.extend(rest);
    assert!(seen == written, "{} bytes, and not those that were written", seen.len());
    assert_eq!(rig.uart.serial.writer().lost(), 0);
}

/// The most that may be left in pipe and buffer when the interrupt comes.
const LOW_ENOUGH: usize = output::LIMIT / 4;

#[test]
fn after_a_second_without_a_reader_bytes_are_lost_and_counted() {
    let mut rig = rig();
    rig.uart.write(1, &[IER_THRE]);
    fill(&mut rig);
    interrupt(&mut rig.uart);
    rig.uart.serial.writer().set_stall(output::STALL);
    let start = Instant::now();
    while let Some(at) = rig.uart.serve_output() {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
    }
    assert!(start.elapsed() < output::STALL * 10);
    assert_eq!((interrupt(&mut rig.uart), transmitter(&mut rig.uart)), (THRE, LSR_EMPTY));
    assert_eq!(rig.uart.serial.writer().lost(), 0);
    rig.uart.write(0, &[b'x'; 1000]);
    assert_eq!((transmitter(&mut rig.uart), rig.uart.serial.writer().lost()), (LSR_EMPTY, 1000));
    // The reader is back. The rest is little more than the pipe holds.
    let mut seen = vec![0; output::LIMIT];
    rig.reader.read_exact(&mut seen).unwrap();
    rig.uart.write(0, b"y");
    assert_eq!(rig.uart.serial.writer().lost(), 1000);
}

/// A driver that never checks the status fills the reserve, and no more.
#[test]
fn a_driver_that_does_not_look_is_bounded() {
    let mut rig = rig();
    fill(&mut rig);
    rig.uart.write(0, &vec![b'x'; output::RESERVE + 100]);
    let lost = rig.uart.serial.writer().lost();
    assert!((100..=output::RESERVE as u64 + 100).contains(&lost), "{lost}");
}

#[test]
fn the_end_waits_for_a_reader_only() {
    let mut rig = rig();
    let written = fill(&mut rig);
    let output = rig.uart.serial.writer().clone();
    let mut reader = rig.reader.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut seen = vec![0; written.len()];
        reader.read_exact(&mut seen).unwrap();
        seen == written
    });
    output.finish();
    assert!(reader.join().unwrap());

    fill(&mut rig);
    output.set_stall(output::STALL);
    let start = Instant::now();
    output.finish();
    assert!(start.elapsed() < output::STALL * 10);
}

#[test]
fn output_without_a_reader_does_not_stop_the_guest() {
    let Rig { mut uart, reader, .. } = rig();
    drop(reader);
    let output = uart.serial.writer().clone();
    for _ in 0..3 {
        uart.write(0, &[b'x'; 1000]);
        output.finish();
    }
    assert_eq!((transmitter(&mut uart), output.lost()), (LSR_EMPTY, 3000));
}

/// A FIFO's reader may come and go at any time. A terminal does not become this process's controlling one.
#[test]
fn a_fifo_needs_no_reader_to_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let room = Arc::new(Room::new().unwrap());
    let mut output = Output::file(&path, room).unwrap();
    for _ in 0..2 {
        std::io::Write::write_all(&mut output, b"volt").unwrap();
        let mut seen = [0; 4];
        std::fs::File::open(&path).unwrap().read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"volt");
    }
}
