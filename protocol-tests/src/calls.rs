//! Which lines of its published table a program uses, from traces of it (`scripts/soak calls`).
//!
//! A trace is a file `trace.NUMBER` for each thread as `strace -ff -e raw='!prctl,execve' -X raw` writes it:
//! a line for each system call, in the thread's order, refused ones and those that end the process among
//! them. A filter that asks a tracer would see neither, since what refuses goes before what asks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crate::confinement::{Call, Table, X86_64};

/// A line of a table that was used: role, part, call with what is asked of its arguments.
pub type Used = BTreeSet<(String, String)>;

/// What was found in traces.
#[derive(Debug, Default)]
pub struct Found {
    /// Lines of the table: role, and the line as [`Line`](crate::confinement::Line) names it.
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
            let confined = calls.iter().rposition(|call| call.name == "seccomp");
            threads.insert(id, Thread { calls, maker: None, confined });
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
    fn role(&self, table: &Table, id: u32, at: usize) -> Option<String> {
        let thread = self.0.get(&id)?;
        if thread.confined.is_some_and(|last| at > last) {
            return Some(role_of(table, thread));
        }
        let (maker, at) = thread.maker?;
        self.role(table, maker, at)
    }

    /// The process of a thread.
    fn process(&self, id: u32) -> u32 {
        let made = |(maker, at): (u32, usize)| {
            let call = &self.0.get(&maker)?.calls[at];
            (call.arguments[0] & libc::CLONE_THREAD as u64 != 0).then(|| self.process(maker))
        };
        self.0.get(&id).and_then(|thread| thread.maker).and_then(made).unwrap_or(id)
    }
}

/// The role of a thread by its name.
fn role_of(table: &Table, thread: &Thread) -> String {
    let supervises = |call: &Traced| call.name == "execve" && call.text.contains("\"--supervise\"");
    match thread.calls.iter().rev().find_map(Traced::thread_name) {
        Some("volt-opener") => "opener".to_owned(),
        Some(name) if name.starts_with("pair") => "frames".to_owned(),
        Some(name) if name.starts_with("vring") => "control".to_owned(),
        Some(name) if table.roles().contains(&name) => name.to_owned(),
        Some(other) => panic!("a thread called {other}"),
        None if thread.calls.iter().any(supervises) => "supervisor".to_owned(),
        None => "main".to_owned(),
    }
}

/// Looks through the traces of one run of a program whose table is given.
///
/// # Errors
///
/// When they cannot be read.
///
/// # Panics
///
/// When a thread has a name that belongs to no role.
pub fn find(table: &Table, directory: &Path, found: &mut Found) -> io::Result<()> {
    let traces = Traces::read(directory)?;
    for (id, thread) in &traces.0 {
        let process = traces.process(*id);
        for (at, call) in thread.calls.iter().enumerate() {
            let Some(role) = traces.role(table, *id, at) else { continue };
            judge(table, role, call, process, found);
        }
    }
    Ok(())
}

fn judge(table: &Table, role: String, call: &Traced, process: u32, found: &mut Found) {
    let lines = table.lines(&role);
    let Some(number) = table.number(&call.name) else {
        found.beyond.insert((role, call.name.clone()));
        return;
    };
    let made = Call { number, arch: X86_64, arguments: call.arguments };
    let allowed = || lines.iter().filter(|line| line.allows(&made, process));
    if allowed().next().is_none() {
        found.beyond.insert((role, format!("{} {:x?}", call.name, call.arguments)));
        return;
    }
    // What is kept for something else is not what it was used for.
    let seen = allowed().any(|line| !line.call["seen"].is_null());
    for line in allowed().filter(|line| line.call["seen"].is_null() != seen) {
        found.used.insert((role.clone(), line.name()));
    }
}
