//! The published table of a program.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::call::{Call, Fate, X86_64};

/// The published table of a program.
#[derive(Debug)]
pub struct Table(Value);

impl Table {
    /// Reads the table of `program`.
    ///
    /// # Panics
    /// If it prints none.
    pub fn of(program: &Path) -> Table {
        let output = Command::new(program).arg("--print-sandbox=json").output().expect("the program");
        assert!(output.status.success(), "{output:?}");
        Table(serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Returns the names of the roles.
    pub fn roles(&self) -> Vec<&str> {
        self.0.as_array().into_iter().flatten().filter_map(|role| role["role"].as_str()).collect()
    }

    /// Returns the calls of a role.
    ///
    /// # Panics
    /// If there is no such role.
    pub fn calls(&self, role: &str) -> Vec<&Value> {
        self.calls_of_parts(role).into_iter().map(|(_, call)| call).collect()
    }

    fn calls_of_parts(&self, role: &str) -> Vec<(&str, &Value)> {
        let found = self.0.as_array().into_iter().flatten().find(|entry| entry["role"] == role);
        let mut calls = Vec::new();
        for part in
            found.unwrap_or_else(|| panic!("no role {role}"))["parts"].as_array().into_iter().flatten()
        {
            let name = part["part"].as_str().expect("a name");
            calls.extend(part["calls"].as_array().into_iter().flatten().map(|call| (name, call)));
        }
        calls
    }

    /// Returns one line for each alternative of a call's argument conditions.
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

    /// Returns the calls of a role by their numbers.
    ///
    /// # Panics
    /// If there is no such role.
    pub fn list(&self, role: &str) -> List<'_> {
        let mut by_number = HashMap::<u32, Vec<Line>>::new();
        for line in self.lines(role) {
            let number = line.call["number"].as_u64().expect("a number");
            by_number.entry(number as u32).or_default().push(line);
        }
        List(by_number)
    }
}

/// The allowed calls of a role, by their numbers.
#[derive(Debug)]
pub struct List<'t>(HashMap<u32, Vec<Line<'t>>>);

impl<'t> List<'t> {
    /// Returns the lines of a call.
    pub fn lines(&self, number: u32) -> &[Line<'t>] {
        self.0.get(&number).map_or(&[][..], Vec::as_slice)
    }

    /// Returns the fate of a call in process `process`.
    pub fn fate(&self, call: &Call, process: u32) -> Fate {
        if call.arch != X86_64 {
            return Fate::Kills;
        }
        let lines = self.lines(call.number);
        if !lines.iter().any(|line| line.allows(call, process)) {
            return Fate::Trapped;
        }
        let fails = lines.iter().find_map(|line| line.call["fails"].as_u64());
        fails.map_or(Fate::Made, |error| Fate::Fails(error as u32))
    }
}

/// A line of a table: a call with one alternative of its argument conditions.
#[derive(Clone, Copy, Debug)]
pub struct Line<'t> {
    /// The part of the role.
    pub part: &'t str,
    /// The published call.
    pub call: &'t Value,
    all: &'t [Value],
}

impl Line<'_> {
    /// Returns whether the line matches a call in process `process`, to allow it or to make it fail.
    pub fn allows(&self, call: &Call, process: u32) -> bool {
        self.call["number"] == call.number && self.all.iter().all(|one| holds(one, call, process))
    }

    /// Returns part, call and arguments.
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
