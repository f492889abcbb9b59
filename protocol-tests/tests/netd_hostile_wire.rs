//! volt-netd against hostile front-ends on the socket: each invalid message is refused by name. The daemon
//! survives, keeps nothing of it, and serves the next front-end.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use protocol_tests::frame::numbered;
use protocol_tests::frontend::{Frontend, mem_table, single_region};
use protocol_tests::memory::{GuestMemory, RegionSpec};
use protocol_tests::nic::eventfd;
use protocol_tests::rig::{LIMIT, QUIET, Rig, namespace};
use protocol_tests::session::{Session, Setup, negotiate};
use protocol_tests::wire::{encode, header, longs, protocol, request, words};

/// A message that must be refused, and a word of the reason in the log.
struct Lie<'a> {
    request: u32,
    body: Vec<u8>,
    fds: Vec<BorrowedFd<'a>>,
    word: &'static str,
}

impl<'a> Lie<'a> {
    fn new(request: u32, body: Vec<u8>, fds: &[BorrowedFd<'a>], word: &'static str) -> Lie<'a> {
        Lie { request, body, fds: fds.to_vec(), word }
    }
}

/// Returns a connection that has negotiated REPLY_ACK.
fn negotiated(rig: &Rig) -> Frontend {
    let mut frontend = rig.connect();
    negotiate(&mut frontend, Setup::default().features, protocol::REPLY_ACK).expect("negotiation");
    frontend
}

/// Lies for one daemon. Each ends a connection, after which a daemon accepts nobody for a second, so there
/// are several daemons.
const AT_ONE: usize = 8;

/// Divides the lies in `told` among daemons.
fn among_daemons<T: Sync>(test: &str, told: &[T], tell: impl Fn(&mut Rig, &[T]) + Sync) {
    if namespace(test).is_none() {
        return;
    }
    std::thread::scope(|scope| {
        for part in told.chunks(AT_ONE) {
            let tell = &tell;
            scope.spawn(move || {
                let mut rig = Rig::new(test, &[]).expect("a namespace as before");
                let before = rig.usage();
                tell(&mut rig, part);
                rig.well(&before);
            });
        }
    });
}

