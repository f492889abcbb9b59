//! Bodies that need a KVM able to run a stock kernel.
//!
//! On a machine that has one, [`in_lab`] runs the body directly. Elsewhere the first call boots the lab
//! (`scripts/lab`) and runs this test program in it, with the same filters. The bodies run there in turn, and
//! print a line at their begin and end. Every call then takes its own result from that one run, because a
//! boot of the lab costs more than most bodies.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::process::Process;
use super::{guest_file, isolated, repository};

/// Time limit for one body in the lab: longer than its own time-outs together.
const BODY_LIMIT: Duration = Duration::from_secs(1800);
/// Time limit for a whole test program in the lab: a lab that exceeds it hangs.
const LIMIT: Duration = Duration::from_secs(3600);
/// Number of further labs for a body that the lab's emulation has ended.
const MORE_LABS: usize = 5;
const BEGIN: &str = "LAB begin ";
const END: &str = "LAB ok ";

/// The lab's output about one body.
struct Case {
    /// Position of the body in this lab.
    number: usize,
    passed: bool,
    output: Vec<String>,
}

impl Case {
    /// Returns whether a guest was reset without any message of its kernel, except about the emulation's own
    /// fault. Any other panic is the body's. It does not matter how the body noticed: one that asks volt-vmm
    /// at that moment sees an error of the API.
    fn guest_was_reset(&self) -> bool {
        let reset = self.says("qemu ended before it said '") || self.says("shut down by a triple fault");
        (reset && !self.says("Kernel panic")) || self.says("RIP: 0010:entry_SYSCALL_64+0x0/")
    }

    /// Returns whether the lab's KVM kept a guest at one instruction without carrying it out: volt-vmm found
    /// all registers unchanged for 5 s of CPU time, without an exit to a device, before the first output.
    fn guest_stood_still(&self) -> bool {
        self.says(" s of CPU time without progress, before the guest's first output")
    }

    fn says(&self, text: &str) -> bool {
        self.output.iter().any(|line| line.contains(text))
    }
}

/// Lines to print of a body that the lab ended.
const DEATH: usize = 30;

/// Runs `body` where KVM works: here, or in the lab. `name` is the name of the test function.
///
/// # Panics
/// If the body panicked, here or in the lab.
pub fn in_lab(name: &str, body: impl FnOnce() + Send) {
    if super::inside_the_lab() {
        eprintln!("{BEGIN}{name}");
        let start = Instant::now();
        let over = end_unless_done(name);
        isolated(name, body);
        drop(over);
        eprintln!("{END}{name} {:.1} s", start.elapsed().as_secs_f32());
        return;
    }
    if kvm_is_usable() {
        return isolated(name, body);
    }
    if !guest_file("initramfs-lab").exists() {
        eprintln!("SKIP {name}: the lab image is missing: run scripts/setup");
        return;
    }
    static FIRST: OnceLock<Run> = OnceLock::new();
    let filters = || std::env::args().skip(1).filter(|word| !word.starts_with('-') || word == "--exact");
    let first = FIRST.get_or_init(|| run(filters()));
    let mut again = None;
    // QEMU's emulation of SVM sometimes interrupts a processor at the first instruction of its kernel's
    // system call entry, where interrupts are masked and GS is still the program's. This kills the lab's
    // kernel or a guest's, also with QEMU's own network device. More rarely, a guest's processor stays at one
    // instruction for ever. This says nothing about the body, which runs again in another lab, alone. Later
    // bodies in the same lab say nothing either: its kernel may have been hit like the guest's.
    for _ in 0..MORE_LABS {
        let last = again.as_ref().unwrap_or(first);
        let case = last.cases.get(name);
        let ended_by_the_lab = last.died || case.is_some_and(|case| last.was_hit_until(case));
        if !ended_by_the_lab || case.is_some_and(|case| case.passed) {
            break;
        }
        eprintln!("the lab's emulation ended {name}; running it again. Its last output:");
        let output = case.map_or(&[][..], |case| &case.output);
        for line in &output[output.len().saturating_sub(DEATH)..] {
            eprintln!("    {line}");
        }
        again = Some(run(["--exact".to_owned(), name.to_owned()].into_iter()));
    }
    let case = again.as_ref().unwrap_or(first).cases.get(name);
    let case = case.unwrap_or_else(|| panic!("the lab did not run {name}"));
    // A skip inside the lab is a skip outside. The prefix distinguishes the lines of the inner test runner
    // from those of the outer one.
    for line in &case.output {
        eprintln!("lab: {line}");
    }
    assert!(case.passed, "{name} failed in the lab");
}

/// Ends the test program if the body `name` exceeds its limit before the returned value is dropped: the body
/// hangs, and not the lab.
fn end_unless_done(name: &str) -> Sender<()> {
    let (over, done) = channel::<()>();
    let name = name.to_owned();
    std::thread::spawn(move || {
        if done.recv_timeout(BODY_LIMIT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name} did not end within {BODY_LIMIT:?}");
            std::process::exit(1);
        }
    });
    over
}

/// Like `scripts/lib.sh`: KVM without VMX or SVM emulates guest kernel mode and lacks instructions.
pub(crate) fn kvm_is_usable() -> bool {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processor.split_whitespace().any(|word| word == "vmx" || word == "svm") && Path::new("/dev/kvm").exists()
}

/// One boot of the lab.
struct Run {
    cases: HashMap<String, Case>,
    /// Whether it ended without the test program's exit status.
    died: bool,
}

impl Run {
    /// Returns whether the emulation ended the guest of this body or of an earlier one.
    fn was_hit_until(&self, case: &Case) -> bool {
        let hit = |case: &Case| case.guest_was_reset() || case.guest_stood_still();
        self.cases.values().any(|other| other.number <= case.number && hit(other))
    }
}

