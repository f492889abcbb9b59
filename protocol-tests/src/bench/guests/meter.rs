//! What a phase of a guest's traffic costs: exits, interrupts and processor time for each frame of the TAP.

use std::time::{Duration, Instant};

use crate::bench::process::Process;
use crate::lab::netd::{TAP, counter};

/// KVM's counters for all guests; the guest under test is the only one.
const COUNTERS: &str = "/sys/kernel/debug/kvm";
/// Length of the kernel's unit of time in `/proc/PID/stat`.
const TICK: Duration = Duration::from_millis(10);

/// Reads the counters and clocks of one guest.
pub(super) struct Meter {
    vmm: Process,
    /// volt-netd, or the kernel threads of vhost-net: what moves frames outside of the VMM.
    movers: Vec<Process>,
}

/// A reading.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    at: Instant,
    kvm: Option<[f64; 2]>,
    frames: u64,
    guest: Duration,
    vmm: Duration,
    movers: Duration,
}

/// Costs for each frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    /// Frames a second, both ways.
    pub(super) frames: f64,
    pub(super) exits: Option<f64>,
    pub(super) interrupts: Option<f64>,
    /// Microseconds inside the guest, with all it does; to a tick of the kernel.
    pub(super) guest: f64,
    /// Microseconds of the VMM outside of the guest.
    pub(super) vmm: f64,
    /// Microseconds of volt-netd, or of vhost-net's threads.
    pub(super) movers: f64,
}

impl Meter {
    /// Panics if one of the processes has ended.
    pub(super) fn new(vmm: u32, netd: Option<u32>) -> Meter {
        let open = |pid| Process::of(pid).expect("a process that runs");
        Meter { vmm: open(vmm), movers: netd.into_iter().chain(vhost_threads(vmm)).map(open).collect() }
    }

    pub(super) fn read(&self) -> Reading {
        let kvm = |name| std::fs::read_to_string(format!("{COUNTERS}/{name}")).ok()?.trim().parse().ok();
        let time = |process: &Process| process.cpu_time().expect("a process that runs");
        let guest = guest_time(self.vmm.pid());
        Reading {
            at: Instant::now(),
            kvm: kvm("exits").zip(kvm("irq_injections")).map(Into::into),
            frames: counter(TAP, "rx", "packets") + counter(TAP, "tx", "packets"),
            guest,
            vmm: time(&self.vmm).saturating_sub(guest),
            movers: self.movers.iter().map(time).sum(),
        }
    }
}

impl Reading {
    /// Returns the costs since an earlier reading.
    pub(super) fn since(self, before: Reading) -> Costs {
        let frames = (self.frames - before.frames) as f64;
        let events = |which: usize| Some((self.kvm?[which] - before.kvm?[which]) / frames);
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / frames;
        Costs {
            frames: frames / (self.at - before.at).as_secs_f64(),
            exits: events(0),
            interrupts: events(1),
            guest: micros(self.guest.saturating_sub(before.guest)),
            vmm: micros(self.vmm.saturating_sub(before.vmm)),
            movers: micros(self.movers.saturating_sub(before.movers)),
        }
    }
}

/// Returns the kernel threads of a VMM's vhost devices. Since Linux 6.4 they are threads of the VMM instead.
fn vhost_threads(vmm: u32) -> Vec<u32> {
    let name = format!("vhost-{vmm}");
    let processes = std::fs::read_dir("/proc").expect("the processes").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    })
    .collect()
}

/// Returns the time in which virtual processors ran their guest: `guest_time` of proc(5).
fn guest_time(vmm: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{vmm}/stat")).expect("a VMM that runs");
    // The name may contain spaces; behind it the third field follows.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u32 = fields.nth(43 - 3).and_then(|field| field.parse().ok()).expect("guest time");
    TICK * ticks
}
