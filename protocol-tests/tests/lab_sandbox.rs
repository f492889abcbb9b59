//! volt-vmm's threads may make only the system calls of the published table. The filters in force are read
//! back while a stock Debian guest uses every kind of device, and forbidden calls are made from inside
//! running threads.

use std::collections::BTreeSet;

use protocol_tests::confinement::attack::{assert_denied, function, violate};
use protocol_tests::confinement::filter::assert_as_published;
use protocol_tests::confinement::table::Table;
use protocol_tests::confinement::{Thread, role};
use protocol_tests::daemon::poll_until;
use protocol_tests::lab::guest::{Flavour, Image, Spec, Transport};
use protocol_tests::lab::machine::Machine;
use protocol_tests::lab::netd::{Netd, ip};
use protocol_tests::lab::{PATIENCE, in_lab, program};
use protocol_tests::rig::LIMIT;
use protocol_tests::trace::Traced;

/// Clock source of the lab's kernel.
const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// The guest uses all these devices, pings, and waits to be ended.
const RUN: &str = "for n in 0 1 2; do ip link set eth$n up; ip addr add 10.77.$n.2/24 dev eth$n; \
    (ping -i 0.05 10.77.$n.1 >/dev/null &); done; (while true; do cat /dev/vda; done >/dev/null &); \
    (while true; do head -c 64 /dev/hwrng; done >/dev/null &); \
    until ping -c 1 -W 1 10.77.2.1; do true; done; report serving; sleep 1800";

/// Returns the threads of volt-vmm and its opener, with every kind of device in use.
fn serving(machine: &Machine) -> Vec<Thread> {
    let vmm = machine.guest.id();
    let children = std::fs::read_to_string(format!("/proc/{vmm}/task/{vmm}/children")).expect("its children");
    let opener = children.trim().parse().expect("one child, the opener");
    [vmm, opener]
        .into_iter()
        .flat_map(|process| Thread::of(process, |name| vec![role("volt-vmm", name)]))
        .collect()
}

fn spec(run: &str) -> Spec {
    Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, transport: Transport::Pci, ..Spec::new(run) }
}

/// Each thread is without privilege, and its filters match the table. Each call of an attacker in a thread is
/// denied, and the guest continues; a call not denied by an error ends the process with status 5. The clock
/// source has no vDSO, so programs read it by system calls.
#[test]
fn threads_of_volt_vmm_are_confined() {
    in_lab("threads_of_volt_vmm_are_confined", || {
        std::fs::write(CLOCK, "acpi_pm").expect("another clock");
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &[]);
        for (tap, subnet) in [("k1", 1), ("k2", 2)] {
            ip(&["tuntap", "add", "dev", tap, "mode", "tap"]);
            ip(&["addr", "add", &format!("10.77.{subnet}.1/24"), "dev", tap]);
            ip(&["link", "set", tap, "up"]);
        }
        let disk = directory.path().join("disk.img");
        std::fs::write(&disk, vec![0; 1 << 20]).expect("an image");
        let socket = format!("socket={}", netd.socket.display());
        let nets = [socket.as_str(), "tap=k1", "tap=k2,vhost-net=require"];
        let mut machine = Machine::start(directory.path(), &spec(RUN), &nets);
        machine.guest.wait_for("API at", PATIENCE);
        machine.done(&["add", "disk", disk.to_str().expect("a path of letters")]);
        machine.guest.wait_for("VOLT serving", PATIENCE);

        let table = Table::of(&program("volt-vmm"));
        let threads = serving(&machine);
        for thread in &threads {
            thread.assert_without_privilege();
            let roles: Vec<_> = thread.roles.iter().map(|role| (*role, thread.process)).collect();
            assert_as_published(&table, thread, &roles);
        }
        let seen: BTreeSet<_> = threads.iter().map(|thread| thread.roles[0]).collect();
        assert_eq!(seen, BTreeSet::from_iter(table.roles()), "each role has a thread");

        for thread in threads.iter().filter(|thread| thread.roles != ["opener"]) {
            assert_denied(thread, std::process::id());
        }
        let frames = || {
            let status = machine.devices();
            let tap = status.as_array().expect("a list").iter().find(|device| device["device"] == "net k1");
            tap.expect("it is there")["vrings"].to_string()
        };
        let before = frames();
        assert!(poll_until(LIMIT, || (frames() != before).then_some(())).is_some(), "the guest goes on");

        violate(threads.iter().find(|thread| thread.name == "vcpu1").expect("a vCPU").id);
        assert_eq!(machine.guest.wait_exit(PATIENCE).code(), Some(5));
        let line = format!("sandbox: thread role 'vcpu' made system call {}", libc::SYS_execve);
        assert!(
            machine.guest.output().iter().any(|said| said.contains(&line)),
            "{:?}",
            machine.guest.output()
        );
    });
}

/// A panic in any thread is logged, and ends the process.
#[test]
fn a_panic_is_told_and_ends_volt_vmm() {
    in_lab("a_panic_is_told_and_ends_volt_vmm", || {
        for name in ["volt-vmm", "vcpu1", "serial", "signals", "log", "maker", "api"] {
            let directory = tempfile::tempdir().expect("a directory");
            let mut machine = Machine::start(directory.path(), &spec("report up"), &[]);
            machine.guest.wait_for("kernel /", PATIENCE);
            let threads = poll_until(LIMIT, || {
                let threads = serving(&machine);
                threads.iter().any(|thread| thread.name == name && thread.filters() > 0).then_some(threads)
            });
            let threads = threads.unwrap_or_else(|| panic!("no confined thread called {name}"));
            let thread = threads.iter().find(|thread| thread.name == name).expect(name);
            let traced = Traced::seize(thread.id).expect("a traced thread");
            traced.go_into(function(thread.process, "panic_cannot_unwind")).expect("a stopped thread");
            traced.detach().expect("a stopped thread");
            assert_eq!(machine.guest.wait_exit(PATIENCE).code(), Some(101), "{name}");
            let name = if name == "volt-vmm" { "main" } else { name };
            let told = format!("thread '{name}' panicked at");
            let output = machine.guest.output();
            assert!(output.iter().any(|line| line.contains(&told)), "{output:?}");
        }
    });
}
