//! Adding and removing devices by the API, on the PCI bus of a virtual machine without a guest. A thread
//! releases the devices in the guest's place.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use kvm_ioctls::{Kvm, VmFd};
use serde_json::{Value, json};
use volt_http::Method;

use super::client::{CtlError, ask};
use super::*;
use crate::board::bus::{Bus, BusDevice};
use crate::board::exit::ExitEvent;
use crate::board::irq::LevelLine;
use crate::board::pause_gate::PauseGate;
use crate::cli::{AddCommand, CtlCommand, KindArg};
use crate::machine::devices::Devices;
use crate::machine::pause::Pause;
use crate::machine::power::PowerButton;
use crate::pci::hotplug::{HotplugEvents, HotplugRegisters};
use crate::virtio::maker::Maker;
use crate::virtio::net::vhost_user::scripted::{End, serve};
use crate::virtio::pci::slots::PciSlots;
use crate::virtio::testing::memory;

pub(super) struct Rig {
    devices: Arc<Devices>,
    _guest: Guest,
    _api: Api,
    pub(super) socket: PathBuf,
    pub(super) dir: tempfile::TempDir,
}

impl Rig {
    fn ctl(&self, request: &CtlCommand) -> Result<Value, CtlError> {
        ask(&self.socket, request.method(), &request.path(), request.body().as_ref())
    }

    fn names(&self) -> Vec<String> {
        let names = self.devices.status().into_iter().map(|listed| listed.device.device);
        names.collect()
    }
}

/// Plays the guest's part in a removal, until it is dropped.
struct Guest {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    fn start(mut registers: HotplugRegisters) -> Guest {
        let end = Arc::<AtomicBool>::default();
        let ended = end.clone();
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let mut wanted = [0; 4];
                registers.read(4, &mut wanted);
                registers.write(8, &wanted);
                thread::sleep(Duration::from_millis(1));
            }
        });
        Guest { end, thread: Some(thread) }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn vm(test: &str) -> Option<Arc<VmFd>> {
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm());
    let vm = vm.and_then(|vm| vm.create_irq_chip().map(|()| vm));
    vm.map_err(|error| eprintln!("SKIP {test}: /dev/kvm: {error}")).ok().map(Arc::new)
}

pub(super) fn rig(test: &str) -> Option<Rig> {
    rig_with_limit(test, WORK_LIMIT)
}

fn rig_with_limit(test: &str, limit: Duration) -> Option<Rig> {
    let slots = PciSlots::new(vm(test)?, memory(), Arc::new(Bus::new()));
    let line = || LevelLine::new(|_| {});
    let events = Arc::new(HotplugEvents::new(line()));
    let devices = Arc::new(Devices::on_pci(slots, events.clone(), Maker::start().unwrap()));
    let ejecting = devices.clone();
    let guest = Guest::start(HotplugRegisters::new(events, Box::new(move |slot| ejecting.ejected(slot))));
    let (exit, gate) = (Arc::new(ExitEvent::new().unwrap()), Arc::<PauseGate>::default());
    let pause = Pause::new(gate.clone(), devices.clone());
    let (started, power_button) = (Instant::now(), Arc::new(PowerButton::new(line())));
    let machine = Arc::new(MachineHandle {
        cpus: 1,
        memory: 1,
        started,
        devices: devices.clone(),
        gate,
        exit,
        pause,
        power_button,
    });
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let api = Api::with_limit(ApiSocket::bind(&socket).unwrap(), machine, limit).unwrap();
    Some(Rig { devices, _guest: guest, _api: api, socket, dir })
}

fn disk(path: &Path) -> String {
    path.display().to_string()
}

/// `ctl` removes the device that it names, not one whose name is a part of it. An unencoded path works, too.
#[test]
fn the_device_of_a_name_goes_and_no_other() {
    let Some(rig) = rig("the_device_of_a_name_goes_and_no_other") else { return };
    let names = ["data", "data#1", "data?1", "data%31", "data 1", "d\u{e9}t\u{1f980}"];
    let paths = names.map(|name| rig.dir.path().join(name));
    for path in &paths {
        std::fs::write(path, [0; 512]).unwrap();
        rig.ctl(&CtlCommand::Add { what: AddCommand::Disk { options: disk(path) } }).unwrap();
    }
    for (at, path) in paths.iter().enumerate().rev() {
        match at {
            0 => ask(&rig.socket, Method::DELETE, &format!("/v1/disk/{}", disk(path)), None).unwrap(),
            _ => rig.ctl(&CtlCommand::Remove { kind: KindArg::Disk, name: disk(path) }).unwrap(),
        };
        let left: Vec<_> = paths[..at].iter().map(|path| format!("disk {}", disk(path))).collect();
        assert_eq!(rig.names(), left);
    }
    let odd = json!({ "options": "/nowhere#1,ro" });
    assert!(
        ask(&rig.socket, Method::POST, "/v1/disk", Some(&odd))
            .unwrap_err()
            .to_string()
            .contains("/nowhere#1")
    );
}

/// A back-end may answer after its client was told that the request takes too long. The device is closed
/// again, and never visible.
#[test]
fn a_device_that_is_opened_too_late_is_not_added() {
    const NAME: &str = "a_device_that_is_opened_too_late_is_not_added";
    let Some(rig) = rig_with_limit(NAME, Duration::from_millis(100)) else { return };
    let path = rig.dir.path().join("back-end");
    let listener = UnixListener::bind(&path).unwrap();
    let options = format!("socket={}", path.display());
    let why = rig.ctl(&CtlCommand::Add { what: AddCommand::Net { options } }).unwrap_err().to_string();
    assert!(why.contains("adding a network device takes more than 0.1 s: nothing is added"), "{why}");
    // Answers all requests that a device makes before it is added, and sees the end of the connection.
    let told = serve(&listener, 1, End::Theirs);
    assert!(told.len() > 1, "{told:?}");
    assert!(rig.names().is_empty());
}
