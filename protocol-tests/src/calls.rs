//! Which lines of its published table a program uses, from traces of it (`scripts/soak --calls`).
//!
//! A trace is a file `trace.NUMBER` for each thread as `strace -ff -e raw='!prctl,execve' -X raw` writes it:
//! a line for each system call, in the thread's order, refused ones and those that end the process among
//! them. A filter that asks a tracer would see neither, since what refuses goes before what asks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use crate::confinement;
use crate::confinement::call::{Call, X86_64};
use crate::confinement::table::{List, Table};

/// A line of a table that was used: role, part, call with what is asked of its arguments.
pub type Used = BTreeSet<(String, String)>;

/// What was found in traces.
#[derive(Debug, Default)]
pub struct Found {
    /// Lines of the table: role, and the line as [`Line`](crate::confinement::table::Line) names it.
    pub used: Used,
    /// Calls that no line of their role allows.
    pub beyond: Used,
}

/// A thread, as its trace has it.
#[derive(Debug, Default)]
struct Thread {
    calls: Vec<Traced>,
    /// Who made it, and in which call.
    maker: Option<(u32, usize)>,
    /// The call that its last filter came by.
    confined: Option<usize>,
    /// The last name that it has given itself.
    name: Option<String>,
    /// The program was told to supervise.
    supervises: bool,
}

/// A line of a trace.
#[derive(Debug)]
struct Traced {
    name: String,
    /// Numbers, as far as they are.
    arguments: [u64; 6],
    /// The rest of the line as it stands.
    text: String,
    returned: Option<u64>,
}

impl Traced {
    fn parse(line: &str) -> Option<Traced> {
        let (name, rest) = line.split_once('(')?;
        let (inside, returned) = rest.rsplit_once(" = ")?;
        // What a thread was killed in has the registers of another thread.
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

    /// The name that the thread gives itself by it.
    fn thread_name(&self) -> Option<&str> {
        self.is_prctl(libc::PR_SET_NAME).then(|| self.text.split('"').nth(1)).flatten()
    }

    /// The thread or process that it makes.
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

/// The traces of one run of one program and of all that belongs to it.
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
            // Before each filter no_new_privs is set; one that is killed in between has not come to its own.
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

    /// The role of thread `id` in its call number `at`: its own once it has all filters of its own, its
    /// maker's before; none as long as nobody is confined.
    fn role(&self, program: &str, id: u32, at: usize) -> Option<&'static str> {
        let thread = self.0.get(&id)?;
        if thread.confined.is_some_and(|last| at > last) {
            return Some(role_of(program, thread));
        }
        let (maker, at) = thread.maker?;
        self.role(program, maker, at)
    }

    /// The process of a thread.
    fn process(&self, id: u32) -> u32 {
        let made = |(maker, at): (u32, usize)| {
            let call = &self.0.get(&maker)?.calls[at];
            // The C library makes threads by clone3, whose flags no trace shows, and processes by clone.
            let is_thread = call.name == "clone3" || call.arguments[0] & libc::CLONE_THREAD as u64 != 0;
            is_thread.then(|| self.process(maker))
        };
        self.0.get(&id).and_then(|thread| thread.maker).and_then(made).unwrap_or(id)
    }
}

/// The role of a thread by its name.
fn role_of(program: &str, thread: &Thread) -> &'static str {
    match &thread.name {
        Some(name) => confinement::role(program, name),
        None if thread.supervises => "supervisor",
        None => "main",
    }
}

/// A table, to look calls up in.
#[derive(Debug)]
pub struct Lists<'t> {
    program: &'t str,
    numbers: HashMap<&'t str, u32>,
    of_roles: HashMap<&'t str, List<'t>>,
}

impl<'t> Lists<'t> {
    /// Those of the table that `program` publishes.
    pub fn new(program: &'t str, table: &'t Table) -> Lists<'t> {
        let roles = table.roles();
        let numbers = roles.iter().flat_map(|role| table.calls(role));
        let numbers =
            numbers.filter_map(|call| Some((call["name"].as_str()?, call["number"].as_u64()? as u32)));
        let of_roles = roles.iter().map(|role| (*role, table.list(role)));
        Lists { program, numbers: numbers.collect(), of_roles: of_roles.collect() }
    }

    /// Looks through the traces of one run of the program.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    ///
    /// # Panics
    ///
    /// When a thread has a name that belongs to no role.
    pub fn find(&self, directory: &Path, found: &mut Found) -> io::Result<()> {
        let traces = Traces::read(directory)?;
        for (id, thread) in &traces.0 {
            let process = traces.process(*id);
            let mut known = HashSet::new();
            for (at, call) in thread.calls.iter().enumerate() {
                let Some(role) = traces.role(self.program, *id, at) else { continue };
                // Threads make the same calls over and over.
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
        // What is kept for something else is not what it was used for.
        let seen = allowing.iter().any(|line| !line.call["seen"].is_null());
        for line in allowing.iter().filter(|line| line.call["seen"].is_null() != seen) {
            found.used.insert((role.to_owned(), line.name()));
        }
    }
}
