//! A real systemd, as the first process of separate namespaces: for units, their sockets, directories and
//! descriptor stores.
//!
//! It has only the units that it is given, its own `/run` and its own control group. It cannot change `/etc`
//! or the kernel's settings. volt-netd is [`NETD`] there, and the user and group of its units exist. It ends
//! with the [`Systemd`], or with the test's thread.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::daemon::{Daemon, child, poll_until, program};
use crate::netns::Netns;
use crate::rig::LIMIT;

const PROGRAM: &str = "/lib/systemd/systemd";
/// Path of volt-netd: visible to the units, whatever else they hide.
pub const NETD: &str = "/run/volt-netd";
/// User ID of `volt-netd` there.
pub const USER: u32 = 61_077;
/// Enters a separate control group ($1, below the mount point $2) and new namespaces. Before that, it enters
/// a namespace for the mount.
const ENTER: &str = "mount -t cgroup2 none $2 || exit 77; mkdir $2/$1 && echo $$ >$2/$1/cgroup.procs && exec \
    unshare --mount --pid --fork --kill-child --cgroup --ipc --uts sh -ec \"$3\" boot \"$4\" \"$5\" \"$6\"";
/// Boots in those namespaces: the program $2, volt-netd $3, and units and accounts in $1.
const BOOT: &str = "
    mount -t proc proc /proc
    for read_only in /proc/sys /etc; do
        mount --bind $read_only $read_only
        mount -o remount,bind,ro $read_only
    done
    for accounts in passwd group; do mount --bind $1/$accounts /etc/$accounts; done
    mount -t tmpfs none /run
    cp $3 /run/volt-netd
    # For everybody, as udev has it.
    mknod -m 666 /run/tun c 10 200
    mount --bind /run/tun /dev/net/tun
    mount -t sysfs none /sys
    mount -t tmpfs none /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=volt-test SYSTEMD_UNIT_PATH=$1/units \
        SYSTEMD_GENERATOR_PATH=/run/none \
        setpriv --bounding-set=-sys_time,-sys_module $2 --system --unit=volt-test.target \
        --log-target=console --show-status=0";
/// Removes the control group $1 and all groups in it, when no process is in it any more.
const CLEAN: &str =
    "mount -t cgroup2 none $2 && [ ! -e $2/$1 ] || find $2/$1 -depth -type d -exec rmdir {} +";

/// A running systemd.
#[derive(Debug)]
pub struct Systemd {
    /// The process that ends it, with its output.
    daemon: Daemon,
    pid: i32,
    group: String,
    /// Its units and their output.
    dir: tempfile::TempDir,
}

impl Systemd {
    /// Starts it in `netns` with these units (file name, text), which have only their own dependencies, and
    /// write to [`Systemd::log`]. The error `Unsupported` names what the machine does not allow.
    pub fn start(netns: &Netns, units: &[(String, String)]) -> io::Result<Systemd> {
        let unsupported = |why: &str| io::Error::new(io::ErrorKind::Unsupported, why);
        if !rustix::process::geteuid().is_root() || !Path::new(PROGRAM).exists() {
            return Err(unsupported("root and the package systemd are needed"));
        }
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        for (name, text) in units {
            let path = dir.path().join("units").join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(path, text)?;
        }
        let drop_in = |unit: &str, text: &str| {
            let dir = dir.path().join("units").join(unit);
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("test.conf"), text)
        };
        // Lets units start as often as the test wants.
        let independent = "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n";
        drop_in("socket.d", independent)?;
        drop_in("service.d", &format!("{independent}[Service]\nStandardError=append:{}\n", log.display()))?;
        std::fs::write(dir.path().join("units/volt-test.target"), independent)?;
        std::fs::create_dir(dir.path().join("cgroup"))?;
        let accounts = |file: &str, more: &str| {
            let known = std::fs::read_to_string(Path::new("/etc").join(file))?;
            std::fs::write(dir.path().join(file), format!("{}\n{more}", known.trim_end()))
        };
        accounts("passwd", &format!("volt-netd:x:{USER}:{USER}::/:/usr/sbin/nologin\n"))?;
        accounts("group", &format!("volt-netd:x:{USER}:\nkvm:x:{}:\n", USER + 1))?;

        let group = format!(
            "volt-test-{}-{}",
            std::process::id(),
            dir.path().display().to_string().replace('/', "-")
        );
        let mut command = netns.command("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            ENTER,
            "enter",
        ]);
        command
            .arg(&group)
            .arg(dir.path().join("cgroup"))
            .arg(BOOT)
            .arg(dir.path())
            .arg(PROGRAM)
            .arg(program("volt-netd"));
        let mut systemd = Systemd { daemon: Daemon::start(command)?, pid: 0, group, dir };
        let up = |daemon: &mut Daemon| {
            let pid = child(daemon.pid()).map_or(0, |pid| pid.as_raw_nonzero().get());
            // Its own root, seen from outside.
            let root = Path::new("/proc").join(pid.to_string()).join("root");
            let is_up = root.join("run/systemd/private").exists();
            (is_up || daemon.has_exited()).then_some(pid)
        };
        systemd.pid = poll_until(10 * LIMIT, || up(&mut systemd.daemon)).unwrap_or(0);
        if systemd.pid == 0 || systemd.daemon.has_exited() {
            let status = systemd.daemon.wait(LIMIT).and_then(|status| status.code());
            return Err(match status {
                Some(77) => unsupported("control groups v2 cannot be mounted"),
                _ => io::Error::other("systemd does not start"),
            });
        }
        Ok(systemd)
    }

    /// Returns a path of its file system, as seen by this process.
    pub fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.pid).into()
    }

    /// Runs `systemctl` with these arguments.
    pub fn systemctl(&self, arguments: &[&str]) -> io::Result<Output> {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.pid.to_string(),
            "--mount",
            "--pid",
            "--cgroup",
            "--ipc",
            "--uts",
            "systemctl",
        ]);
        command.args(arguments).stdin(Stdio::null()).output()
    }

    /// Returns the main process of a unit, as seen by this process.
    pub fn main_pid(&self, unit: &str) -> Option<i32> {
        let output = self.systemctl(&["show", "--value", "--property", "MainPID", unit]).ok()?;
        let inner =
            String::from_utf8_lossy(&output.stdout).trim().parse::<i32>().ok().filter(|pid| *pid > 0)?;
        let mut all = std::fs::read_dir("/proc")
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        all.find(|pid| inner_pid(*pid) == Some(inner) && same_namespace(*pid, self.pid))
    }

    /// Returns the standard error of its units and its own.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default() + &self.daemon.log()
    }
}

/// Returns a process's ID in its own PID namespace.
fn inner_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok())
}

fn same_namespace(pid: i32, other: i32) -> bool {
    let of = |pid| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    of(pid).is_some() && of(pid) == of(other)
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.daemon.signal(rustix::process::Signal::KILL);
        let _ = self.daemon.wait(LIMIT);
        let clean = || {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", CLEAN, "clean", &self.group]);
            let status = command.arg(self.dir.path().join("cgroup")).stderr(Stdio::null()).status();
            status.ok().filter(|status| status.success())
        };
        if poll_until(LIMIT, clean).is_none() {
            eprintln!("the control group {} could not be removed", self.group);
        }
        if std::thread::panicking() {
            eprintln!("output of systemd and its units:\n{}", self.log());
        }
    }
}
