//! The built program, controlled by `volt-vmm ctl`.

use std::path::Path;
use std::process::{Command, Output};

use crate::guest::{Code, Machine, kvm};

fn ctl(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_volt-vmm"));
    command.args(["ctl", "--api-socket"]).arg(socket).args(arguments).output().unwrap()
}

/// A client that ends the machine gets its answer each time, and the machine ends in order.
#[test]
fn a_shutdown_is_answered() {
    if !kvm("a_shutdown_is_answered") {
        return;
    }
    for round in 0..20 {
        let machine = Machine::new(&Code::new().print("up").halt().bzimage());
        let socket = machine.path("api");
        let mut machine = machine.args(&["--api-socket", socket.to_str().unwrap()]).spawn();
        machine.expect("up");
        let answer = ctl(&socket, &["shutdown"]);
        assert_eq!((answer.status.code(), &*answer.stdout), (Some(0), &b"{}\n"[..]), "{round}: {answer:?}");
        let end = machine.wait();
        assert_eq!(end.status.code(), Some(0), "{end:?}");
        let late = ctl(&socket, &["status"]);
        assert!(String::from_utf8_lossy(&late.stderr).contains("no machine answers"), "{late:?}");
    }
}

/// The status as a table, as JSON, and a watch that ends with the machine.
#[test]
fn a_machine_is_shown_until_it_ends() {
    if !kvm("a_machine_is_shown_until_it_ends") {
        return;
    }
    let machine = Machine::new(&Code::new().print("up").halt().bzimage());
    let socket = machine.path("api");
    let mut machine = machine.args(&["--api-socket", socket.to_str().unwrap()]).spawn();
    machine.expect("up");
    let table = String::from_utf8(ctl(&socket, &["status"]).stdout).unwrap();
    assert!(table.starts_with("volt-vmm ") && table.contains("\nstate  running\n"), "{table}");
    let json = ctl(&socket, &["status", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&json["state"], &json["cpus"]), (&"running".into(), &1.into()));
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| ctl(&socket, &["status", "--watch", "0.1"]));
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(ctl(&socket, &["shutdown"]).status.success());
        let watch = watch.join().unwrap();
        assert_eq!(watch.status.code(), Some(1), "{watch:?}");
        let blocks = String::from_utf8(watch.stdout).unwrap();
        assert!(blocks.split("\n\n").filter(|block| block.contains("Z  running, process ")).count() > 1);
        assert!(String::from_utf8_lossy(&watch.stderr).contains("no machine answers"));
    });
    assert_eq!(machine.wait().status.code(), Some(0));
}
