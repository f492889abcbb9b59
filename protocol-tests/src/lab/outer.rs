//! Bodies that need a KVM able to run a stock kernel.
//!
//! On a machine that has one, [`in_lab`] runs the body at once. On any other, the first call boots the lab
//! (`scripts/lab`) and runs this very test program in it, with the same filters: there the bodies run one
//! after the other and print a line each when they begin and end. Every call then takes its own result from
//! that one run, because an outer boot costs more than most bodies do.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::process::Process;
use super::{guest_file, isolated, repository};

/// How long one body may take in the lab: longer than its own time-outs together.
const BODY_LIMIT: Duration = Duration::from_secs(1800);
/// How long a whole test program may take in the lab: one that is stopped then is a lab that hangs.
const LIMIT: Duration = Duration::from_secs(3600);
/// How often a body that the lab's emulation has ended gets another lab.
const MORE_LABS: usize = 5;
const BEGIN: &str = "LAB begin ";
const END: &str = "LAB ok ";

/// What the lab said about one body.
struct Case {
    /// Which of the bodies in this lab.
    number: usize,
    passed: bool,
    output: Vec<String>,
}

impl Case {
    /// Whether a guest was reset in the middle, without a word of its kernel but for the emulation's own
    /// fault. Any other panic is the body's. A body that asks its host at that moment finds out otherwise, as
    /// by the API's socket: its machine is found to have ended when the body is unwound.
    fn guest_was_reset(&self) -> bool {
        let says = |text: &str| self.output.iter().any(|line| line.contains(text));
        let qemu = says("qemu ended before it said '");
        let volt_vmm = says("volt-vmm ended before it said '") || says("volt-vmm had ended by itself");
        let silent = (qemu || says("shut down by a triple fault")) && !says("Kernel panic");
        (qemu || volt_vmm) && (silent || says("RIP: 0010:entry_SYSCALL_64+0x0/"))
    }
}

/// Lines that are shown of a body that the lab ended.
const DEATH: usize = 30;

/// Runs `body` where KVM works: here, or in the lab. `name` is the test function's.
///
/// # Panics
/// When the body did, wherever it ran.
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
    // QEMU's emulation of SVM now and then interrupts a processor at the first instruction of its kernel's
    // system call entry, where interrupts are masked and GS is still the program's: the lab's own kernel dies
    // of that, or a guest's, with QEMU's own network device as with ours. That says nothing about the body,
    // which gets another lab, alone; nor does what comes after it in that lab, whose kernel has been
    // interrupted in the same way as the guest's.
    for _ in 0..MORE_LABS {
        let last = again.as_ref().unwrap_or(first);
        let case = last.cases.get(name);
        let ended_by_the_lab = last.died || case.is_some_and(|case| last.was_reset_until(case));
        if !ended_by_the_lab || case.is_some_and(|case| case.passed) {
            break;
        }
        eprintln!("the lab's emulation ended {name}: once more, after");
        let output = case.map_or(&[][..], |case| &case.output);
        for line in &output[output.len().saturating_sub(DEATH)..] {
            eprintln!("    {line}");
        }
        again = Some(run(["--exact".to_owned(), name.to_owned()].into_iter()));
    }
    let case = again.as_ref().unwrap_or(first).cases.get(name);
    let case = case.unwrap_or_else(|| panic!("the lab did not come to {name}"));
    // A skip inside is one outside. The prefix keeps the inner test runner's lines from looking like the
    // outer's.
    for line in &case.output {
        eprintln!("lab: {line}");
    }
    assert!(case.passed, "{name} failed in the lab");
}

/// Ends the test program when the body `name` takes too long, unless what it returns is dropped before: the
/// body hangs, and not the lab.
fn end_unless_done(name: &str) -> Sender<()> {
    let (over, done) = channel::<()>();
    let name = name.to_owned();
    std::thread::spawn(move || {
        if done.recv_timeout(BODY_LIMIT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name} did not come to its end within {BODY_LIMIT:?}");
            std::process::exit(1);
        }
    });
    over
}

/// As in `scripts/lib.sh`: a KVM without VMX or SVM below it emulates guest kernel mode and lacks
/// instructions.
pub(crate) fn kvm_is_usable() -> bool {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processor.split_whitespace().any(|word| word == "vmx" || word == "svm") && Path::new("/dev/kvm").exists()
}

/// One boot of the lab.
struct Run {
    cases: HashMap<String, Case>,
    /// It ended without the test program's exit status.
    died: bool,
}

impl Run {
    /// Whether the emulation ended the guest of this body, or of one before it.
    fn was_reset_until(&self, case: &Case) -> bool {
        self.cases.values().any(|other| other.number <= case.number && other.guest_was_reset())
    }
}

/// Boots the lab with this test program in it; the outer runner's own options do not matter in there.
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

/// Tells of each body that has ended, past the test runner, which shows the output of a test at its end only:
/// a lab's run takes minutes.
fn progress(line: &str) {
    if let Some((_, body)) = line.split_once(END) {
        let _ = write!(std::io::stderr(), "\n    in the lab: {body} ");
    }
}

/// Takes the lab's console apart by the lines that bodies begin and end with.
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

    /// Only a body that said so at its own end has passed; one that the lab died in has not.
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

    /// A lab in which a guest was reset says nothing about what comes after.
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
        let spoiled = ["a", "b", "c"].map(|name| run.was_reset_until(&run.cases[name]));
        assert_eq!(spoiled, [false, true, true]);
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
        let (asked, unwound) = ("no answer at /run/tmp/api", "volt-vmm had ended by itself, exit status: 3");
        assert!(reset(&[asked, unwound, fault]));
        assert!(!reset(&[asked, fault]));
        assert!(reset(&[unwound, "RIP: 0010:entry_SYSCALL_64+0x0/0x29", "Kernel panic - not syncing"]));
        assert!(!reset(&[unwound, "RIP: 0010:virtqueue_add+0x30/0x80", "Kernel panic - not syncing"]));
        assert!(!reset(&["tcp_out: other bytes than were sent"]));
    }
}
