//! A guest under volt-vmm that is queried and changed while it runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::guest::Spec;
use super::process::Process;
use super::program;

/// A guest with an API socket. Requests go through `volt-vmm ctl`, like an operator's.
pub struct Machine {
    /// The guest.
    pub guest: Process,
    api: PathBuf,
}

impl Machine {
    /// Starts it with its API socket in `directory`, where it may open added files, and a `--net` for each of
    /// `nets`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(directory: &Path, spec: &Spec, nets: &[&str]) -> Self {
        let api = directory.join("api");
        let mut command = spec.vmm_net(nets);
        let command = command.arg("--api-socket").arg(&api).arg("--allow-path").arg(directory);
        let guest = Process::start("volt-vmm", command);
        Self { guest, api }
    }

    /// Returns the JSON that `volt-vmm ctl` prints.
    ///
    /// # Errors
    /// Returns the error output of `volt-vmm ctl`.
    ///
    /// # Panics
    /// If it cannot be run, or prints no JSON.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(program("volt-vmm"));
        let output = command.args(["ctl", "--api-socket"]).arg(&self.api).args(arguments).output();
        let output = output.expect("volt-vmm ctl");
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Like `ctl`, for requests that must succeed.
    ///
    /// # Panics
    /// If the request fails.
    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> Value {
        self.ctl(arguments).unwrap_or_else(|why| panic!("{arguments:?}: {why}"))
    }

    /// Returns the devices with all their counters.
    ///
    /// # Panics
    /// If the machine does not answer.
    #[track_caller]
    pub fn devices(&self) -> Value {
        self.done(&["status", "--json"])["devices"].clone()
    }

    /// Returns the number of open files of the process.
    ///
    /// # Panics
    /// If it has ended.
    #[track_caller]
    pub fn files(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.guest.id());
        std::fs::read_dir(directory).expect("the files of volt-vmm").count()
    }
}
