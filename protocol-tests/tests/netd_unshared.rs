//! A front-end whose guest does not write to the shared memory: QEMU with share=off. The daemon sees no
//! buffers.

use protocol_tests::frontend::mem_table;
use protocol_tests::memory::GuestMemory;
use protocol_tests::nic::eventfd;
use protocol_tests::rig::{QUIET, Rig};
use protocol_tests::session::{Session, Setup, negotiate, offer_vring};
use protocol_tests::wire::request;
use rustix::io::write;

/// Starts a session that shares `memory` instead of its card's own, and kicks each ring once, as QEMU does
/// when it starts one.
fn session(rig: &Rig, memory: Option<&GuestMemory>) -> Session {
    let mut frontend = rig.connect();
    let (features, protocol) =
        negotiate(&mut frontend, Setup::default().features, Setup::default().protocol).expect("negotiation");
    let nic = Setup::default().nic(features).expect("a card");
    let fds = memory.map_or_else(|| nic.mem.fds(), GuestMemory::fds);
    frontend.tell(request::SET_MEM_TABLE, &mem_table(&nic.mem.specs()), &fds).expect("memory");
    for queue in &nic.queues {
        write(&queue.kick, &1u64.to_ne_bytes()).expect("a kick");
        offer_vring(&frontend, &nic.mem, queue, 0).expect("a vring");
        frontend.set_vring_enable(queue.vring, true).expect("enabled");
    }
    // Stops and restarts the rings, as happens when a guest's interrupts are set up.
    for queue in &nic.queues {
        frontend
            .set_vring_fd(request::SET_VRING_ERR, queue.vring, Some(&eventfd().expect("an eventfd")))
            .expect("err");
    }
    Session { frontend, nic, protocol }
}

/// The daemon notices that the driver's first buffers and its first frame do not arrive, and logs it once.
#[test]
fn rings_that_never_fill_are_told_once() {
    let control = ["--control", "{control}"];
    let Some(mut rig) = Rig::new("rings_that_never_fill_are_told_once", &control) else { return };
    let told = |rig: &Rig| rig.daemon.log().matches("backend with share=on").count();
    for _ in 0..2 {
        // A slow guest, or one whose rings have run empty, is no error.
        let mut session = self::session(&rig, None);
        std::thread::sleep(QUIET);
        session.rx(0).fill(16, &[2048]).expect("buffers");
        rig.both_ways(&mut session, 40);
        for queue in &session.nic.queues {
            for _ in 0..5 {
                write(&queue.kick, &1u64.to_ne_bytes()).expect("a kick");
            }
        }
        session.frontend.sync().expect("served");
        assert_eq!(rig.status()["front_end"]["memory_unshared"], false);
    }
    assert_eq!(told(&rig), 0, "{}", rig.daemon.log());
    let spec = Setup::default().regions[0];
    let other = GuestMemory::flat(spec.guest, spec.size).expect("memory");
    for round in 1..=2 {
        let mut session = self::session(&rig, Some(&other));
        session.rx(0).fill(16, &[2048]).expect("buffers");
        session.tx(0).kick_always().expect("a kick");
        rig.logged(&["WARN", "share=on"]);
        for _ in 0..5 {
            session.tx(0).kick_always().expect("a kick");
        }
        session.frontend.sync().expect("served");
        std::thread::sleep(QUIET);
        assert_eq!(told(&rig), round, "{}", rig.daemon.log());
        assert_eq!(rig.status()["front_end"]["memory_unshared"], true);
        drop(session);
        rig.logged(&["front-end gone"]);
        rig.session(&Setup::default());
    }
}
