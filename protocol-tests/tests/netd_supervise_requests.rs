//! volt-netd's worker is killed during a request, before each of its system calls: the next worker answers,
//! once.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use protocol_tests::daemon::poll_until;
use protocol_tests::frontend::{mem_table, single_region};
use protocol_tests::memory::GuestMemory;
use protocol_tests::nic::eventfd;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::Setup;
use protocol_tests::succession::SUPERVISED;
use protocol_tests::trace::Traced;
use protocol_tests::wire::{encode, flags, longs, protocol, request, words};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// A request that the test waits for, and the sign of its completion.
struct Request<'a> {
    name: &'static str,
    bytes: Vec<u8>,
    code: u32,
    fds: Vec<BorrowedFd<'a>>,
    /// The expected reply, if it is not status 0.
    reply: Option<Vec<u8>>,
}

/// Runs the worker from system call to system call, and kills it at stop `step`. Returns whether it reached
/// that stop.
fn kill_at(worker: Pid, step: u32, begin: impl FnOnce()) -> bool {
    let traced = Traced::seize(worker).expect("it can be traced");
    begin();
    traced.go_on().expect("it stood still");
    for stop in 0.. {
        // In epoll_wait it stops no more. Until it sleeps there, it may only be slow.
        let quiet = Duration::from_millis(60);
        let mut deadline = Instant::now() + quiet;
        let mut status = traced.status().expect("the worker");
        while status.is_none() && Instant::now() < deadline {
            if !sleeps_in_epoll(worker) {
                deadline = Instant::now() + quiet;
            }
            std::thread::yield_now();
            status = traced.status().expect("the worker");
        }
        if status.is_none() {
            traced.stop().expect("it runs");
            traced.detach().expect("it stood still");
            return false;
        }
        if stop == step {
            kill_process(worker, Signal::KILL).expect("killed");
            waitpid(Some(worker), WaitOptions::empty()).expect("its end");
            return true;
        }
        traced.go_on().expect("it stood still");
    }
    unreachable!()
}

/// Returns whether a process waits in epoll_wait, according to the kernel; a running process is in no call.
fn sleeps_in_epoll(process: Pid) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{}/syscall", process.as_raw_pid())).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    number.is_some_and(|number: i64| {
        [libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2].contains(&number)
    })
}

/// Killed before and after every system call of every kind of request: the front-end gets its reply once, and
/// the rings run.
#[test]
fn killed_at_every_step_of_every_request() {
    let Some(mut rig) = Rig::new("killed_at_every_step_of_every_request", &SUPERVISED) else { return };
    let slots = protocol::CONFIGURE_MEM_SLOTS;
    let setup = Setup { protocol: Setup::default().protocol | slots, ..Setup::default() };
    let mut session = rig.session(&setup);
    let more = GuestMemory::flat(0x4000_0000, 1 << 20).expect("memory");
    let (call, kick) = (eventfd().expect("an eventfd"), eventfd().expect("an eventfd"));
    let features = session.frontend.get_features().expect("features");
    let acked = session.nic.features;
    let mem = session.nic.mem.clone();
    let layout = session.tx(0).ring.layout();
    let with_reply = |name, code, body: &[u8], fds| Request {
        name,
        bytes: encode(code, flags::NEED_REPLY, body),
        code,
        fds,
        reply: None,
    };
    let ask = |name, code, reply: Vec<u8>| Request {
        name,
        bytes: encode(code, 0, &[]),
        code,
        fds: vec![],
        reply: Some(reply),
    };
    let addr = [
        &words(&[1, 0])[..],
        &longs(&[mem.user(layout.desc), mem.user(layout.used), mem.user(layout.avail), 0]),
    ]
    .concat();
    let requests = [
        ask("GET_FEATURES", request::GET_FEATURES, longs(&[features])),
        with_reply("SET_FEATURES", request::SET_FEATURES, &longs(&[acked]), vec![]),
        with_reply("SET_MEM_TABLE", request::SET_MEM_TABLE, &mem_table(&mem.specs()), mem.fds()),
        with_reply("ADD_MEM_REG", request::ADD_MEM_REG, &single_region(&more.specs()[0]), more.fds()),
        with_reply("REM_MEM_REG", request::REM_MEM_REG, &single_region(&more.specs()[0]), vec![]),
        with_reply("SET_VRING_ENABLE 0", request::SET_VRING_ENABLE, &words(&[1, 0]), vec![]),
        with_reply("SET_VRING_NUM", request::SET_VRING_NUM, &words(&[1, 256]), vec![]),
        with_reply("SET_VRING_ADDR", request::SET_VRING_ADDR, &addr, vec![]),
        with_reply("SET_VRING_BASE", request::SET_VRING_BASE, &words(&[1, 0]), vec![]),
        with_reply("SET_VRING_CALL", request::SET_VRING_CALL, &longs(&[1]), vec![call.as_fd()]),
        with_reply("SET_VRING_KICK", request::SET_VRING_KICK, &longs(&[1]), vec![kick.as_fd()]),
        with_reply("SET_VRING_ENABLE 1", request::SET_VRING_ENABLE, &words(&[1, 1]), vec![]),
    ];
    let (mut kills, mut dead) = (0, None);
    for request in &requests {
        for step in 0.. {
            if request.name == "REM_MEM_REG" {
                session.frontend.add_mem_reg(&more.specs()[0], more.fds()[0]).expect("added");
            }
            let alive = || Some(rig.worker()).filter(|pid| Some(*pid) != dead);
            let worker = poll_until(LIMIT, alive).expect("the next worker");
            let wire = session.frontend.channel();
            let begin = || wire.send_bytes(&request.bytes, &request.fds).expect("sent");
            let killed = kill_at(worker, step, begin);
            let reply = session.frontend.channel().recv_reply(request.code);
            let reply = reply.unwrap_or_else(|e| panic!("{} killed at step {step}: {e}", request.name));
            let expected = request.reply.clone().unwrap_or_else(|| longs(&[0]));
            assert_eq!(reply.body, expected, "{} killed at step {step}", request.name);
            let another = protocol_tests::wire::readable(session.frontend.channel().socket(), Duration::ZERO);
            assert!(!another.expect("poll"), "{} killed at step {step}: another reply", request.name);
            if request.name == "ADD_MEM_REG" {
                session.frontend.rem_mem_reg(&more.specs()[0]).expect("removed");
            }
            if !killed {
                assert!(step > 6, "{}: {step} steps cannot be all", request.name);
                break;
            }
            (kills, dead) = (kills + 1, Some(worker));
        }
    }
    assert!(session.frontend.rem_mem_reg(&more.specs()[0]).is_err(), "no request was carried out twice");
    println!("{kills} kills");
    session.nic.queues[1].call = call;
    session.nic.queues[1].kick = kick;
    // A request that killed two workers is refused, correctly: nothing moves here, so all its deaths look the
    // same.
    if session.rx(0).take_unserved().expect("no frames") > 0 {
        rig.logged(&["it is returned unserved"]);
    }
    rig.both_ways(&mut session, 10);
    assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
}
