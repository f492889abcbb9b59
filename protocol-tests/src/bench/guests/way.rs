//! The ways of a guest's frames to the wire.

use std::path::Path;
use std::process::Command;

use super::LIMIT;
use crate::far_end::VETH_PEER;
use crate::lab::guest::{Accel, QemuNet, Spec, Transport};
use crate::lab::netd::{TAP, address, ip};
use crate::lab::process::Process;
use crate::lab::program;

/// A VMM and a way to the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    QemuTap,
    QemuVhostNet,
    QemuSocket,
    /// By AF_XDP; the daemon offers segmentation, or not.
    QemuXdp {
        offered: bool,
    },
    VmmSocket(Transport),
    VmmTap(Transport),
    VmmVhostNet(Transport),
}

impl Way {
    pub(super) fn name(self) -> String {
        let vmm = |way, transport: Transport| format!("volt-vmm, {way}, {}", transport.name());
        match self {
            Self::QemuTap => "QEMU, its own TAP device".into(),
            Self::QemuVhostNet => "QEMU, vhost-net on the TAP".into(),
            Self::QemuSocket => "QEMU, volt-netd".into(),
            Self::QemuXdp { offered: true } => "QEMU, volt-netd by AF_XDP".into(),
            Self::QemuXdp { offered: false } => "QEMU, volt-netd by AF_XDP, no TSO".into(),
            Self::VmmSocket(transport) => vmm("volt-netd", transport),
            Self::VmmTap(transport) => vmm("TAP in its process", transport),
            Self::VmmVhostNet(transport) => vmm("vhost-net on the TAP", transport),
        }
    }

    /// Returns the ways that need no KVM.
    pub(super) fn emulated() -> Vec<Way> {
        let xdp = [true, false].map(|offered| Self::QemuXdp { offered });
        [Self::QemuTap, Self::QemuSocket].into_iter().chain(xdp).collect()
    }

    /// Makes the host's side: an interface with its address.
    pub(super) fn add_interface(self, several: bool) {
        if matches!(self, Self::QemuXdp { .. }) {
            ip(&["link", "add", TAP, "type", "veth", "peer", "name", VETH_PEER]);
            ip(&["link", "set", TAP, "up"]);
            address(VETH_PEER);
            // Frames to AF_XDP have no header that could ask for checksums.
            let set = Command::new("ethtool").args(["-K", VETH_PEER, "tx", "off"]).output().expect("ethtool");
            assert!(set.status.success(), "{set:?}");
            return;
        }
        let several = several.then_some("multi_queue");
        ip(&[&["tuntap", "add", TAP, "mode", "tap"][..], several.as_slice()].concat());
        address(TAP);
    }

    /// Returns all ways that need only what the lab has.
    pub(super) fn all() -> Vec<Way> {
        let vmm = [Self::VmmSocket, Self::VmmTap, Self::VmmVhostNet].into_iter();
        let vmm = vmm.flat_map(|way| [Transport::Mmio, Transport::Pci].map(way));
        [Self::QemuTap, Self::QemuVhostNet, Self::QemuSocket].into_iter().chain(vmm).collect()
    }

    /// Returns the way through vhost-net with the same VMM and transport.
    pub(super) fn vhost_net(self) -> Way {
        match self {
            Self::QemuTap | Self::QemuVhostNet | Self::QemuSocket | Self::QemuXdp { .. } => {
                Self::QemuVhostNet
            }
            Self::VmmSocket(transport) | Self::VmmTap(transport) | Self::VmmVhostNet(transport) => {
                Self::VmmVhostNet(transport)
            }
        }
    }

    /// Starts the guest, and before it a volt-netd with further `options` if this way uses one.
    pub(super) fn start(
        self,
        spec: &Spec,
        directory: &Path,
        accel: Accel,
        queues: u16,
        options: &str,
    ) -> (Option<Process>, Process) {
        let socket = directory.join("net.sock");
        let by = match self {
            Self::QemuSocket | Self::VmmSocket(_) => Some("--tap"),
            Self::QemuXdp { .. } => Some("--xdp"),
            _ => None,
        };
        let netd = by.map(|by| {
            let mut command = Command::new(program("volt-netd"));
            command.args(["--queues", &queues.to_string(), by, TAP, "--socket"]).arg(&socket);
            let mut netd = Process::start("volt-netd", command.args(options.split_whitespace()));
            netd.wait_for("listening on", LIMIT);
            netd
        });
        // Emulated QEMU 7.2 crashes with MSI-X and vhost-user; for a fair comparison its own device has none
        // either.
        let properties = if accel == Accel::Tcg { "vectors=0" } else { "vectors=3" }.to_owned();
        let tap = |vhost| QemuNet::Tap { name: TAP.into(), vhost, properties: properties.clone() };
        let vmm = |transport, net: String| Spec { transport, ..spec.clone() }.vmm_net(&[&net]);
        let mut command = match self {
            Self::QemuTap => spec.qemu(accel, &tap(false)),
            Self::QemuVhostNet => spec.qemu(accel, &tap(true)),
            Self::QemuSocket | Self::QemuXdp { offered: true } => {
                spec.qemu(accel, &QemuNet::VhostUser { socket, pairs: 1, properties })
            }
            Self::QemuXdp { offered: false } => {
                let properties = format!("{properties},host_tso4=off,host_tso6=off,host_ufo=off");
                spec.qemu(accel, &QemuNet::VhostUser { socket, pairs: 1, properties })
            }
            Self::VmmSocket(transport) => Spec { transport, ..spec.clone() }.vmm(&socket, queues),
            Self::VmmTap(transport) => vmm(transport, format!("tap={TAP},queues={queues}")),
            Self::VmmVhostNet(transport) => {
                vmm(transport, format!("tap={TAP},queues={queues},vhost-net=require"))
            }
        };
        (netd, Process::start("the guest", &mut command))
    }
}
