use volt_http::Method;
use volt_net::port::peer_options::PeerOptions;

use super::*;
use crate::config::{NetPortConfig, NetSocketConfig, PortKind};

fn config(args: &[&str]) -> VmConfig {
    let args = ["volt-vmm", "--kernel", "k"].iter().chain(args).map(OsString::from);
    match parse(args).unwrap() {
        Invocation::Run(args) => args.into_config(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_running_machine_can_be_asked() {
    for args in [["ctl", "--api-socket", "s", "status"], ["ctl", "status", "--api-socket", "s"]] {
        match parse(["volt-vmm"].iter().chain(&args).map(OsString::from)).unwrap() {
            Invocation::Ctl(ctl) => {
                let status = CtlCommand::Status(StatusOptions { json: false, watch: None });
                assert_eq!((ctl.api_socket, ctl.command), ("s".into(), status));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(config(&["--api-socket", "s"]).api_socket, Some("s".into()));
}

/// A usage line can be typed as it is printed.
#[test]
fn usage_names_the_program() {
    for args in [
        &["ctl"][..],
        &["ctl", "frob"],
        &["ctl", "--help"],
        &["ctl", "add", "net"],
        &["check", "--frob"],
        &["--frob"],
        &["--help"],
    ] {
        let error = parse(["volt-vmm"].iter().chain(args).map(OsString::from)).unwrap_err().to_string();
        assert!(error.contains("Usage: volt-vmm "), "{error}");
    }
}

/// A reader of `--help` finds the subcommands.
#[test]
fn help_lists_the_commands() {
    for (args, commands) in [
        (&["--help"][..], &["  ctl ", "  check "][..]),
        (&["ctl", "--help"], &["  status ", "  shutdown "]),
        (&["ctl", "add", "--help"], &["  net ", "  disk "]),
    ] {
        let help = parse(["volt-vmm"].iter().chain(args).map(OsString::from)).unwrap_err().to_string();
        let (_, listed) = help.split_once("Commands:\n").expect("a list of commands");
        assert!(commands.iter().all(|command| listed.contains(command)), "{help}");
    }
}

fn refused(args: &[&str]) -> String {
    let args = ["volt-vmm", "--kernel", "k"].iter().chain(args).map(OsString::from);
    let error = parse(args).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn a_kernel_is_enough() {
    let config = config(&[]);
    assert_eq!((config.memory, config.cpus, config.serial), (512 << 20, 1, SerialConfig::Stdio));
    assert_eq!(config.cmdline, "console=ttyS0 reboot=k panic=-1");
    assert!(config.disks.is_empty() && config.nets.is_empty());
}

#[test]
fn the_users_parameters_win() {
    assert_eq!(config(&["--cmdline", " quiet panic=5"]).cmdline, "console=ttyS0 reboot=k quiet panic=5");
    assert_eq!(config(&["--serial", "none"]).cmdline, "reboot=k panic=-1");
    let with_root = |more: &[&str]| {
        let args: Vec<_> =
            ["--cmdline", "console=hvc0 reboot=t panic=1"].iter().chain(more).copied().collect();
        config(&args).cmdline
    };
    assert_eq!(with_root(&["--rootfs", "r"]), "root=/dev/vda rw console=hvc0 reboot=t panic=1");
    assert_eq!(with_root(&["--rootfs", "r,ro"]), "root=/dev/vda ro console=hvc0 reboot=t panic=1");
    assert_eq!(
        config(&["--rootfs", "r", "--cmdline", "root=/dev/vdb"]).cmdline,
        "console=ttyS0 reboot=k panic=-1 root=/dev/vdb"
    );
}

#[test]
fn the_root_file_system_is_the_first_disk() {
    let disks = config(&["--disk", "a,ro", "--rootfs", "r", "--disk", "b"]).disks;
    let disks: Vec<_> = disks.iter().map(|d| (d.path.to_str().unwrap(), d.read_only)).collect();
    assert_eq!(disks, [("r", false), ("a", true), ("b", false)]);
}

#[test]
fn a_disk_may_be_said_to_be_raw() {
    let raw = |option: &str| config(&["--disk", option]).disks[0].raw;
    assert_eq!(["a", "a,ro", "a,format=raw,ro"].map(raw), [false, false, true]);
}

#[test]
fn network_sockets_have_options() {
    let nets = config(&[
        "--net-socket",
        "/run/a,mac=52:54:00:12:34:56,mtu=9000,queues=4,link-down-after=3",
        "--net-socket",
        "/run/b",
        "--net-timeout",
        "5",
    ])
    .nets;
    let nets: Vec<_> = nets.iter().map(socket).collect();
    assert_eq!(nets[0].mac.unwrap().to_string(), "52:54:00:12:34:56");
    assert_eq!((nets[0].mtu, nets[0].queues, nets[0].timeout), (Some(9000), 4, Some(Duration::from_secs(5))));
    assert_eq!(nets[0].link_down_after, Some(Duration::from_secs(3)));
    assert_eq!(nets[1].link_down_after, None);
    assert_eq!((nets[1].mac, nets[1].mtu, nets[1].queues), (None, None, 1));
}

fn socket(net: &NetDeviceConfig) -> &NetSocketConfig {
    match net {
        NetDeviceConfig::Socket(net) => net,
        other => panic!("{other:?}"),
    }
}

fn port(net: &NetDeviceConfig) -> &NetPortConfig {
    match net {
        NetDeviceConfig::Port(net) => net,
        other => panic!("{other:?}"),
    }
}

#[test]
fn interfaces_of_all_kinds_go_together() {
    let nets = config(&[
        "--net-socket",
        "/run/b",
        "--tap",
        "tap1,mtu=1400",
        "--mac",
        "52:54:00:12:34:56",
        "--net",
        "socket=/run/a,queues=2",
        "--net",
        "tap=tap0,queues=4,mac=02:00:00:00:00:01",
        "--net",
        "macvtap=mv0,vhost-net=require",
        "--vhost-net",
    ])
    .nets;
    assert_eq!(socket(&nets[0]).socket.to_str(), Some("/run/b"));
    assert_eq!((port(&nets[1]).name.as_str(), port(&nets[1]).mtu), ("tap1", Some(1400)));
    assert_eq!(port(&nets[1]).mac.unwrap().to_string(), "52:54:00:12:34:56");
    assert_eq!((port(&nets[1]).vhost_net, port(&nets[3]).vhost_net), (VhostNet::On, VhostNet::Off));
    assert_eq!((socket(&nets[2]).socket.to_str(), socket(&nets[2]).queues), (Some("/run/a"), 2));
    assert_eq!((port(&nets[3]).name.as_str(), port(&nets[3]).queues), ("tap0", 4));
    assert_eq!(
        (port(&nets[4]).kind.clone(), port(&nets[4]).vhost_net),
        (PortKind::Macvtap, VhostNet::Require)
    );
}

#[test]
fn peers_have_options_of_their_own() {
    let nets = config(&[
        "--net",
        "stream=/run/p,mac=02:00:00:00:00:01,listen,mtu=1400",
        "--net",
        "dgram=/run/d,local=/run/l,vfkit,guard=on,guest-ip=192.0.2.10",
    ])
    .nets;
    let PortKind::Peer(PeerOptions::Stream(stream)) = &port(&nets[0]).kind else { panic!() };
    assert!(stream.listen && port(&nets[0]).mtu == Some(1400) && nets[0].name() == "/run/p");
    let PortKind::Peer(PeerOptions::Datagram(datagram)) = &port(&nets[1]).kind else { panic!() };
    assert!(datagram.vfkit && datagram.local.to_str() == Some("/run/l") && port(&nets[1]).guard.is_some());
}

/// The guest finds its devices in the order of the command line, for every order of the three options.
#[test]
fn devices_keep_the_order_of_the_command_line() {
    let options =
        [["--net", "tap=a"], ["--tap", "b"], ["--net-socket", "c"], ["--net=macvtap=d", "--net-socket=e"]];
    for [x, y, z, w] in [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 1, 0], [3, 2, 0, 1], [2, 1, 0, 3], [1, 3, 2, 0]] {
        let order = [options[x], options[y], options[z], options[w]];
        let names: Vec<_> = config(order.as_flattened()).nets.iter().map(NetDeviceConfig::name).collect();
        let expected: Vec<_> =
            [x, y, z, w].iter().flat_map(|at| [&["a"][..], &["b"], &["c"], &["d", "e"]][*at]).collect();
        assert!(names.iter().eq(expected), "{order:?}: {names:?}");
    }
}

#[test]
fn wrong_values_are_named_with_what_would_be_right() {
    for (args, expected) in [
        (["--mem", "lots"], "'lots' is not a size"),
        (["--mem", "+512M"], "'+512M' is not a size"),
        (["--mem", "1.5G"], "'1.5G' is not a size"),
        (["--mem", "99999999999G"], "is not a size"),
        (["--mem", "M"], "is not a size"),
        (["--mem", "512"], "at least 16M"),
        (["--mem", "16777217"], "multiple of 4K"),
        (["--cpus", "0"], "1..=254"),
        (["--cpus", "255"], "1..=254"),
        (["--disk", "a,readonly"], "unknown option 'readonly'"),
        (["--disk", ",ro"], "no file is named"),
        (["--disk", "a,format=qcow2"], "supports only raw disks"),
        (["--net-socket", "s,mac=1"], "'1' is not a MAC address"),
        (["--net-socket", "s,mac=01:00:00:00:00:00"], "multicast"),
        (["--net-socket", "s,mtu=67"], "mtu=67"),
        (["--net-socket", "s,queues=0"], "queues=0"),
        (["--net-socket", "s,queues=128"], "queues=128 is not a number from 1 to 127"),
        (["--net", "stream=p,connect"], "unknown option 'connect'"),
        (["--net", "stream=p,queues=2"], "one queue pair"),
        (["--net", "stream=p,vhost-net=on"], "moves no frames"),
        (["--net", "dgram=p,vfkit"], "local=PATH"),
        (["--net", "dgram=p,local=p"], "must differ"),
        (["--net", "tap=t,queues=65536"], "queues=65536 is not a number from 1 to 127"),
        (["--net-socket", "s,queues=2,queues=3"], "given twice"),
        (["--net-socket", "s,link-down-after=soon"], "link-down-after=soon"),
        (["--net-socket", "s,fast"], "unknown option 'fast'"),
        (["--net", "tap0"], "begin with tap=NAME"),
        (["--net", "tap="], "no interface or socket is named"),
        (["--net", "tap=t,link-down-after=1"], "link-down-after= cannot be combined with tap="),
        (["--net", "tap=t,vhost-net=yes"], "vhost-net=yes is not one of"),
        (["--net", "socket=s,vhost-net=on"], "vhost-net= cannot be combined with socket="),
        (["--net", "tap=t,rx-rate=100M"], "'100M' is not a rate"),
        (["--net", "tap=t,rx-rate=1Gbit,vhost-net=on"], "rx-rate= cannot be combined with vhost-net="),
        (["--net", "socket=s,tx-rate=1Gbit"], "volt-netd --rx-rate"),
        (["--net", "socket=s,guard=on,guest-ip=192.0.2.1"], "use volt-netd's --guard"),
        (["--net", "tap=t,guard=on"], "add guest-ip="),
        (["--net", "tap=t,guest-ip=192.0.2.1"], "no effect without guard=on"),
        (["--net", "tap=t,guard=yes"], "guard=yes is not one of"),
        (["--net", "tap=t,guard=on,guest-ip=ff02::1"], "guest-ip=ff02::1 is not 1 to 8 addresses"),
        (
            ["--net", "tap=t,guard=on,guest-ip=192.0.2.1,vhost-net=on"],
            "guard= cannot be combined with vhost-net=",
        ),
        (["--mac", "52:54:00:12:34:56"], "--tap"),
        (["--serial", "pty"], "not one of stdio, none and file=PATH"),
        (["--serial", "file="], "not one of stdio"),
        (["--log-level", "loud"], "loud"),
    ] {
        let text = refused(&args);
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}

/// `ctl` sends the options of an added device unchanged. A removed device may be named by a path.
#[test]
fn devices_are_added_and_removed_by_ctl() {
    let request = |args: &[&str]| {
        let args = ["volt-vmm", "ctl"].iter().chain(args).map(OsString::from);
        match parse(args) {
            Ok(Invocation::Ctl(Ctl { command, .. })) => (command.method(), command.path(), command.body()),
            other => panic!("{other:?}"),
        }
    };
    let options = |options: &str| Some(serde_json::json!({ "options": options }));
    let added = request(&["add", "net", "tap=tap1,mtu=9000"]);
    assert_eq!(added, (Method::POST, "/v1/net".to_owned(), options("tap=tap1,mtu=9000")));
    let added = request(&["add", "disk", "/srv/a.img,ro"]);
    assert_eq!(added, (Method::POST, "/v1/disk".to_owned(), options("/srv/a.img,ro")));
    assert_eq!(request(&["remove", "net", "tap1"]), (Method::DELETE, "/v1/net/tap1".to_owned(), None));
    let removed = request(&["remove", "disk", "/srv/a.img"]);
    assert_eq!(removed, (Method::DELETE, "/v1/disk/%2Fsrv%2Fa%2Eimg".to_owned(), None));
    let limited = request(&["limits", "/run/a#1", "--rx-rate", "1Mbit"]).1;
    assert_eq!(limited, "/v1/net/%2Frun%2Fa%231/limits");
    let net = |options: &str| options.parse::<NetDeviceConfig>().unwrap().name();
    assert_eq!([net("tap=tap1"), net("socket=/run/s,mtu=9000")], ["tap1", "/run/s"]);
    assert!("a.img,ro".parse::<DiskConfig>().unwrap().read_only);
}

#[test]
fn transports_have_names() {
    assert_eq!((config(&[]).transport, Transport::default()), (Transport::Pci, Transport::Pci));
    assert_eq!(config(&["--transport", "pci"]).transport, Transport::Pci);
    assert_eq!(config(&["--transport", "mmio"]).transport, Transport::Mmio);
    assert!(refused(&["--transport", "ccw"]).contains("'ccw' is neither pci nor mmio"));
}
