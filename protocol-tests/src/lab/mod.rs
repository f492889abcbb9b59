//! Real guests: a Debian kernel in QEMU or volt-vmm, its network served by volt-netd.
//!
//! A test passes its body to [`here`] (a QEMU guest under software emulation on this machine) or to
//! [`in_lab`] (anything that needs a KVM able to run a stock kernel). Both check the requirements of the
//! body, print `SKIP name: reason` if one is missing, and run the body in a separate network namespace. The
//! body starts a [`netd::Netd`], a [`traffic::Traffic`] for the far side, and a guest from a [`guest::Spec`].
//! Each of them ends its processes when it is dropped, also by a panic.
//!
//! This is test support: an error is a panic with the last output of the process concerned.

pub mod archive;
pub mod continuity;
pub mod echo;
pub mod guest;
pub mod live;
pub mod machine;
pub mod migration;
pub mod mirror;
pub mod moving;
pub mod netd;
mod outer;
pub mod parked;
pub mod process;
pub mod qmp;
pub mod routed;
mod tftp;
pub mod told;
pub mod traffic;

#[expect(unsafe_code, reason = "leaving the network namespace has no safe wrapper")]
mod namespace;

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use outer::in_lab;
pub(crate) use outer::kvm_is_usable;

/// Time limit for a guest or a program. On a quiet machine nothing takes a tenth of it.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Returns the number of repetitions: `VOLT_ROUNDS`, which `scripts/soak` sets, or `default`.
///
/// # Panics
/// If the variable is no number.
pub fn rounds(default: usize) -> usize {
    std::env::var("VOLT_ROUNDS").map_or(default, |text| text.parse().expect("VOLT_ROUNDS is a number"))
}

/// Returns all of `variants` in `scripts/soak`, otherwise `one` of them.
pub fn variants<T: Copy>(variants: &[T], one: T) -> Vec<T> {
    if std::env::var_os("VOLT_ROUNDS").is_some() { variants.to_vec() } else { vec![one] }
}

/// Returns the top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Returns a file in `guest/`, where `scripts/setup` puts kernels and images.
pub fn guest_file(name: &str) -> PathBuf {
    repository().join("guest").join(name)
}

/// Returns a program of the workspace: from the directory `VOLT_PROGRAMS`, or from the build of this test.
///
/// # Panics
/// If the test's own path cannot be read.
pub fn program(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("VOLT_PROGRAMS") {
        return Path::new(&directory).join(name);
    }
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(2).unwrap_or(Path::new("")).join(name)
}

/// Guests are slow and the machine is small: only one body runs at a time, with any number of test threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `body` in a separate network namespace, or prints `SKIP` if this machine lacks a requirement of
/// guests.
pub fn here(name: &str, body: impl FnOnce() + Send) {
    // The lab runs the whole test program; a body that needs no lab has its result outside.
    if !inside_the_lab() {
        isolated(name, body);
    }
}

/// Returns whether this is the machine that `scripts/lab` boots.
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

/// Returns a requirement of bodies that this machine lacks.
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
        return Some(format!("{} is missing: run scripts/setup and cargo build", file.display()));
    }
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    };
    let program =
        ["qemu-system-x86_64", "ip", "sha256sum", "iperf3"].into_iter().find(|program| !on_path(program));
    program.map(|program| format!("{program} is not installed: run scripts/setup"))
}
