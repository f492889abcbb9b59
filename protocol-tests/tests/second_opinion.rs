//! The scripted peers against independent implementations: `vhost-user-backend` and `vhost`'s `Frontend`.
//! Their agreement excludes one author's misreading of the specification.

use protocol_tests::backend::{Backend, Script};
use protocol_tests::daemon::poll_until;
use protocol_tests::frame::{NetHeader, number_of, numbered};
use protocol_tests::front_peer::by_crate::describe;
use protocol_tests::frontend::Frontend;
use protocol_tests::memory::RegionSpec;
use protocol_tests::peer::CratePeer;
use protocol_tests::rig::LIMIT;
use protocol_tests::session::{Session, Setup};
use protocol_tests::wire::feature;
use vhost::VhostBackend;
use vhost::vhost_user::{Frontend as CrateFrontend, VhostUserFrontend, VhostUserProtocolFeatures};

/// The scripted front-end drives a back-end on the crates, with chains of every shape, and rings and buffers
/// in two regions at offsets of their files: frames return unchanged.
#[test]
fn scripted_front_end_and_the_crates_back_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let peer = CratePeer::listen(&path).expect("a peer");
    let frontend = Frontend::connect(&path, LIMIT).expect("a connection");
    let regions = RegionSpec::adjoining(0x10_0000, &[(0x1000, 0x3000), (0x400_0000, 0x1000)]);
    let mut session = Session::start(frontend, &Setup { regions, ..Setup::default() }).expect("a session");
    assert_eq!(session.nic.features & feature::EVENT_IDX, 0, "the peer does not offer it");
    session.rx(0).fill(16, &[2048]).expect("buffers");
    for number in 0..300 {
        let frame = numbered(number, 60 + 4 * number as usize);
        let queue = session.tx(0);
        let parts = queue.place(&NetHeader::default(), &frame, &[12, 20, 5]);
        match number % 3 {
            0 => queue.submit(&parts).expect("room"),
            1 => queue.submit_indirect(&parts).expect("room"),
            _ => {
                let table = queue.alloc(32);
                queue.ring.add_mixed(&parts[..2], Some((table, &parts[2..]))).expect("room")
            }
        };
        queue.kick().expect("kicked");
        queue.used(LIMIT).expect("used");
        let back = session.rx(0).recv(LIMIT).expect("an echo");
        assert_eq!(number_of(&back.bytes), Some(number));
    }
    assert_eq!(session.stop().expect("bases").0, [300, 300]);
    assert!(poll_until(LIMIT, || peer.ended()).is_some(), "the peer sees the connection end");
}

/// `vhost`'s front-end sets up the scripted back-end, and a scripted driver's frames return.
#[test]
fn the_crates_front_end_and_the_scripted_back_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let backend = Backend::listen(&path, Script { echo: true, ..Script::default() }).expect("a back-end");
    let mut frontend = CrateFrontend::connect(&path, 2).expect("a connection");
    frontend.set_owner().expect("owner");
    let features = frontend.get_features().expect("features") & Setup::default().features;
    let offered = frontend.get_protocol_features().expect("protocol features");
    frontend.set_protocol_features(offered & VhostUserProtocolFeatures::all()).expect("protocol features");
    frontend.set_features(features).expect("features");
    assert_eq!(frontend.get_queue_num().expect("queues"), 2);
    let mut nic = Setup::default().nic(features).expect("a card");
    describe(&mut frontend, &nic).expect("a description");
    nic.rx(0).fill(4, &[2048]).expect("buffers");
    for number in 0..10 {
        nic.tx(0).send(&numbered(number, 700), LIMIT).expect("sent");
        assert_eq!(number_of(&nic.rx(0).recv(LIMIT).expect("an echo").bytes), Some(number));
    }
    assert_eq!(frontend.get_vring_base(1).expect("a base"), 10);
    assert!(backend.faults().is_empty(), "{:?}", backend.faults());
}
