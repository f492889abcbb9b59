//! No way of writing, reading or ending a capture holds a guest's frame or ends the daemon.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use protocol_tests::capture::{Client, command, is_off, numbers, read};
use protocol_tests::daemon::{poll_until, program};
use protocol_tests::frame::{numbered, udp};
use protocol_tests::pcapng::Capture;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::Setup;
use protocol_tests::succession::{Flow, SUPERVISED};
use rustix::process::Signal;

const CONTROL: [&str; 2] = ["--control", "{control}"];

/// A reader at the other end of a pipe sees each frame as it arrives, and the capture ends with the reader.
#[test]
fn a_pipes_reader_sees_frames_as_they_come() {
    let test = "a_pipes_reader_sees_frames_as_they_come";
    let Some(rig) = Rig::new(test, &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    let mut capture = command(&rig, Path::new("-"), &[]);
    capture.stdout(Stdio::piped());
    let mut client = Client::begun(capture, PathBuf::from("-"));
    let frames = client.child.stdout.take().expect("piped");
    // As a temporary: a command keeps its descriptors, including the pipe's end.
    let tcpdump = Command::new("tcpdump")
        .args(["-n", "-t", "-l", "-r", "-"])
        .stdin(frames)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut tcpdump) =
        tcpdump.inspect_err(|error| eprintln!("SKIP {test}: scripts/setup installs tcpdump: {error}"))
    else {
        return;
    };
    let mut lines = BufReader::new(tcpdump.stdout.take().expect("piped"));
    for number in 1..=3 {
        rig.guest_to_wire(&mut session, &udp((2, 1000 + number), (1, 53), b"frame"));
        // This line arrives before the next frame is sent.
        let mut line = String::new();
        lines.read_line(&mut line).expect("text");
        assert!(line.starts_with(&format!("IP 10.0.0.2.{} > 10.0.0.1.53", 1000 + number)), "{line}");
    }
    tcpdump.kill().expect("it lives");
    tcpdump.wait().expect("its end");
    let (status, said) = client.end();
    assert!(status.success() && said.contains("3 frames to standard output"), "{status}: {said}");
    is_off(&rig);
    rig.guest_to_wire(&mut session, &numbered(4, 100));
}

/// Every frame of the guest arrives while the capture has no reader; the capture counts its losses.
#[test]
fn a_reader_that_stops_loses_frames_of_the_capture_only() {
    let Some(mut rig) = Rig::new("a_reader_that_stops_loses_frames_of_the_capture_only", &CONTROL) else {
        return;
    };
    let base = Setup::default();
    let mut session = rig.session(&base);
    let mut capture = command(&rig, Path::new("-"), &[]);
    capture.stdout(Stdio::piped());
    let mut client = Client::begun(capture, PathBuf::from("-"));
    let lost = |rig: &Rig| rig.status()["capture"]["lost"].as_u64().expect("a number");
    // More frames than the ring, the client and the pipe hold.
    for number in 1..=1300 {
        rig.guest_to_wire(&mut session, &numbered(number, 9000));
    }
    rig.both_ways(&mut session, 10);
    let lost_at_first = lost(&rig);
    assert!(lost_at_first > 0, "{:#}", rig.status());
    // A reader that resumes finds the remaining frames, and a comment at each gap.
    let mut pipe = client.child.stdout.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes)
    });
    let sent = 1300 + 20;
    let caught_up = poll_until(LIMIT, || {
        rig.guest_to_wire(&mut session, &numbered(5000, 100));
        (lost(&rig) == lost_at_first).then_some(())
    });
    assert!(caught_up.is_some(), "{:#}", rig.status());
    client.kill(Signal::INT);
    let (status, said) = client.end();
    assert!(
        status.success() && said.contains(&format!("{lost_at_first} more were lost")),
        "{status}: {said}"
    );
    let capture = Capture::parse(&reader.join().expect("a thread").expect("a pipe")).expect("a whole file");
    let told: u64 = capture.frames.iter().map(|frame| frame.lost).sum();
    assert_eq!(told, lost_at_first, "each gap is reported with the frame after it");
    let (_, received, dropped) = capture.statistics[0];
    assert_eq!((received - capture.frames.len() as u64, dropped), (lost_at_first, lost_at_first));
    assert!(received > sent, "{received}");
    is_off(&rig);
}

