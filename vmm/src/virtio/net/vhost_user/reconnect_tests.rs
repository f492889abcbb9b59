//! The back-end disconnects, at any moment and for any reason, and comes back. The guest keeps its device.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use serde_json::json;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS};

use super::peer::{Options, Peer};
use super::scripted::{End, SET_MEM_TABLE, SET_VRING_BASE, SET_VRING_ENABLE, SET_VRING_KICK, Told, serve};
use super::shared::STOP_LIMIT;
use super::tests::{MQ, RX, TX, config, control, echo, socket};
use super::*;
use crate::virtio::testing::{Driver, PATIENCE, eventually};

/// Keeps the log lines of all tests. The socket's path identifies the lines of a test.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Counts the lines about `path` with `text`, from the first call on.
fn logged(path: &Path, text: &str) -> usize {
    static SET: OnceLock<()> = OnceLock::new();
    SET.get_or_init(|| {
        log::set_logger(&LINES).unwrap();
        log::set_max_level(LevelFilter::Info);
    });
    let path = path.display().to_string();
    LINES.0.lock().unwrap().iter().filter(|line| line.contains(&path) && line.contains(text)).count()
}

fn wait_back(monitor: &Monitor, losses: u64) {
    eventually("the back-end's return", || {
        let state = monitor.state();
        state.is_connected() && state.losses == losses
    });
}

fn wait_away(monitor: &Monitor) {
    eventually("the loss of the back-end", || !monitor.state().is_connected());
}

fn interrupt_reasons(driver: &mut Driver) -> u32 {
    let reasons = driver.read(VIRTIO_MMIO_INTERRUPT_STATUS);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, reasons);
    reasons
}

/// Buffers that the guest offered before and during the absence are served afterwards, without another kick.
/// The log has a line for the end and one for the return.
#[test]
fn killed_while_idle() {
    let (_dir, path) = socket();
    assert_eq!(logged(&path, ""), 0);
    let peer = Peer::start(&path, Options::default());
    let device = VhostUserNet::connect(&config(&path, 1), &Arc::default()).unwrap();
    let (monitor, handle) = (device.monitor(), device.handle());
    let status = || serde_json::to_value(handle.status()).unwrap();
    let mut driver = Driver::new(device);
    driver.run(Features::VERSION_1, &[0, 1]);
    echo(&mut driver, 0, 1);
    assert_eq!((&status()["back_end"], &status()["losses"]), (&"connected".into(), &0.into()));
    // A buffer that the first back-end has and does not use.
    driver.put(RX, &[0; 256]);
    driver.offer(0, &[(RX, 256, true)]);
    driver.kick(0);
    peer.kill();
    wait_away(&monitor);
    assert_eq!((&status()["back_end"], &status()["losses"]), (&"away".into(), &1.into()));
    assert!(status()["away_now_seconds"].is_f64());
    driver.put(TX, &[7; 112]);
    driver.offer(1, &[(TX, 112, false)]);
    thread::sleep(Duration::from_millis(300));
    assert_eq!((driver.used(0), driver.used(1)), (None, None));

    let _peer = Peer::start(&path, Options::default());
    wait_back(&monitor, 1);
    assert_eq!(driver.wait_used(0), 112);
    assert_eq!(driver.wait_used(1), 0);
    assert_eq!(driver.get(RX, 112), [7; 112]);
    echo(&mut driver, 0, 2);
    assert_eq!((logged(&path, "lost the back-end ("), logged(&path, "is back after")), (1, 1));
    let away = monitor.state().away_total;
    assert!((Duration::from_millis(300)..PATIENCE).contains(&away), "{away:?}");
    let status = status();
    assert_eq!((&status["back_end"], &status["away_now_seconds"]), (&"connected".into(), &json!(null)));
    assert_eq!(status["away_seconds"], away.as_secs_f64());
}

/// An absence of some seconds, with resets and control commands. Attempts are not logged.
#[test]
fn away_for_seconds() {
    let (_dir, path) = socket();
    assert_eq!(logged(&path, ""), 0);
    let two = || Options { pairs: 2, ..Options::default() };
    let peer = Peer::start(&path, two());
    let device = VhostUserNet::connect(&config(&path, 2), &Arc::default()).unwrap();
    let monitor = device.monitor();
    let mut driver = Driver::new(device);
    driver.run(Features::VERSION_1.union(MQ), &[0, 1, 2, 3, 4]);
    peer.kill();
    wait_away(&monitor);
    eventually("a line", || logged(&path, "lost the back-end (") == 1);
    let before = logged(&path, "back-end");
    let started = Instant::now();
    for _ in 0..20 {
        driver.reset();
        driver.run(Features::VERSION_1.union(MQ), &[0, 1, 2, 3, 4]);
        assert_eq!(control(&mut driver, 4, &[4, 0, 2, 0]), 0);
    }
    assert!(started.elapsed() < 10 * STOP_LIMIT, "nothing waits for a back-end that is away, 20 times");
    thread::sleep(Duration::from_secs(3));
    assert_eq!(logged(&path, "back-end"), before, "no line for an attempt");

    // The pairs that the driver chose during the absence.
    let peer = Peer::start(&path, two());
    wait_back(&monitor, 1);
    echo(&mut driver, 1, 1);
    assert!(peer.enabled(3));
    // Again, with pairs chosen before.
    peer.kill();
    let peer = Peer::start(&path, two());
    wait_back(&monitor, 2);
    echo(&mut driver, 1, 2);
    echo(&mut driver, 0, 3);
    assert!(peer.enabled(3));
}

