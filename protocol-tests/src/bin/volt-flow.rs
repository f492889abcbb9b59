//! `volt-flow SOCKET INTERFACE RATE`: a scripted front-end of the back-end at SOCKET. It sends RATE numbered
//! frames a second each way between its guest's rings and the back-end's INTERFACE, until standard input
//! ends.
//!
//! Prints `flowing` at the start, and at the end a line for each way with the frames' results. Exits with 1
//! if a frame was lost, repeated or reordered, or if the back-end no longer answers.
#![forbid(unsafe_code)]

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol_tests::frontend::Frontend;
use protocol_tests::netns::Netns;
use protocol_tests::session::{Session, Setup};
use protocol_tests::succession::{Account, Flow};

/// Descriptors of a ring: room for the guest's frames of a second.
const RING: u16 = 2048;
/// Time limit for the back-end's answers.
const LIMIT: Duration = Duration::from_secs(60);

static OVER: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [socket, interface, rate] = &arguments[..] else {
        eprintln!("volt-flow SOCKET INTERFACE RATE");
        return ExitCode::from(2);
    };
    let rate = rate.parse().expect("a number of frames a second");
    let wire = Netns::here().and_then(|here| here.wire(interface)).expect("the interface");
    let setup = Setup { size: RING, ..Setup::default() };
    let frontend = Frontend::connect(Path::new(socket), LIMIT).expect("a back-end that listens");
    let mut session = Session::start(frontend, &setup).expect("a back-end that serves");
    session.set_patience(LIMIT);
    session.rx(0).fill(usize::from(RING) / 2, &[2048]).expect("receive buffers");
    println!("flowing");
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        OVER.store(true, Ordering::Relaxed);
    });
    let mut flow = Flow::new(1);
    flow.run_at(rate, &mut session, &wire, || OVER.load(Ordering::Relaxed));
    let [out_gap, into_gap] = flow.gaps();
    let (out, into) = flow.settle(&mut session, &wire);
    let answers = session.frontend.sync();
    for (way, account, gap) in [("from", out, out_gap), ("to", into, into_gap)] {
        let Account { frames, lost, repeated, reordered } = account;
        println!(
            "{way} the guest: {frames} frames, {lost} lost, {repeated} repeated, {reordered} reordered; \
             longest gap {} ms",
            gap.as_millis()
        );
    }
    match &answers {
        Ok(()) => println!("the connection is served"),
        Err(error) => println!("the connection is gone: {error}"),
    }
    ExitCode::from(u8::from(!(out.is_perfect() && into.is_perfect() && answers.is_ok())))
}
