//! Finds the lines of a program's published table that it uses, from traces (`scripts/soak --calls`).
//!
//! A trace is a file `trace.NUMBER` for each thread, written by `strace -ff -e raw='!prctl,execve' -X raw`: a
//! line for each system call in the thread's order, including refused calls and those that end the process. A
//! filter that asks a tracer would see neither, because refusal takes precedence.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use crate::confinement;
use crate::confinement::call::{Call, X86_64};
use crate::confinement::table::{List, Table};

/// A used line of a table: role, part, and call with its argument conditions.
pub type Used = BTreeSet<(String, String)>;

/// The findings in traces.
#[derive(Debug, Default)]
pub struct Found {
    /// Lines of the table: role, and the line as [`Line`](crate::confinement::table::Line) names it.
    pub used: Used,
    /// Calls that no line of their role allows.
    pub beyond: Used,
}

/// A thread and its trace.
#[derive(Debug, Default)]
struct Thread {
    calls: Vec<Traced>,
    /// The thread that created it, and the position of that call.
    maker: Option<(u32, usize)>,
    /// The position of the call that installed its last filter.
    confined: Option<usize>,
    /// The last name that it gave itself.
    name: Option<String>,
    /// Whether the program has the option --supervise.
    supervises: bool,
}

/// A line of a trace.
#[derive(Debug)]
struct Traced {
    name: String,
    /// The arguments that are numbers.
    arguments: [u64; 6],
    /// The rest of the line.
    text: String,
    returned: Option<u64>,
}

impl Traced {
    fn parse(line: &str) -> Option<Traced> {
        let (name, rest) = line.split_once('(')?;
        let (inside, returned) = rest.rsplit_once(" = ")?;
        // The call in which a thread was killed shows the registers of another thread.
        if returned == "?" && !name.starts_with("exit") {
            return None;
        }
        let inside = inside.trim_end().trim_end_matches(')');
        let mut arguments = [0; 6];
        for (argument, text) in arguments.iter_mut().zip(inside.split(", ")) {
            *argument = number(text).unwrap_or(0);
        }
        let returned = returned.split(' ').next().and_then(number);
        Some(Traced { name: name.to_owned(), arguments, text: inside.to_owned(), returned })
    }

    fn is_filter(&self) -> bool {
        self.name == "seccomp" && self.arguments[0] == u64::from(libc::SECCOMP_SET_MODE_FILTER)
    }

    fn supervises(&self) -> bool {
        self.name == "execve" && self.text.contains("\"--supervise\"")
    }

    fn is_prctl(&self, option: libc::c_int) -> bool {
        self.name == "prctl" && self.arguments[0] == option as u64
    }

    /// Returns the name that the call gives the thread.
    fn thread_name(&self) -> Option<&str> {
        self.is_prctl(libc::PR_SET_NAME).then(|| self.text.split('"').nth(1)).flatten()
    }

    /// Returns the thread or process that the call creates.
    fn made(&self) -> Option<u32> {
        let makes = matches!(self.name.as_str(), "clone" | "clone3" | "fork" | "vfork");
        makes.then_some(self.returned).flatten().and_then(|made| u32::try_from(made).ok())
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The traces of one run of a program, with all its processes.
#[derive(Debug, Default)]
struct Traces(BTreeMap<u32, Thread>);

impl Traces {
    fn read(directory: &Path) -> io::Result<Traces> {
        let mut threads = BTreeMap::<u32, Thread>::new();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let Some(id) = path.extension().and_then(|id| id.to_str()?.parse().ok()) else { continue };
            let text = std::fs::read(&path)?;
            let text = String::from_utf8_lossy(&text);
            let calls: Vec<_> = text.lines().filter_map(Traced::parse).collect();
            // Each filter follows no_new_privs; a thread killed in between has not installed its own.
            let confines = |call: &Traced| call.is_filter() || call.is_prctl(libc::PR_SET_NO_NEW_PRIVS);
            let confined = calls.iter().rposition(confines).filter(|at| calls[*at].is_filter());
            let name = calls.iter().rev().find_map(Traced::thread_name).map(str::to_owned);
            let supervises = calls.iter().any(Traced::supervises);
            threads.insert(id, Thread { calls, maker: None, confined, name, supervises });
        }
        let mut makers = Vec::new();
        for (maker, thread) in &threads {
            let made = thread.calls.iter().enumerate();
            makers.extend(made.filter_map(|(at, call)| Some((call.made()?, (*maker, at)))));
        }
        for (made, maker) in makers {
            threads.entry(made).or_default().maker = Some(maker);
        }
        Ok(Traces(threads))
    }

    /// Returns the role of thread `id` in its call number `at`: its own once all its filters are installed,
    /// before that its creator's; `None` as long as no thread is confined.
    fn role(&self, program: &str, id: u32, at: usize) -> Option<&'static str> {
        let thread = self.0.get(&id)?;
        if thread.confined.is_some_and(|last| at > last) {
            return Some(role_of(program, thread));
        }
        let (maker, at) = thread.maker?;
        self.role(program, maker, at)
    }

