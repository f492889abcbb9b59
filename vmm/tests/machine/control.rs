//! The built program asked by `volt-vmm ctl`.

use std::path::Path;
use std::process::{Command, Output};

use crate::guest::{Code, Machine, kvm};

fn ctl(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_volt-vmm"));
    command.args(["ctl", "--api-socket"]).arg(socket).args(arguments).output().unwrap()
}

/// Each time, whoever ends the machine has his answer: it is printed, and the machine has ended in order.
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
