//! Checks of the installed files besides the programs (net-daemon/package) without installing them;
//! scripts/soak --packages installs them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use protocol_tests::daemon::program;
use protocol_tests::lab::repository;
use serde_json::Value;

fn installed(path: &str) -> PathBuf {
    repository().join("net-daemon/package").join(path)
}

/// Returns `systemd-analyze`, or `None` after printing why the test is skipped.
fn systemd_analyze(test: &str, arguments: &[&str]) -> Option<Command> {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments);
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("SKIP {test}: systemd-analyze is missing: install the package systemd");
        return None;
    }
    Some(command)
}

/// The units of two instances, with the program of this workspace.
#[test]
fn units_are_accepted() {
    let Some(mut verify) = systemd_analyze("units_are_accepted", &["verify", "--man=no"]) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    for kind in ["service", "socket"] {
        let unit = installed("usr/lib/systemd/system").join(format!("volt-netd@.{kind}"));
        let text = fs::read_to_string(unit).expect("a unit");
        let text = text.replace("/usr/bin/volt-netd", program("volt-netd").to_str().expect("a path"));
        fs::write(directory.path().join(format!("volt-netd@.{kind}")), text).expect("a copy");
        for instance in ["tap0", "vm-tap1"] {
            verify.arg(directory.path().join(format!("volt-netd@{instance}.{kind}")));
        }
    }
    let output = verify.output().expect("systemd-analyze");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("volt-netd"), "{output:?}");
}

/// The exposure is at most 1.5 of the 10 of an unconfined service.
#[test]
fn the_service_is_confined() {
    let arguments = ["security", "--offline=true", "--no-pager", "--threshold=15"];
    let Some(mut security) = systemd_analyze("the_service_is_confined", &arguments) else { return };
    let unit = installed("usr/lib/systemd/system/volt-netd@.service");
    let output = security.arg(unit).output().expect("systemd-analyze");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{}", said.lines().last().unwrap_or_default());
}

/// QEMU's documents: "Backend program conventions", and interop/vhost-user.json.
#[test]
fn the_descriptor_file_is_of_the_program() {
    let text = fs::read_to_string(installed("usr/share/qemu/vhost-user/50-volt-netd.json")).expect("a file");
    let file: Value = serde_json::from_str(&text).expect("JSON");
    let keys: Vec<_> = file.as_object().expect("an object").keys().map(String::as_str).collect();
    assert!(keys.iter().all(|key| ["binary", "description", "tags", "type"].contains(key)), "{keys:?}");
    assert!(file["description"].is_string() && file["binary"] == "/usr/bin/volt-netd");
    let output = Command::new(program("volt-netd")).arg("--print-capabilities").output().expect("volt-netd");
    let capabilities: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(file["type"], capabilities["type"]);
}

/// The installed examples name the unit's user, and existing options of the program.
#[test]
fn examples_fit_the_unit() {
    let read = |path: &str| fs::read_to_string(installed(path)).expect(path);
    let examples = "usr/share/doc/volt-netd/examples";
    let unit = read("usr/lib/systemd/system/volt-netd@.service");
    assert!(unit.contains("\nUser=volt-netd\n"));
    assert!(read(&format!("{examples}/systemd-networkd/50-tap0.netdev")).contains("\nUser=volt-netd\n"));
    assert!(read("usr/lib/sysusers.d/volt-netd.conf").starts_with("u volt-netd "));
    let config = installed(&format!("{examples}/tap0.conf"));
    let mut command = Command::new(program("volt-netd"));
    command.args(["--tap", "none", "--fd", "999", "--config"]).arg(config);
    let output = command.output().expect("volt-netd");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("descriptor 999 is not open"), "{said}");
}
