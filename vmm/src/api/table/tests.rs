use serde_json::{Value, json};

use super::*;

fn counts(vring: usize, kind: &str, frames: u64) -> Value {
    let bytes = frames * 1000;
    json!({ "vring": vring, "pair": 0, "kind": kind, "frames": frames, "bytes": bytes, "drops": vring })
}

fn status() -> MachineStatus {
    let status = json!({
        "program": "volt-vmm 0.1.0", "pid": 99, "uptime_seconds": 185, "state": "running", "cpus": 2,
        "memory_bytes": 536_870_912,
        "devices": [
            { "device": "disk /srv/root.img", "kind": "disk", "slot": 1, "removing": false,
                "vrings": [{ "vring": 0, "kind": "requests", "requests": 1024, "failed": 1 }] },
            { "device": "rng", "slot": 2, "removing": false },
            { "device": "net tap0", "kind": "net", "guest_mac": "52:54:00:12:34:56", "link_up": true,
                "queue_pairs": 1, "slot": 3, "removing": true,
                "limits": { "rx_rate": "none", "tx_rate": "100Mbit" },
                "vrings": [counts(0, "rx", 1_234_567), counts(1, "tx", 81_274)] },
            { "device": "net /run/net0.sock", "kind": "vhost-user-net", "socket": "/run/net0.sock",
                "guest_mac": "02:00:00:00:00:01", "queue_pairs": 2, "link_up": false, "back_end": "away",
                "losses": 2, "away_seconds": 3.26, "away_now_seconds": 1.04 },
            { "device": "net mv0", "kind": "net", "guest_mac": "02:00:00:00:00:02", "link_up": true,
                "queue_pairs": 1 },
        ],
    });
    let read: MachineStatus = serde_json::from_value(status.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), status, "what is read is all that is there");
    read
}

#[test]
fn all_of_it() {
    assert_eq!(
        whole(&status()),
        "\
volt-vmm 0.1.0, process 99, up 3 min 5 s
state  running
guest  2 CPUs, 512 MiB of memory

slot  device              state
   1  disk /srv/root.img
   2  rng
   3  net tap0            removal requested, link up, MAC 52:54:00:12:34:56, 1 queue pair, \
limits rx none, tx 100Mbit
   -  net /run/net0.sock  link down, back-end away for 1.0 s, MAC 02:00:00:00:00:01, 2 queue pairs, \
was away 2 times, 3.3 s in all
   -  net mv0             link up, MAC 02:00:00:00:00:02, 1 queue pair

device    vring  kind     frames     bytes  drops
net tap0      0  rx    1,234,567   1.1 GiB      0
net tap0      1  tx       81,274  76.6 MiB      1

device              requests  failed
disk /srv/root.img     1,024       1
"
    );
}

#[test]
fn what_moves() {
    let (now, mut seen) = (status(), status());
    seen.devices.remove(0);
    let Some(DeviceDetails::Net(net)) = &mut seen.devices[1].device.details else { panic!("a TAP") };
    let Some(VringStatus::Rx(counts)) = net.traffic.as_mut().and_then(|traffic| traffic.vrings.first_mut())
    else {
        panic!("it has counters")
    };
    (counts.frames, counts.bytes) = (1_134_567, 1_134_567_000);
    assert_eq!(
        moving(&now, Some(&Before { seen, time: Duration::from_secs(10) })),
        "\
running, process 99
device    vring  kind  frames/s       rate  drops/s     frames     bytes  drops
net tap0      0  rx      10,000  79 Mbit/s        0  1,234,567   1.1 GiB      0
net tap0      1  tx           0    0 bit/s        0     81,274  76.6 MiB      1
device              requests/s  failed/s  requests  failed
disk /srv/root.img           -         -     1,024       1
net /run/net0.sock: back-end away
"
    );
}