/// Boots the lab with this test program in it. The outer runner's own options are not passed on.
fn run(filters: impl Iterator<Item = String>) -> Run {
    let test = std::env::current_exe().expect("the test's own path");
    let mut command = Command::new(repository().join("scripts/lab"));
    command.args(["--limit", &LIMIT.as_secs().to_string()]).arg(test).args(filters);
    command.args(["--test-threads=1", "--nocapture"]);
    let mut lab = Process::start("the lab", &mut command);
    let _ = lab.wait_exit_and_tell(LIMIT + Duration::from_secs(30), progress);
    let console = lab.output();
    let says = |text: &str| console.iter().any(|line| line.contains(text));
    let died =
        says("the lab ended before the command did") || says(&format!("stopped after {} s", LIMIT.as_secs()));
    Run { cases: sort(&console), died }
}

/// Prints a line for each body that has ended, past the test runner, which shows the output of a test only at
/// its end: a run in the lab takes minutes.
fn progress(line: &str) {
    if let Some((_, body)) = line.split_once(END) {
        let _ = write!(std::io::stderr(), "\n    in the lab: {body} ");
    }
}

/// Splits the lab's console by the lines at which bodies begin and end.
fn sort(console: &[String]) -> HashMap<String, Case> {
    let mut cases = HashMap::new();
    let mut current: Option<(String, Case)> = None;
    for line in console {
        if let Some((_, name)) = line.split_once(BEGIN) {
            cases.extend(current.take());
            current = Some((name.into(), Case { number: cases.len(), passed: false, output: Vec::new() }));
        } else if let Some((name, case)) = &mut current {
            case.passed |= line.split_once(END).is_some_and(|(_, rest)| rest.split(' ').next() == Some(name));
            case.output.push(line.clone());
        }
    }
    cases.extend(current);
    cases
}

#[cfg(test)]
mod tests {
    use super::{Case, Run, sort};

    /// Only a body that printed its own end line has passed, not one in which the lab died.
    #[test]
    fn a_body_passes_by_its_own_line_only() {
        let console = [
            "boot",
            "LAB begin a",
            "x",
            "LAB ok a 1.0 s",
            "test a ... ok",
            "LAB begin b",
            "LAB ok a 1.0 s",
            "LAB begin c",
        ];
        let cases = sort(&console.map(String::from));
        assert!(cases["a"].passed && cases["a"].output.contains(&"x".to_owned()));
        assert!(!cases["b"].passed);
        assert!(!cases["c"].passed);
        assert_eq!(cases.len(), 3);
    }

    /// After a reset of a guest, later bodies in the same lab have no valid result.
    #[test]
    fn a_reset_spoils_what_comes_after_it() {
        let console = [
            "LAB begin a",
            "tcp_out: other bytes than were sent",
            "LAB begin b",
            "qemu ended before it said 'VOLT exit': the last lines of qemu:",
            "LAB begin c",
            "no answer to ping",
        ];
        let run = Run { cases: sort(&console.map(String::from)), died: false };
        let spoiled = ["a", "b", "c"].map(|name| run.was_hit_until(&run.cases[name]));
        assert_eq!(spoiled, [false, true, true]);
    }

    /// A guest that does not come up for another reason is a failure.
    #[test]
    fn only_a_processor_that_stands_still_is_the_emulations() {
        let stood_still = |line: &str| {
            let output = vec!["volt-vmm did not print 'VOLT exit' within 600s".to_owned(), line.to_owned()];
            let case = Case { number: 0, passed: false, output };
            Run { cases: [("a".to_owned(), case)].into(), died: false }
        };
        let hit = |run: Run| run.was_hit_until(&run.cases["a"]);
        assert!(hit(stood_still(
            "20.55  [WARN ] vCPU 0 has been at rip 0xffffffffc076320c for 5 s of CPU time without progress, \
             before the guest's first output: the guest loops there, or this KVM cannot run it"
        )));
        assert!(!hit(stood_still("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:")));
    }

    /// A guest's own panic is a failure, not the emulation's.
    #[test]
    fn only_a_silent_reset_is_the_emulations() {
        let reset = |lines: &[&str]| {
            let output = lines.iter().map(|line| (*line).to_owned()).collect();
            Case { number: 0, passed: false, output }.guest_was_reset()
        };
        let ended = "qemu ended before it said 'VOLT exit': the last lines of qemu:";
        assert!(reset(&[ended]));
        assert!(reset(&["qemu ended before it said 'VOLT exit 0': the last lines of qemu:"]));
        assert!(reset(&[ended, "RIP: 0010:entry_SYSCALL_64+0x0/0x29", "Kernel panic - not syncing"]));
        assert!(!reset(&[ended, "RIP: 0010:virtqueue_add+0x30/0x80", "Kernel panic - not syncing"]));
        let (waited, fault) =
            ("volt-vmm ended before it said 'the back-end is back'", "shut down by a triple fault");
        assert!(reset(&[waited, fault]));
        assert!(!reset(&[waited]));
        assert!(!reset(&[waited, fault, "Kernel panic - not syncing"]));
        let refused = "volt-vmm: the machine refuses: the machine ends";
        assert!(reset(&[refused, fault]));
        assert!(!reset(&[refused]));
        assert!(reset(&[refused, "RIP: 0010:entry_SYSCALL_64+0x0/0x29", "Kernel panic - not syncing"]));
        assert!(!reset(&[refused, "RIP: 0010:virtqueue_add+0x30/0x80", "Kernel panic - not syncing"]));
        assert!(!reset(&["tcp_out: other bytes than were sent"]));
    }
}
