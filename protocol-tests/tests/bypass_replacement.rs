//! The bypass book, chapter "Replacement": the daemon, its worker, its policy and its front-end change while
//! a hostile guest sends.
//!
//! `VOLT_ROUNDS` sets the number of changes. With it, 10,000 frames of the guest precede each change.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use protocol_tests::bypass::book::{Book, marker};
use protocol_tests::bypass::hostile::{Account, Hostile};
use protocol_tests::bypass::hosts::{BOTH, GATEWAY, Hosts, OPEN, OWN, POLICY, STRANGER, V4};
use protocol_tests::bypass::transport::{self, ACK, SYN, TCP};
use protocol_tests::daemon::{poll_until, program};
use protocol_tests::frame::NetHeader;
use protocol_tests::lab::rounds;
use protocol_tests::nic::Nic;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::Setup;
use rustix::process::Signal;

/// Frames of a batch of the daemon, and of one of the guest: what a death may repeat.
const IN_FLIGHT: u64 = 96;

/// Changes something `rounds(5)` times while a hostile guest sends. Returns what happened, and how many
/// frames were counted as refused each way.
fn under_fire(book: &mut Book, mut change: impl FnMut(&mut Rig, usize)) -> (Account, [u64; 2]) {
    let pause = if std::env::var_os("VOLT_ROUNDS").is_some() { 10_000 } else { 500 };
    let before = sums(book);
    let wire = book.rig.netns.wire("tap0").expect("a packet socket");
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let (rig, session) = (&mut book.rig, &mut book.session);
    let account = std::thread::scope(|scope| {
        let guest = scope.spawn(|| Hostile::new(session, &wire).run(&sent, &over));
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..rounds(5) {
                let due = sent.load(Ordering::Relaxed) + pause;
                let sends = || (sent.load(Ordering::Relaxed) >= due || guest.is_finished()).then_some(());
                assert!(poll_until(LIMIT, sends).is_some(), "the guest does not get on");
                change(rig, round);
            }
        }));
        over.store(true, Ordering::Relaxed);
        let account = guest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        changed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        account
    });
    while book.rig.wire.recv(Duration::ZERO).expect("the wire").is_some() {}
    let after = sums(book);
    let counted = [after[0] - before[0], after[1] - before[1]];
    println!(
        "{} refused and {} allowed frames of the guest, {} lost, {} repeated; {} counted as refused; to the \
         guest: {} refused, {} counted, {} received",
        account.refused,
        account.allowed.len(),
        account.lost(),
        account.repeated(),
        counted[0],
        account.refused_in,
        counted[1],
        account.received
    );
    (account, counted)
}

/// Returns the numbers of frames that were refused each way: of the guest's, and to it.
fn sums(book: &Book) -> [u64; 2] {
    let counts = book.counts();
    ["tx", "rx"].map(|way| counts.iter().filter(|((of, _), _)| of == way).map(|(_, count)| count).sum())
}

/// Checks that nothing was lost, repeated or miscounted.
fn is_exact(line: &str, account: &Account, counted: [u64; 2]) {
    assert_eq!((account.lost(), account.repeated()), (0, 0), "{line}");
    assert_eq!(counted, [account.refused, account.refused_in], "{line}: counted as refused");
    assert!(account.received > 0, "{line}");
}

#[test]
fn hand_overs_under_fire() {
    let Some(mut book) = Book::new("hand_overs_under_fire") else { return };
    let (account, counted) = under_fire(&mut book, |rig, round| {
        rig.take_over(if round % 2 == 0 { &["--supervise"] } else { &[] });
    });
    book.tried.line("P1");
    is_exact("P1", &account, counted);
    book.done();
}

#[test]
fn kills_under_fire() {
    let setup = Setup::default();
    let Some(mut book) = Book::with("kills_under_fire", Some(POLICY), &["--supervise"], &setup) else {
        return;
    };
    let mut kills = 0;
    let (account, counted) = under_fire(&mut book, |rig, _| {
        rig.kill_worker();
        kills += 1;
    });
    book.tried.line("P2");
    assert_eq!(account.lost(), 0, "P2");
    assert!(account.repeated() <= IN_FLIGHT * kills, "P2: {} repeated", account.repeated());
    let more = counted[0].checked_sub(account.refused).expect("P2: each refused frame is counted");
    assert!(more <= IN_FLIGHT * kills, "P2: {more} counted twice");
    book.done();
}