/// Sends each lie with NEED_REPLY, which must be answered with a status, and without, which must end the
/// connection.
fn tell(test: &str, lies: &[Lie<'_>]) {
    among_daemons(test, lies, tell_one);
}

fn tell_one(rig: &mut Rig, lies: &[Lie<'_>]) {
    for Lie { request, body, fds, word } in lies {
        let from = rig.daemon.log().len();
        let name = protocol_tests::wire::request_name(*request);
        let frontend = negotiated(rig);
        match frontend.tell_acked(*request, body, fds) {
            Ok(status) => assert_ne!(status, 0, "{name} {body:02x?} was accepted"),
            Err(protocol_tests::wire::WireError::Closed(_)) => {}
            Err(error) => panic!("{name} {body:02x?}: {error}"),
        }
        drop(frontend);
        let line = rig.daemon.logged(from, &["WARN", name, word], LIMIT);
        assert!(line.is_some(), "no warning with {name} and '{word}':\n{}", &rig.daemon.log()[from..]);
        let mut frontend = negotiated(rig);
        frontend.want_replies(false);
        frontend.tell(*request, body, fds).expect("sent");
        frontend.channel().expect_closed().unwrap_or_else(|error| panic!("{name} {body:02x?}: {error}"));
    }
}

/// Unknown vrings are refused by number, in every message with a vring.
#[test]
fn vring_indices() {
    let event = eventfd().expect("an eventfd");
    let fd = [event.as_fd()];
    let lies = [
        Lie::new(request::SET_VRING_NUM, words(&[2, 256]), &[], "vring 2"),
        Lie::new(request::SET_VRING_NUM, words(&[u32::MAX, 256]), &[], "vring 4294967295"),
        Lie::new(request::SET_VRING_BASE, words(&[2, 0]), &[], "vring 2"),
        Lie::new(request::SET_VRING_ENABLE, words(&[77, 1]), &[], "vring 77"),
        Lie::new(request::SET_VRING_ADDR, [words(&[5, 0]), longs(&[0; 4])].concat(), &[], "vring 5"),
        Lie::new(request::SET_VRING_KICK, longs(&[255]), &fd, "vring 255"),
        Lie::new(request::SET_VRING_CALL, longs(&[2]), &fd, "vring 2"),
        Lie::new(request::SET_VRING_ERR, longs(&[3]), &fd, "vring 3"),
    ];
    tell("vring_indices", &lies);
}

/// Invalid ring sizes, bases and enables.
#[test]
fn vring_values() {
    let event = eventfd().expect("an eventfd");
    let size = |size, word| Lie::new(request::SET_VRING_NUM, words(&[0, size]), &[], word);
    let lies = [
        size(100, "100"),
        Lie::new(request::SET_VRING_NUM, words(&[0, 256]), &[event.as_fd()], "descriptor"),
        size(0, "size 0"),
        size(65_536, "65536"),
        size(u32::MAX, "4294967295"),
        Lie::new(request::SET_VRING_BASE, words(&[0, 65_536]), &[], "65536"),
        Lie::new(request::SET_VRING_ENABLE, words(&[0, 2]), &[], "by 2"),
        Lie::new(request::SET_FEATURES, longs(&[u64::MAX]), &[], "not"),
        Lie::new(request::SET_FEATURES, longs(&[1 << 34 | 1 << 32]), &[], "RING_PACKED"),
        Lie::new(request::SET_PROTOCOL_FEATURES, longs(&[u64::MAX]), &[], "not offered"),
    ];
    tell("vring_values", &lies);
}

/// Memory tables whose sizes, counts and descriptors contradict each other or their files.
#[test]
fn memory_tables() {
    let mem = GuestMemory::flat(0, 0x10000).expect("memory");
    let fd = mem.fds()[0];
    let region = |guest, size, offset| RegionSpec { guest, size, user: 0x7000_0000, offset };
    let table = |specs: &[RegionSpec], fds: &[BorrowedFd<'_>], word| {
        Lie::new(request::SET_MEM_TABLE, mem_table(specs), &fds.iter().map(|_| fd).collect::<Vec<_>>(), word)
    };
    let good = region(0, 0x1000, 0);
    let counted = |count: u32| [words(&[count, 0]), mem_table(&[good])[8..].to_vec()].concat();
    let lies = [
        table(&[region(0, u64::MAX, 0)], &[fd], ""),
        table(&[region(u64::MAX - 0xfff, 0x2000, 0)], &[fd], ""),
        table(&[region(0, 0x1000, u64::MAX - 0xfff)], &[fd], ""),
        table(&[region(0, 0x1000, u64::MAX - 0x10)], &[fd], ""),
        table(&[RegionSpec { user: u64::MAX - 0xff, ..good }], &[fd], ""),
        table(&[region(0, 0, 0)], &[fd], ""),
        table(&[region(0, 0x11000, 0)], &[fd], "file"),
        table(&[region(0, 0x1000, 0xf001)], &[fd], "file"),
        table(&[good, region(0xfff, 0x1000, 0)], &[fd, fd], "overlap"),
        table(&[good], &[], "descriptor"),
        table(&[good], &[fd, fd], "descriptor"),
        table(&[good, region(0x1000, 0x1000, 0)], &[fd], "descriptor"),
        Lie::new(request::SET_MEM_TABLE, counted(9), &[fd], ""),
        Lie::new(request::SET_MEM_TABLE, counted(u32::MAX), &[fd], ""),
        Lie::new(request::SET_MEM_TABLE, words(&[1]), &[fd], ""),
        Lie::new(request::ADD_MEM_REG, single_region(&region(0, 0x11000, 0)), &[fd], "file"),
        Lie::new(request::ADD_MEM_REG, single_region(&good), &[], "descriptor"),
        Lie::new(request::REM_MEM_REG, single_region(&good), &[], ""),
    ];
    tell("memory_tables", &lies);
}

/// Memory descriptors that are no memory: a pipe, /dev/null, a directory.
#[test]
fn memory_that_is_none() {
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let null = File::options().read(true).write(true).open("/dev/null").expect("null");
    let directory = File::open("/").expect("a directory");
    let body = mem_table(&[RegionSpec { guest: 0, size: 0x1000, user: 0, offset: 0 }]);
    let lie = |fd| Lie::new(request::SET_MEM_TABLE, body.clone(), &[fd], "");
    tell("memory_that_is_none", &[lie(reader.as_fd()), lie(null.as_fd()), lie(directory.as_fd())]);
}

/// Short and long bodies and surplus descriptors on every request; requests that do not exist or were not
/// offered.
#[test]
fn shapes_and_strangers() {
    let event = eventfd().expect("an eventfd");
    let many: Vec<BorrowedFd<'_>> = (0..30).map(|_| event.as_fd()).collect();
    let shapes = [(vec![], 0), (vec![0xff; 3], 0), (vec![0xee; 300], 0), (vec![0; 8], 30)];
    let numbers = (0..=50).chain([1000, u32::MAX]);
    let told: Vec<_> = numbers.flat_map(|number| shapes.iter().map(move |shape| (number, shape))).collect();
    among_daemons("shapes_and_strangers", &told, |rig, told| {
        for (number, (body, fds)) in told {
            let mut frontend = negotiated(rig);
            frontend.want_replies(false);
            // Answered, ignored or closed: only hanging, dying and keeping descriptors are wrong.
            let _ = frontend.tell(*number, body, &many[..*fds]);
            frontend.channel().set_patience(Duration::from_millis(500));
            let _ = frontend.sync();
        }
    });
}

/// Headers with a wrong version or an impossible size; random bytes.
#[test]
fn headers() {
    let Some(mut rig) = Rig::new("headers", &[]) else { return };
    let before = rig.usage();
    let noise: Vec<u8> = (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
    let wrong = [
        header(request::GET_FEATURES, 1, u32::MAX).to_vec(),
        header(request::GET_FEATURES, 1, 1 << 20).to_vec(),
        header(request::GET_FEATURES, 0, 0).to_vec(),
        header(request::GET_FEATURES, 2, 0).to_vec(),
        noise,
    ];
    for bytes in wrong {
        let mut frontend = rig.connect();
        frontend.channel().send_bytes(&bytes, &[]).expect("sent");
        frontend.channel().expect_closed().unwrap_or_else(|error| panic!("{:02x?}: {error}", &bytes[..12]));
    }
    rig.well(&before);
}

/// Kick descriptors other than eventfds are refused, or served without spinning and without harm to the next
/// session.
#[test]
fn kicks_that_are_no_eventfd() {
    let Some(mut rig) = Rig::new("kicks_that_are_no_eventfd", &[]) else { return };
    let before = rig.usage();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(writer);
    let (mine, theirs) = UnixStream::pair().expect("a socket pair");
    let (half, gone) = UnixStream::pair().expect("a socket pair");
    drop(gone);
    (&mine).write_all(&[1; 100_000]).expect("filled");
    let file = tempfile::tempfile().expect("a file");
    let null = File::options().read(true).write(true).open("/dev/null").expect("null");
    let kicks: [(&str, OwnedFd); 5] = [
        ("a regular file", file.into()),
        ("/dev/null", null.into()),
        ("a pipe with its other end closed", reader.into()),
        ("a full socket", theirs.into()),
        ("a socket with its other end closed", half.into()),
    ];
    for (what, kick) in &kicks {
        let setup = Setup { enabled: 0, ..Setup::default() };
        let session = Session::start(rig.connect(), &setup).expect("a session");
        for vring in 0..2 {
            let _ = session.frontend.set_vring_fd(request::SET_VRING_KICK, vring, Some(kick));
            let _ = session.frontend.set_vring_enable(vring, true);
        }
        let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
        assert!(ticks <= 3, "{what}: {ticks} ticks of {QUIET:?}");
        drop(session);
        assert!(!rig.daemon.has_exited(), "{what} ended the daemon:\n{}", rig.daemon.log());
    }
    rig.well(&before);
}

/// Call descriptors that block or are full never block a ring or an end: frames continue, SIGTERM works.
#[test]
fn calls_that_block() {
    let Some(mut rig) = Rig::new("calls_that_block", &[]) else { return };
    let before = rig.usage();
    let full_counter = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd");
    rustix::io::write(&full_counter, &(u64::MAX - 1).to_ne_bytes()).expect("full");
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let pipe = OwnedFd::from(writer);
    rustix::io::ioctl_fionbio(&pipe, true).expect("non-blocking");
    while rustix::io::write(&pipe, &[0; 4096]).is_ok() {}
    while rustix::io::write(&pipe, &[0; 1]).is_ok() {}
    rustix::io::ioctl_fionbio(&pipe, false).expect("blocking");
    let (_mine, theirs) = UnixStream::pair().expect("a socket pair");
    theirs.set_nonblocking(true).expect("non-blocking");
    while (&theirs).write(&[0; 4096]).is_ok() {}
    theirs.set_nonblocking(false).expect("blocking");
    let calls = [("counter", full_counter), ("pipe", pipe), ("socket", OwnedFd::from(theirs))];
    for (what, call) in &calls {
        let mut session = rig.session(&Setup::default());
        for vring in 0..2 {
            session.frontend.set_vring_fd(request::SET_VRING_CALL, vring, Some(call)).expect("call");
        }
        // Another holder of the same file may make it blocking again without the daemon's knowledge.
        rustix::io::ioctl_fionbio(call, false).expect("blocking");
        for number in 0..5 {
            session.tx(0).offer(&Default::default(), &numbered(number, 80), &[]).expect("room");
            session.tx(0).kick_always().expect("kicked");
        }
        std::thread::sleep(QUIET);
        let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
        assert!(ticks <= 3, "{what}: {ticks} ticks of {QUIET:?}");
        drop(session);
        rig.well(&before);
    }
    let session = rig.session(&Setup::default());
    session.frontend.set_vring_fd(request::SET_VRING_CALL, 1, Some(&calls[1].1)).expect("call");
    rustix::io::ioctl_fionbio(&calls[1].1, false).expect("blocking");
    let status = rig.daemon.stop(LIMIT).expect("SIGTERM works");
    assert!(status.success(), "{status}");
}

/// Half a message, then silence: the daemon sleeps, and SIGTERM ends it at once.
#[test]
fn half_a_message_and_silence() {
    for len in [0, 1, 11, 12, 15] {
        let Some(mut rig) = Rig::new("half_a_message_and_silence", &[]) else { return };
        let mut frontend = rig.connect();
        let message = encode(request::SET_FEATURES, 0, &longs(&[0]));
        frontend.channel().send_bytes(&message[..len], &[]).expect("sent");
        let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
        assert!(ticks <= 3, "{ticks} ticks of waiting for the rest of {len} bytes");
        let status = rig.daemon.stop(LIMIT).expect("SIGTERM works");
        assert!(status.success(), "{status}");
        assert!(!rig.socket().exists(), "the socket is removed");
    }
}

/// A front-end that sends and never reads its replies cannot block the daemon: SIGTERM works.
#[test]
fn replies_that_nobody_reads() {
    let Some(mut rig) = Rig::new("replies_that_nobody_reads", &[]) else { return };
    let mut frontend = rig.connect();
    frontend.channel().set_patience(QUIET);
    let many = encode(request::GET_FEATURES, 0, &[]).repeat(1000);
    while frontend.channel().send_bytes(&many, &[]).is_ok() {}
    let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
    assert!(ticks <= 3, "{ticks} ticks of waiting for a reader");
    let status = rig.daemon.stop(LIMIT).expect("SIGTERM works");
    assert!(status.success(), "{status}");
}

/// Guest memory is truncated under the daemon. The log has warned about it; the daemon continues or ends, but
/// does not hang.
#[test]
fn memory_cut_short() {
    let Some(mut rig) = Rig::new("memory_cut_short", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    rig.logged(&["F_SEAL_SHRINK"]);
    let file = session.nic.mem.fds()[0].try_clone_to_owned().expect("a copy");
    let kick = session.tx(0).kick.try_clone().expect("a copy");
    // The script's own mapping must no longer be touched either.
    rustix::fs::ftruncate(&file, 0).expect("cut");
    rustix::io::write(&kick, &1u64.to_ne_bytes()).expect("kicked");
    std::mem::forget(session);
    match rig.daemon.wait(QUIET) {
        Some(status) => assert!(!status.success(), "it ended successfully: {status}"),
        None => assert!(rig.daemon.stop(LIMIT).is_some(), "SIGTERM works"),
    }
}
