use serde_json::json;

use super::*;

fn status() -> Status {
    let status = json!({
        "program": "volt-netd 0.1.0", "pid": 4711, "uptime_seconds": 7509, "supervised": true,
        "supervisor_pid": 4709, "restarts": 2,
        "take_overs": 1, "sandbox": true, "interface": "tap0", "interface_up": true,
        "endpoint": "listening on /run/volt/net0.sock", "offered_mac": "6a:ef:26:b3:bb:5a", "queue_pairs": 2,
        "limits": { "rx_rate": "none", "tx_rate": "100Mbit" }, "busy_poll_us": 50,
        "front_end": { "features": "CSUM GUEST_CSUM VERSION_1", "memory_bytes": 536_870_912,
            "memory_regions": 2, "memory_unshared": true, "serving_pairs": [0], "broken_vrings": [2] },
        "vrings": [
            { "vring": 0, "kind": "rx", "state": "running", "size": 256, "available": 250, "waits": true,
                "idle_seconds": 3, "no_progress": false },
            { "vring": 1, "kind": "tx", "state": "running", "size": 256, "available": 17, "waits": false,
                "idle_seconds": 75, "no_progress": true },
            { "vring": 2, "kind": "rx", "state": "broken", "size": null, "available": null, "waits": false,
                "idle_seconds": null, "no_progress": false },
            { "vring": 3, "kind": "tx", "state": "stopped", "size": null, "available": null, "waits": false,
                "idle_seconds": null, "no_progress": false },
            { "vring": 4, "kind": "control", "state": "running", "size": null, "available": null,
                "waits": false, "idle_seconds": null, "no_progress": false },
        ],
        "counters": [
            { "pair": 0, "rx_frames": 1_234_567, "rx_bytes": 1_288_490_188, "rx_too_long": 3, "rx_failed": 2,
                "tx_frames": 81_274, "tx_bytes": 42_048_225, "tx_no_port": 0, "tx_limited": 12,
                "calls": 10_000, "kicks": 9000,
                "deadly_chains": 0 },
            { "pair": 1, "rx_frames": 0, "rx_bytes": 0, "tx_frames": 0, "tx_bytes": 0, "calls": 0, "kicks": 0,
                "deadly_chains": 1, "tx_of_a_newer_daemon": 4 },
        ],
    });
    serde_json::from_value(status).unwrap()
}

#[test]
fn all_of_it() {
    assert_eq!(
        whole(&status()),
        "\
volt-netd 0.1.0, process 4711, up 2 h 5 min
interface     tap0 up
endpoint      listening on /run/volt/net0.sock
front-end     connected, 512 MiB of memory in 2 regions, not shared by the guest
features      CSUM GUEST_CSUM VERSION_1
queue pairs   1 of 2 serving
offered MAC   6a:ef:26:b3:bb:5a
limits        rx none, tx 100Mbit
busy polling  50 µs
sandbox       on
supervised    by process 4709, 2 restarts
take-overs    1

pair  way     frames     bytes  limited  drops  why
   0  rx   1,234,567   1.2 GiB        0      5  3 too long, 2 failed
   0  tx      81,274  39.2 MiB       12      0
   1  rx           0       0 B        0      0
   1  tx           0       0 B        0      0

pair   calls  kicks  deadly chains
   0  10,000  9,000              0
   1       0      0              1

vring  kind     state        entries  available        idle
    0  rx       waiting          256        250         3 s
    1  tx       no progress      256         17  1 min 15 s
    2  rx       broken             -          -           -
    3  tx       stopped            -          -           -
    4  control  running            -          -           -
"
    );
}

#[test]
fn a_daemon_that_waits_for_a_front_end() {
    let waiting = Status {
        front_end: None,
        vrings: Vec::new(),
        supervised: false,
        sandbox: false,
        interface_up: false,
        busy_poll_us: 0,
        counters: Vec::new(),
        ..status()
    };
    assert_eq!(
        whole(&waiting),
        "\
volt-netd 0.1.0, process 4711, up 2 h 5 min
interface     tap0 down
endpoint      listening on /run/volt/net0.sock
front-end     none
queue pairs   0 of 2 serving
offered MAC   6a:ef:26:b3:bb:5a
limits        rx none, tx 100Mbit
busy polling  off
sandbox       off
supervised    no
take-overs    1
"
    );
}

#[test]
fn a_migration_is_shown() {
    let mut status = status();
    status.front_end.as_mut().unwrap().dirty_logging = true;
    status.counters[0].counts.extend([("pages_marked".to_owned(), 4711), ("announcements".to_owned(), 1)]);
    let text = whole(&status);
    assert!(text.contains("\ndirty logging  on, 4,711 marks\nannouncements  1\n"), "{text}");
}

/// Front-ends share memory when the guest's driver starts.
#[test]
fn missing_memory_is_a_fault_only_once_the_driver_has_started() {
    let connected = |features: Option<&str>| {
        let mut status = status();
        let front_end = status.front_end.as_mut().unwrap();
        (front_end.memory_regions, front_end.features) = (0, features.map(str::to_owned));
        whole(&status)
            .lines()
            .find_map(|line| line.strip_prefix("front-end     connected, "))
            .unwrap()
            .to_owned()
    };
    assert_eq!(connected(None), "the guest's driver has not started");
    assert_eq!(connected(Some("VERSION_1")), "without memory");
}

#[test]
fn what_moves() {
    let (mut now, seen) = (status(), status());
    now.counters.truncate(1);
    assert_eq!(
        moving(&now, None),
        "\
tap0 up, front-end connected, process 4711, 2 restarts, 1 take-over
pair  way  frames/s  rate  drops/s     frames     bytes  drops
   0  rx          -     -        -  1,234,567   1.2 GiB      5
   0  tx          -     -        -     81,274  39.2 MiB      0
vring 1: no progress
vring 2: broken
"
    );
    // A daemon without a state starts its counters at zero: the transmit side has no rate.
    let counts = &mut now.counters[0].counts;
    for (name, count) in [
        ("rx_frames", 1_396_567),
        ("rx_bytes", 1_524_490_188),
        ("rx_too_long", 4),
        ("tx_frames", 3),
        ("tx_bytes", 336),
    ] {
        counts.insert(name.to_owned(), count);
    }
    now.vrings.clear();
    (now.restarts, now.take_overs, now.front_end) = (0, 0, None);
    assert_eq!(
        moving(&now, Some(&Before { seen, time: Duration::from_secs(2) })),
        "\
tap0 up, no front-end, process 4711
pair  way  frames/s        rate  drops/s     frames    bytes  drops
   0  rx     81,000  936 Mbit/s      0.5  1,396,567  1.4 GiB      6
   0  tx          -           -        0          3    300 B      0
"
    );
}
