//! Real guests: a Debian kernel in QEMU or volt-vmm, its network served by volt-netd.
//!
//! A test hands its body to [`here`] (a QEMU guest under software emulation on this machine) or to [`in_lab`]
//! (anything that needs a KVM able to run a stock kernel). Both check what the body needs, print `SKIP name:
//! reason` when something is missing, and run the body in a network namespace of its own. The body starts a
//! [`netd::Netd`], a [`traffic::Traffic`] for the far side, and a guest from a [`guest::Spec`]; all of them
//! end what they started when they are dropped, a panic included.
//!
//! This is test support: what goes wrong is a panic that carries the last output of the process concerned.

pub mod continuity;
pub mod echo;
pub mod guest;
pub mod machine;
pub mod netd;
mod outer;
pub mod process;
mod tftp;
pub mod traffic;

#[expect(unsafe_code, reason = "leaving the network namespace has no safe wrapper")]
mod namespace;

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use outer::in_lab;
pub(crate) use outer::kvm_is_usable;

/// How long anything may take that a guest or a program is waited for to do. Nothing takes a tenth of it on a
/// quiet machine.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How often something is done again and again: `VOLT_ROUNDS`, which `scripts/soak` sets, otherwise
/// `default`.
///
/// # Panics
/// When the variable is no number.
pub fn rounds(default: usize) -> usize {
    std::env::var("VOLT_ROUNDS").map_or(default, |text| text.parse().expect("VOLT_ROUNDS is a number"))
}

/// All of `variants` in `scripts/soak`, otherwise `one` of them.
pub fn variants<T: Copy>(variants: &[T], one: T) -> Vec<T> {
    if std::env::var_os("VOLT_ROUNDS").is_some() { variants.to_vec() } else { vec![one] }
}

/// The top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A file below `guest/`, where `scripts/setup` puts kernels and images.
pub fn guest_file(name: &str) -> PathBuf {
    repository().join("guest").join(name)
}

/// A program of the workspace: in the directory that `VOLT_PROGRAMS` names, otherwise built with this test.
///
/// # Panics
/// When the test's own path cannot be read.
pub fn program(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("VOLT_PROGRAMS") {
        return Path::new(&directory).join(name);
    }
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(2).unwrap_or(Path::new("")).join(name)
}

/// Guests are slow and the machine is small: one body at a time, however many threads the test runner has.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `body` in a network namespace of its own, or prints `SKIP` when this machine lacks what guests need.
pub fn here(name: &str, body: impl FnOnce() + Send) {
    // The lab runs the whole test program; what needs no lab has its result outside.
    if !inside_the_lab() {
        isolated(name, body);
    }
}

/// Whether this is the machine that `scripts/lab` boots.
pub(crate) fn inside_the_lab() -> bool {
    std::env::var_os("VOLT_LAB").is_some()
}

pub(crate) fn isolated(name: &str, body: impl FnOnce() + Send) {
    if let Some(reason) = missing() {
        eprintln!("SKIP {name}: {reason}");
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(panic) = namespace::run(body) {
        resume_unwind(panic);
    }
}

/// What a body needs and this machine does not have.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root for a network namespace and a TAP".into());
    }
    let files = [
        program("volt-netd"),
        program("volt-vmm"),
        guest_file("initramfs-generic"),
        guest_file("initramfs-uml"),
        guest_file("rootfs.img"),
    ];
    if let Some(file) = files.iter().find(|file| !file.exists()) {
        return Some(format!("{} is not there: run scripts/setup and cargo build", file.display()));
    }
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    };
    let program =
        ["qemu-system-x86_64", "ip", "sha256sum", "iperf3"].into_iter().find(|program| !on_path(program));
    program.map(|program| format!("{program} is not installed: run scripts/setup"))
}