/// Back-ends that die at one message after the other of the handshake and the set-up. The last one gets all
/// messages, with the used indices of that moment.
#[test]
fn killed_in_the_middle_of_set_up() {
    let (_dir, path) = socket();
    let listener = UnixListener::bind(&path).unwrap();
    // The handshake has 7 messages here, the set-up 26.
    let deaths = [33, 0, 1, 3, 6, 7, 9, 20, 32];
    let peer = thread::spawn(move || {
        for after in deaths {
            let told = serve(&listener, 4, End::Close(after));
            assert_eq!(told.len(), after);
        }
        serve(&listener, 4, End::Theirs)
    });
    let device = VhostUserNet::connect(&config(&path, 2), &Arc::default()).unwrap();
    let monitor = device.monitor();
    let mut driver = Driver::new(device);
    driver.negotiate(Features::VERSION_1.union(MQ));
    for index in [0, 1, 2, 3, 4] {
        driver.add_ring(index, 16);
        if index < 4 {
            let used = driver.rings[&index].used;
            driver.put(used + 2, &(70 + index).to_le_bytes());
        }
    }
    assert_eq!(driver.start(), 15);
    assert_eq!(control(&mut driver, 4, &[4, 0, 2, 0]), 0);
    eventually("the one that stays", || monitor.state().is_connected() && monitor.state().losses > 0);
    thread::sleep(Duration::from_millis(200));
    assert!(monitor.state().is_connected());
    drop(driver);
    let told = peer.join().unwrap();
    let words = |told: &Told, request| -> Vec<u32> {
        told.iter().filter(|(its, _)| *its == request).map(|(_, word)| *word).collect()
    };
    assert_eq!(words(&told, SET_MEM_TABLE).len(), 1);
    assert_eq!(words(&told, SET_VRING_BASE), [70, 71, 72, 73]);
    assert_eq!(words(&told, SET_VRING_KICK).len(), 4);
    assert_eq!(words(&told, SET_VRING_ENABLE)[..4], [1, 1, 1, 1]);
}

/// A back-end with fewer features than the guest uses or was offered, or with fewer pairs, is logged once,
/// and refused until a suitable one comes.
#[test]
fn a_back_end_with_less_is_refused_by_name() {
    let (_dir, path) = socket();
    assert_eq!(logged(&path, ""), 0);
    let full = || Options { pairs: 2, ..Options::default() };
    let less = || {
        let features = Options::default().features.difference(Features::EVENT_IDX);
        Options { features, ..full() }
    };
    let peer = Peer::start(&path, full());
    let device = VhostUserNet::connect(&config(&path, 2), &Arc::default()).unwrap();
    let monitor = device.monitor();
    let mut driver = Driver::new(device);

    let refused = |options: Options, line: &str| {
        let _peer = Peer::start(&path, options);
        eventually(line, || logged(&path, line) == 1);
        assert!(!monitor.state().is_connected());
    };
    peer.kill();
    refused(less(), "features that the guest was offered: EVENT_IDX");
    refused(Options { pairs: 1, ..Options::default() }, "it serves 1 queue pair and 2 are needed");
    let peer = Peer::start(&path, full());
    wait_back(&monitor, 1);

    driver.run(Features::VERSION_1.union(Features::EVENT_IDX).union(MQ), &[0, 1, 2, 3, 4]);
    echo(&mut driver, 0, 1);
    peer.kill();
    refused(less(), "features that the guest uses: EVENT_IDX");
    let peer = Peer::start(&path, full());
    wait_back(&monitor, 2);
    echo(&mut driver, 0, 2);

    // The guest does not need features that it does not use, until it starts again.
    driver.reset();
    driver.run(Features::VERSION_1.union(MQ), &[0, 1, 2, 3, 4]);
    peer.kill();
    let _peer = Peer::start(&path, less());
    wait_back(&monitor, 3);
    echo(&mut driver, 0, 3);
}

