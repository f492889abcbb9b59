//! `volt-netd check` reports the abilities of a host, before anything is served.

use std::process::Stdio;

use protocol_tests::daemon::program;
use protocol_tests::rig::namespace;
use serde_json::Value;

/// `check` reports what can be served with a host and an interface, and what a missing ability costs.
#[test]
fn check_says_what_the_host_gives() {
    let Some(netns) = namespace("check_says_what_the_host_gives") else { return };
    netns.ip("tuntap add dev tap0 mode tap user nobody").expect("a TAP");
    netns.add_tap("tap1", true).expect("a TAP");
    let netd = program("volt-netd");
    let check = |before: &[&str], tap: &str| {
        // /sys shows the network namespace of the process that mounted it.
        let mut command = netns.command("unshare");
        command.args(["--mount", "sh", "-c", "mount -t sysfs none /sys && exec \"$@\"", "sh"]).args(before);
        command.arg(&netd).args(["check", "--format", "json", "--tap", tap]).stdout(Stdio::piped());
        let output = command.output().expect("volt-netd");
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let given = |what: &str| {
            let finding = found.as_array().expect("a list").iter().find(|finding| finding["what"] == what);
            let finding = finding.unwrap_or_else(|| panic!("nothing about {what}: {found:#}"));
            [&finding["given"], &finding["says"]].map(|text| text.as_str().expect("text").to_owned())
        };
        (output.status.code(), given("CAP_NET_ADMIN"), given(tap), given("seccomp"), given("offloads"))
    };
    let (status, admin, one, seccomp, offloads) = check(&[], "tap0");
    assert_eq!((status, admin[0].as_str(), seccomp[0].as_str()), (Some(0), "yes", "yes"));
    assert!(one[0] == "yes" && one[1].contains("one queue pair"), "{one:?}");
    assert!(offloads[1].contains("TCP segmentation"), "{offloads:?}");
    assert!(check(&[], "tap1").2[1].contains("any number of queues"));
    let (status, _, missing, ..) = check(&[], "tap2");
    assert!(status == Some(1) && missing[1].contains("ip tuntap add dev tap2"), "{missing:?}");
    let (status, _, other, ..) = check(&[], "lo");
    assert!(status == Some(1) && other[1].contains("not a TAP interface"), "{other:?}");
    let without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];
    let (status, admin, foreign, ..) = check(&without, "tap0");
    assert_eq!((status, admin[0].as_str()), (Some(1), "partly"));
    assert!(foreign[1].contains("belongs to another user"), "{foreign:?}");
    assert_eq!(check(&without, "tap1").0, Some(0), "it belongs to nobody");
}