/// Puts a policy in force.
fn set(rig: &Rig, text: &str) {
    let file = rig.dir.path().join("next.toml");
    fs::write(&file, text).expect("a policy");
    let mut command = Command::new(program("volt-netd"));
    command.args(["ctl", "--control"]).arg(rig.control()).args(["policy", "set"]).arg(&file);
    let output = command.stdin(Stdio::null()).output().expect("volt-netd ctl");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn policies_under_fire() {
    let Some(mut book) = Book::new("policies_under_fire") else { return };
    let (account, counted) = under_fire(&mut book, |rig, round| {
        // Other words, the same answers for this guest: all flows are judged anew.
        set(rig, &format!("{POLICY}\n[[allow]]\nto = \"203.0.113.{}\"\nprotocol = \"tcp\"\n", round % 256));
    });
    book.tried.line("P3");
    is_exact("P3", &account, counted);
    book.done();
}

/// Flows that another policy has allowed.
#[test]
fn flows_after_another_policy() {
    let Some(mut book) = Book::new("flows_after_another_policy") else { return };
    let nothing = "refuse = \"drop\"\n\n[network]\non-link = [\"192.0.2.0/24\", \"2001:db8:1::/64\"]\n\
                   gateways = [\"192.0.2.1\", \"2001:db8:1::1\"]\n";
    // What the marker needs, and nothing else.
    let marker_only = format!(
        "{nothing}\n[[allow]]\nto = \"198.51.100.7\"\nprotocol = \"udp\"\nports = 1000\n\n\
         [[allow]]\nfrom = \"198.51.100.7\"\nprotocol = \"udp\"\nports = 1000\n"
    );
    let hosts = BOTH[1];
    let datagram = hosts.udp_to(hosts.remote, OPEN);
    let answer = hosts.udp_from(hosts.remote, (OPEN, OWN));
    let segment = |flags, numbers| {
        let segment = transport::tcp((OWN, OPEN), flags, numbers, b"");
        hosts.out(hosts.remote, TCP, segment)
    };
    book.passes("P10", &datagram.frame());
    book.passes("P10", &segment(SYN, (1000, 0)).frame());
    let accepts = transport::tcp((OPEN, OWN), SYN | ACK, (5000, 1001), b"");
    book.passes_in("P10", &hosts.inward(hosts.remote, TCP, accepts).frame());
    set(&book.rig, &marker_only);
    book.refused("P11", &segment(ACK, (1001, 5001)).frame());
    book.refused_in("P12", &answer.frame());
    book.refused("P11", &datagram.frame());
    let told = transport::unreachable(true, &datagram.bytes());
    book.refused_in("P12", &hosts.inward(hosts.elsewhere, hosts.icmp(), told).frame());
    set(&book.rig, POLICY);
    book.refused("P13", &segment(ACK, (1001, 5001)).frame());
    book.passes("P14", &datagram.frame());
    book.passes_in("P14", &answer.frame());
    // The gateway is known still; another host cannot take its place.
    book.refused("P15", &V4.udp_to(V4.remote, OPEN).at(STRANGER).frame());
    book.passes("P14", &V4.udp_to(V4.remote, OPEN).at(GATEWAY).frame());
    book.done();
}

/// Returns the addresses of the frame with this number.
fn hosts_of(number: u32) -> Hosts {
    BOTH[(number % 2) as usize]
}

/// Publishes frames without a kick: refused ones, and an allowed one behind each.
fn publish(nic: &mut Nic, first: u32) {
    for number in first..first + 20 {
        let hosts = hosts_of(number);
        let bad = [
            hosts.udp_to(hosts.denied, OPEN),
            hosts.udp_to(hosts.remote, OPEN).by(STRANGER),
            hosts.udp_to(hosts.remote, OPEN).from(hosts.stranger),
        ];
        for packet in bad {
            nic.tx(0).offer(&NetHeader::default(), &packet.frame(), &[]).expect("room");
        }
        let good = marker(&hosts, number);
        nic.tx(0).offer(&NetHeader::default(), &good, &[]).expect("room");
    }
    nic.tx(0).ring.publish();
}

/// Takes the used chains of [`publish`].
fn take_used(book: &mut Book) {
    for _ in 0..80 {
        book.session.tx(0).used(LIMIT).expect("used");
    }
}

/// The front-end leaves and comes back; its ring is full of frames, and the interface too.
#[test]
fn front_ends_that_come_back() {
    let Some(mut book) = Book::new("front_ends_that_come_back") else { return };
    let refused_in = V4.udp_from(V4.elsewhere, (7000, OPEN)).frame();
    for round in 0..rounds(5) as u32 {
        let first = 5000 + 100 * round;
        let before = sums(&book);
        book = book.reconnect(|_, nic| publish(nic, first));
        book.tried.line("P20");
        for number in first..first + 20 {
            let hosts = hosts_of(number);
            book.arrives(&format!("P20 {round}"), &marker(&hosts, number));
        }
        take_used(&mut book);
        let after = sums(&book);
        assert_eq!(after[0] - before[0], 60, "P20 {round}: counted as refused");
        book.refused_in(&format!("P21 {round}"), &refused_in);
    }
    book.done();
}

/// The daemon is killed with a full ring, and starts again without a state: it knows no flow and no gateway.
#[test]
fn daemons_that_start_again() {
    let Some(mut book) = Book::new("daemons_that_start_again") else { return };
    for round in 0..rounds(5) as u32 {
        let line = format!("P30 {round}");
        let first = 5000 + 100 * round;
        let arguments = book.arguments.clone();
        // It dies somewhere in the ring.
        publish(&mut book.session.nic, first);
        book.session.tx(0).kick_always().expect("a kick");
        book.rig.daemon.signal(Signal::KILL).expect("it lives");
        book.rig.daemon.wait(LIMIT).expect("it ends");
        book = book.reconnect(|rig, _| {
            rig.restart(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        });
        book.tried.line(&line);
        take_used(&mut book);
        let mut before = 0;
        while let Some((_, frame)) = book.rig.wire.recv(Duration::ZERO).expect("the wire") {
            let is_allowed = (first..first + 20).any(|number| frame == marker(&hosts_of(number), number));
            assert!(is_allowed, "{line}: arrived: {frame:02x?}");
            before += 1;
        }
        let refused = sums(&book)[0];
        println!("{line}: {before} frames arrived before the end, {refused} were refused after it");
        assert!(refused <= 80, "{line}: {refused} of 80");
        book.introduce();
        book.only_a_marker(&line);
        let segment = transport::tcp((OWN, OPEN), ACK, (1001, 5001), b"data");
        book.refused(&format!("P31 {round}"), &V4.out(V4.remote, TCP, segment).frame());
        let answer = V4.udp_from(V4.remote, (OPEN, OWN));
        book.refused_in(&format!("P32 {round}"), &answer.frame());
    }
    book.done();
}