/// Another address and MTU change nothing for the guest. The MTU is logged.
#[test]
fn configuration_is_that_of_the_first_connection() {
    let (_dir, path) = socket();
    assert_eq!(logged(&path, ""), 0);
    let with = |mac, mtu| {
        let config = NetConfig { mac: Mac([2, 0, 0, 0, 0, mac]), mtu, ..NetConfig::from_bytes(&[0; 17]) };
        Options { config: Some(config), ..Options::default() }
    };
    let peer = Peer::start(&path, with(1, 1400));
    let device = VhostUserNet::connect(&config(&path, 1), &Arc::default()).unwrap();
    let monitor = device.monitor();
    let mut driver = Driver::new(device);
    let before = driver.config(17);
    peer.kill();
    let _peer = Peer::start(&path, with(2, 9000));
    wait_back(&monitor, 1);
    assert_eq!(driver.config(17), before);
    eventually("a line", || logged(&path, "its MTU is 9000 and was 1400") == 1);
}

/// A silent back-end is found by the request that checks whether it answers, and disconnected.
#[test]
fn a_hang_is_noticed_and_ended() {
    let (_dir, path) = socket();
    assert_eq!(logged(&path, ""), 0);
    let listener = UnixListener::bind(&path).unwrap();
    let peer = thread::spawn(move || {
        let probed = serve(&listener, 2, End::Hang(4));
        serve(&listener, 2, End::Theirs);
        probed
    });
    let device = VhostUserNet::connect(&config(&path, 1), &Arc::default()).unwrap();
    let monitor = device.monitor();
    wait_back(&monitor, 1);
    assert_eq!(logged(&path, "lost the back-end (it gave no answer to GET_FEATURES within 5 s)"), 1);
    drop(device);
    assert_eq!(peer.join().unwrap().len(), 5, "one request went unanswered");
}

/// A back-end hangs in the handshake of a reconnection. Resets, starts and control commands are as fast as
/// without a back-end.
#[test]
fn a_hang_in_the_handshake_holds_nobody_up() {
    let (_dir, path) = socket();
    let peer = Peer::start(&path, Options::default());
    let device = VhostUserNet::connect(&config(&path, 1), &Arc::default()).unwrap();
    let monitor = device.monitor();
    let mut driver = Driver::new(device);
    let features = Features::VERSION_1.union(Features::NET_CTRL_VQ).union(Features::NET_CTRL_RX);
    driver.run(features, &[0, 1, 2]);
    peer.kill();
    wait_away(&monitor);
    let silent = UnixListener::bind(&path).unwrap();
    thread::sleep(Duration::from_millis(1500));
    let times = [(); 5].map(|()| {
        let started = Instant::now();
        assert_eq!(control(&mut driver, 2, &[0, 0, 1]), 0);
        driver.reset();
        driver.run(features, &[0, 1, 2]);
        started.elapsed()
    });
    // Nothing waits. One of them may be kept from the processor.
    assert!(times.iter().filter(|time| **time < STOP_LIMIT).count() > 2, "{times:?}");
    // Dropping the device is fast, too, while the handshake hangs.
    thread::sleep(Duration::from_millis(1500));
    let started = Instant::now();
    drop(driver);
    assert!(started.elapsed() < STOP_LIMIT, "{:?}", started.elapsed());
    drop(silent);
}

/// The link goes down only with the option, and only after that time. Each change comes with a configuration
/// interrupt.
#[test]
fn link_down_after() {
    const CONFIG: u32 = 2;
    let status = |driver: &mut Driver| driver.config(8)[6];
    for link_down_after in [None, Some(Duration::from_millis(500))] {
        let (_dir, path) = socket();
        let peer = Peer::start(&path, Options::default());
        let device =
            VhostUserNet::connect(&NetSocketConfig { link_down_after, ..config(&path, 1) }, &Arc::default())
                .unwrap();
        let monitor = device.monitor();
        let mut driver = Driver::new(device);
        driver.run(Features::VERSION_1.union(Features::NET_STATUS), &[0, 1]);
        echo(&mut driver, 0, 1);
        peer.kill();
        wait_away(&monitor);
        let since = monitor.state().away_since.unwrap();
        interrupt_reasons(&mut driver);
        if link_down_after.is_some() {
            eventually("link down", || status(&mut driver) == 0);
            assert!(since.elapsed() >= Duration::from_millis(500));
            eventually("its interrupt", || interrupt_reasons(&mut driver) & CONFIG != 0);
        } else {
            thread::sleep(Duration::from_secs(1));
            assert_eq!((status(&mut driver), interrupt_reasons(&mut driver) & CONFIG), (1, 0));
        }
        let _peer = Peer::start(&path, Options::default());
        wait_back(&monitor, 1);
        assert_eq!(status(&mut driver), 1);
        let shown = interrupt_reasons(&mut driver) & CONFIG != 0;
        assert_eq!(shown, link_down_after.is_some());
        echo(&mut driver, 0, 2);
    }
}