    /// Returns the process of a thread.
    fn process(&self, id: u32) -> u32 {
        let made = |(maker, at): (u32, usize)| {
            let call = &self.0.get(&maker)?.calls[at];
            // The C library creates threads by clone3, whose flags no trace shows, and processes by clone.
            let is_thread = call.name == "clone3" || call.arguments[0] & libc::CLONE_THREAD as u64 != 0;
            is_thread.then(|| self.process(maker))
        };
        self.0.get(&id).and_then(|thread| thread.maker).and_then(made).unwrap_or(id)
    }
}

/// Returns the role of a thread by its name.
fn role_of(program: &str, thread: &Thread) -> &'static str {
    match &thread.name {
        Some(name) => confinement::role(program, name),
        None if thread.supervises => "supervisor",
        None => "main",
    }
}

/// A table, for looking up calls.
#[derive(Debug)]
pub struct Lists<'t> {
    program: &'t str,
    numbers: HashMap<&'t str, u32>,
    of_roles: HashMap<&'t str, List<'t>>,
}

impl<'t> Lists<'t> {
    /// Returns the lists of the table that `program` publishes.
    pub fn new(program: &'t str, table: &'t Table) -> Lists<'t> {
        let roles = table.roles();
        let numbers = roles.iter().flat_map(|role| table.calls(role));
        let numbers =
            numbers.filter_map(|call| Some((call["name"].as_str()?, call["number"].as_u64()? as u32)));
        let of_roles = roles.iter().map(|role| (*role, table.list(role)));
        Lists { program, numbers: numbers.collect(), of_roles: of_roles.collect() }
    }

    /// Searches the traces of one run of the program.
    ///
    /// # Errors
    ///
    /// Returns an error if they cannot be read.
    ///
    /// # Panics
    ///
    /// If a thread's name belongs to no role.
    pub fn find(&self, directory: &Path, found: &mut Found) -> io::Result<()> {
        let traces = Traces::read(directory)?;
        for (id, thread) in &traces.0 {
            let process = traces.process(*id);
            let mut known = HashSet::new();
            for (at, call) in thread.calls.iter().enumerate() {
                let Some(role) = traces.role(self.program, *id, at) else { continue };
                // Threads repeat the same calls many times.
                if known.insert((role, &call.name, call.arguments)) {
                    self.judge(role, call, process, found);
                }
            }
        }
        Ok(())
    }

    fn judge(&self, role: &'static str, call: &Traced, process: u32, found: &mut Found) {
        let Some(number) = self.numbers.get(call.name.as_str()) else {
            found.beyond.insert((role.to_owned(), call.name.clone()));
            return;
        };
        let made = Call { number: *number, arch: X86_64, arguments: call.arguments };
        let lines = self.of_roles[role].lines(*number);
        let allowing: Vec<_> = lines.iter().filter(|line| line.allows(&made, process)).collect();
        if allowing.is_empty() {
            found.beyond.insert((role.to_owned(), format!("{} {:x?}", call.name, call.arguments)));
        }
        // A line kept for another reason does not count if a line seen in tests also allows the call.
        let seen = allowing.iter().any(|line| !line.call["seen"].is_null());
        for line in allowing.iter().filter(|line| line.call["seen"].is_null() != seen) {
            found.used.insert((role.to_owned(), line.name()));
        }
    }
}
