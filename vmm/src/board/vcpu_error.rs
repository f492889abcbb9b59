//! Why a vCPU cannot continue, with a remedy for the user. One of the
//! [reasons](crate::board::exit::ExitReason) for a machine's end.

use thiserror::Error;

/// Why a vCPU stopped without a request of the guest.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// `KVM_EXIT_INTERNAL_ERROR` or `KVM_EXIT_FAIL_ENTRY`: KVM met something that it does not support.
    #[error("{exit} on vCPU {id} at rip {rip:#x}. {}", host_limit())]
    HostLimit {
        /// The vCPU's number.
        id: u8,
        /// The exit reason with its details.
        exit: String,
        /// Guest instruction pointer.
        rip: u64,
    },
    /// An exit that no guest should cause.
    #[error("unexpected exit {exit} on vCPU {id} at rip {rip:#x}")]
    Unexpected {
        /// The vCPU's number.
        id: u8,
        /// The exit reason.
        exit: String,
        /// Guest instruction pointer.
        rip: u64,
    },
    /// `KVM_RUN` failed.
    #[error("KVM_RUN failed on vCPU {id}")]
    Run {
        /// The vCPU's number.
        id: u8,
        /// The error of KVM.
        #[source]
        source: kvm_ioctls::Error,
    },
}

impl VcpuError {
    /// Returns whether the host's KVM failed, not the guest.
    pub fn is_host_limit(&self) -> bool {
        matches!(self, VcpuError::HostLimit { .. })
    }
}

/// Returns whether this machine's processor runs guests itself. Otherwise KVM, if it exists, is a paravirtual
/// one that emulates guest kernels: very slowly, and not all of their instructions.
pub fn has_hardware_virtualisation() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags.split_whitespace().any(|word| matches!(word, "vmx" | "svm"))
}

/// Returns the remedy for an exit that KVM itself caused.
pub fn host_limit() -> &'static str {
    if has_hardware_virtualisation() {
        "The host's KVM cannot run this guest; the host's kernel log may say more"
    } else {
        "The host's KVM is the limit: this machine's processor has neither vmx nor svm in /proc/cpuinfo, \
         so its /dev/kvm only emulates guest kernels, and not all of their instructions. Use a machine with \
         vmx or svm, or scripts/demo, which brings its own software-emulated one"
    }
}
