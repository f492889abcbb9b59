//! What a program may do, as it publishes it (`--print-sandbox=json`) and as its threads' filters decide.

use std::process::Command;

use libc::sock_filter;
use rustix::process::Pid;
use serde_json::Value;

use crate::daemon::program;

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
pub const X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`.
pub const I386: u32 = 0x4000_0003;
/// Set in the number of a call of the x32 ABI, whose architecture is [`X86_64`].
pub const X32: u32 = 0x4000_0000;

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: u32,
    /// The ABI.
    pub arch: u32,
    /// What it is called with.
    pub arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It ends the process, as it is of another architecture.
    Kills,
    /// It is trapped.
    Trapped,
    /// It fails with this error.
    Fails(u32),
    /// It is made.
    Made,
}

/// The published table of a program.
#[derive(Debug)]
pub struct Table(Value);

impl Table {
    /// That of the workspace's program `name`.
    ///
    /// # Panics
    /// When it prints none.
    pub fn of(name: &str) -> Table {
        let output = Command::new(program(name)).arg("--print-sandbox=json").output().expect(name);
        assert!(output.status.success(), "{output:?}");
        Table(serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Names of the roles.
    pub fn roles(&self) -> Vec<&str> {
        self.0.as_array().into_iter().flatten().filter_map(|role| role["role"].as_str()).collect()
    }

    /// The calls of a role.
    ///
    /// # Panics
    /// When there is no such role.
    pub fn calls(&self, role: &str) -> Vec<&Value> {
        self.calls_of_parts(role).into_iter().map(|(_, call)| call).collect()
    }

    fn calls_of_parts(&self, role: &str) -> Vec<(&str, &Value)> {
        let found = self.0.as_array().into_iter().flatten().find(|entry| entry["role"] == role);
        let mut calls = Vec::new();
        for part in found.unwrap_or_else(|| panic!("no role {role}"))["parts"].as_array().into_iter().flatten() {
            let name = part["part"].as_str().expect("a name");
            calls.extend(part["calls"].as_array().into_iter().flatten().map(|call| (name, call)));
        }
        calls
    }

    /// The number of a call that some role has.
    pub fn number(&self, name: &str) -> Option<u32> {
        let mut calls = self.roles().into_iter().flat_map(|role| self.calls(role));
        calls.find(|call| call["name"] == name)?["number"].as_u64()?.try_into().ok()
    }

    /// The same with a line for each alternative of what is asked of a call's arguments.
    pub fn lines(&self, role: &str) -> Vec<Line<'_>> {
        let mut lines = Vec::new();
        for (part, call) in self.calls_of_parts(role) {
            match call["only"].as_array().expect("only").as_slice() {
                [] => lines.push(Line { part, call, all: &[] }),
                only => lines.extend(only.iter().map(|all| {
                    let all = all.as_array().expect("all");
                    Line { part, call, all }
                })),
            }
        }
        lines
    }

    /// What is to become of a call of process `process` in `role`.
    pub fn fate(&self, role: &str, call: &Call, process: u32) -> Fate {
        if call.arch != X86_64 {
            return Fate::Kills;
        }
        let lines: Vec<_> =
            self.lines(role).into_iter().filter(|line| line.call["number"] == call.number).collect();
        if !lines.iter().any(|line| line.allows(call, process)) {
            return Fate::Trapped;
        }
        let fails = lines.iter().find_map(|line| line.call["fails"].as_u64());
        fails.map_or(Fate::Made, |error| Fate::Fails(error as u32))
    }
}

/// A line of a table: a call, with one of the alternatives of what is asked of its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Line<'t> {
    /// The part of the role.
    pub part: &'t str,
    /// The call as it is published.
    pub call: &'t Value,
    all: &'t [Value],
}

impl Line<'_> {
    /// Whether it allows a call of process `process`, or has it fail.
    pub fn allows(&self, call: &Call, process: u32) -> bool {
        self.call["number"] == call.number && self.all.iter().all(|one| holds(one, call, process))
    }

    /// Part, call and arguments.
    pub fn name(&self) -> String {
        let argument = |one: &Value| {
            let mask = match one["mask"].as_u64() {
                Some(mask) if mask >= u32::MAX.into() => String::new(),
                mask => format!(" & {:#x}", mask.expect("a mask")),
            };
            let value = one["value"].as_u64().map_or("process".to_owned(), |value| format!("{value:#x}"));
            format!(", {}{mask} = {value}", one["argument"])
        };
        let all: String = self.all.iter().map(argument).collect();
        format!("{}: {}{all}", self.part, self.call["name"].as_str().expect("a name"))
    }
}

fn holds(one: &Value, call: &Call, process: u32) -> bool {
    let argument = call.arguments[one["argument"].as_u64().expect("a number") as usize];
    let value = one["value"].as_u64().unwrap_or(process.into());
    argument & one["mask"].as_u64().expect("a mask") == value
}

/// What filters that are in force together make of a call: the strictest of what each says.
pub fn fate(filters: &[Vec<sock_filter>], call: &Call) -> Fate {
    filters.iter().map(|filter| said(run(filter, call))).min().unwrap_or(Fate::Made)
}

fn said(action: u32) -> Fate {
    match action & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW => Fate::Made,
        libc::SECCOMP_RET_ERRNO => Fate::Fails(action & libc::SECCOMP_RET_DATA),
        libc::SECCOMP_RET_TRAP => Fate::Trapped,
        libc::SECCOMP_RET_KILL_PROCESS => Fate::Kills,
        other => panic!("action {other:#x}"),
    }
}

/// Runs a filter: as much of classic BPF as the filters use, and nothing else goes unnoticed.
fn run(filter: &[sock_filter], call: &Call) -> u32 {
    let mut data = Vec::new();
    data.extend(call.number.to_le_bytes());
    data.extend(call.arch.to_le_bytes());
    data.extend([0; 8]);
    data.extend(call.arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let sock_filter { code, jt, jf, k } = filter[at];
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        at += 1;
        match code {
            // BPF_LD | BPF_W | BPF_ABS
            0x20 => {
                let from = k as usize;
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().expect("four bytes"));
            }
            // BPF_ALU | BPF_AND | BPF_K
            0x54 => accumulator &= k,
            // BPF_JMP: JA, JEQ, JGT, JGE with a constant
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            // BPF_RET | BPF_K
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// Where a running process has the one function of its program whose name ends in `name`.
///
/// # Panics
/// When there is no such function.
pub fn function(process: u32, name: &str) -> u64 {
    let path = format!("/proc/{process}/exe");
    let program = std::fs::read_link(&path).expect("its program");
    let symbols = Command::new("nm").arg("--defined-only").arg(&program).output().expect("nm of binutils");
    let symbols = String::from_utf8(symbols.stdout).expect("names");
    let line = symbols.lines().find(|line| line.ends_with(name)).expect(name);
    let offset = line.split(' ').next().and_then(|number| u64::from_str_radix(number, 16).ok());
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("its memory");
    let base = maps.split('-').next().and_then(|number| u64::from_str_radix(number, 16).ok());
    base.expect("an address") + offset.expect("an address")
}

/// The threads of a process, each with its name.
pub fn threads(process: u32) -> Vec<(Pid, String)> {
    let entries = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let thread = |name: &str| {
        let comm = std::fs::read_to_string(format!("/proc/{process}/task/{name}/comm")).ok()?;
        Some((Pid::from_raw(name.parse().ok()?)?, comm.trim_end().to_owned()))
    };
    entries.filter_map(|entry| thread(entry.file_name().to_str()?)).collect()
}