/// A client whose reader has stopped can be ended.
#[test]
fn a_client_whose_reader_has_stopped_ends_when_it_is_told() {
    let test = "a_client_whose_reader_has_stopped_ends_when_it_is_told";
    let Some(rig) = Rig::new(test, &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    let mut capture = command(&rig, Path::new("-"), &[]);
    capture.stdout(Stdio::piped());
    let mut client = Client::begun(capture, PathBuf::from("-"));
    for number in 1..=20 {
        rig.guest_to_wire(&mut session, &numbered(number, 9000));
    }
    client.kill(Signal::TERM);
    let (status, said) = client.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the reader of standard output has stopped"), "{said}");
    is_off(&rig);
    rig.guest_to_wire(&mut session, &numbered(21, 100));
}

/// On a full disk the client prints a clear line and leaves a readable file; the daemon continues.
#[test]
fn a_full_disk_ends_the_client_only() {
    let Some(mut rig) = Rig::new("a_full_disk_ends_the_client_only", &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    let (disk, copy) = (rig.dir.path().join("disk"), rig.dir.path().join("copy"));
    std::fs::create_dir(&disk).expect("a directory");
    let script = "mount -t tmpfs -o size=64k none \"$1\" && { \"$2\" ctl --control \"$3\" capture \
                  --out \"$1/f\"; status=$?; cp \"$1/f\" \"$4\"; exit $status; }";
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]).arg(&disk);
    shell.arg(program("volt-netd")).arg(rig.control()).arg(&copy);
    let mut client = Client::begun(shell, copy);
    for number in 1..=20 {
        rig.guest_to_wire(&mut session, &numbered(number, 9000));
    }
    let (status, said) = client.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("/disk/f failed after") && said.contains("No space left on device"), "{said}");
    let capture = read(&client.file);
    assert!(said.contains(&format!("after {} complete frames", capture.frames.len())), "{said}");
    assert!(numbers(&capture, false).iter().copied().eq(1..=capture.frames.len() as u32));
    assert!(!capture.frames.is_empty());
    is_off(&rig);
    rig.both_ways(&mut session, 5);
}

/// A second client gets the reason of its refusal, and the running capture and its file are not changed.
#[test]
fn a_second_capture_is_refused() {
    let Some(mut rig) = Rig::new("a_second_capture_is_refused", &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    let mut client = Client::start(&rig, &[]);
    rig.both_ways(&mut session, 2);
    let refusal = |rig: &Rig, arguments: &[&str]| {
        let output = command(rig, &rig.dir.path().join("frames.pcapng"), arguments).output().expect("ctl");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text")
    };
    let why = refusal(&rig, &[]);
    assert!(why.contains(&format!("a capture is already running by process {}", client.child.id())), "{why}");
    rig.both_ways(&mut session, 2);
    assert_eq!(client.stop().frames.len(), 8);
    is_off(&rig);
    let why = refusal(&rig, &["--pair", "1"]);
    assert!(why.contains("no queue pair 1: this daemon has queue pairs 0 to 0"), "{why}");
    let output = command(&rig, Path::new("/nowhere/f"), &[]).output().expect("ctl");
    let why = String::from_utf8(output.stderr).expect("text");
    assert!(why.contains("cannot write /nowhere/f") && output.status.code() == Some(1), "{why}");
    is_off(&rig);
}

/// The capture ends with its client, for any reason. It continues when a front-end disconnects.
#[test]
fn a_client_that_dies_ends_the_capture() {
    let Some(mut rig) = Rig::new("a_client_that_dies_ends_the_capture", &CONTROL) else { return };
    let before = rig.usage();
    let mut client = Client::start(&rig, &[]);
    for _ in 0..2 {
        let mut session = rig.session(&Setup::default());
        rig.both_ways(&mut session, 3);
        drop(session);
        rig.logged(&["front-end gone"]);
    }
    let seen = poll_until(LIMIT, || (rig.status()["capture"]["frames"] == 12).then_some(()));
    assert!(seen.is_some(), "{:#}", rig.status());
    let mut session = rig.session(&Setup::default());
    client.kill(Signal::KILL);
    client.end();
    is_off(&rig);
    rig.both_ways(&mut session, 3);
    drop(session);
    rig.settled(&before);
}

/// The death of a worker and a hand-over leave a gap in the file, with a comment. The guest's frames
/// continue.
#[test]
fn the_capture_goes_on_with_the_next_process() {
    let Some(mut rig) = Rig::new("the_capture_goes_on_with_the_next_process", &SUPERVISED) else { return };
    let mut session = rig.session(&Setup::default());
    let mut client = Client::start(&rig, &[]);
    let mut flow = Flow::new(1);
    let mut gaps = 0;
    for successor in [None, Some(&["--supervise"][..]), None, Some(&[])] {
        flow.run(&mut session, &rig.wire, Duration::from_millis(30));
        match successor {
            None => drop(rig.kill_worker()),
            Some(arguments) => rig.take_over(arguments),
        }
        client.says("the capture continues");
        gaps += 1;
    }
    flow.run(&mut session, &rig.wire, Duration::from_millis(30));
    let (out, into) = flow.settle(&mut session, &rig.wire);
    let capture = client.stop();
    assert_eq!(out.lost, 0, "{out:?}");
    for inbound in [false, true] {
        let numbers = numbers(&capture, inbound);
        assert!(numbers.len() > 100, "{} of {out:?}, {into:?}", numbers.len());
    }
    let told = capture.frames.iter().flat_map(|frame| &frame.comments);
    let told: Vec<_> =
        told.filter(|comment| comment.starts_with("gap: the daemon's process was replaced")).collect();
    assert_eq!(told.len(), gaps, "{told:?}");
    assert_eq!(capture.statistics.len(), 1);
    is_off(&rig);
}

/// When the daemon ends for good, the capture ends too, with a complete file.
#[test]
fn a_daemon_that_ends_leaves_a_whole_file() {
    let Some(mut rig) = Rig::new("a_daemon_that_ends_leaves_a_whole_file", &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    let mut client = Client::start(&rig, &[]);
    rig.both_ways(&mut session, 5);
    drop(session);
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let (status, said) = client.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the daemon has ended") && said.contains("after 10 frames"), "{said}");
    let capture = read(&client.file);
    assert_eq!((capture.frames.len(), &capture.statistics[..]), (10, &[(0, 10, 0)][..]));
}
