//! Why a vCPU cannot go on, with what the user can do about it. Part of the
//! [reasons](crate::board::exit::ExitReason) for a machine's end.

use thiserror::Error;

/// Why a vCPU stopped without the guest's asking.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// `KVM_EXIT_INTERNAL_ERROR` or `KVM_EXIT_FAIL_ENTRY`: KVM met something that it cannot do.
    #[error("{exit} on vCPU {id} at rip {rip:#x}. {}", host_limit())]
    HostLimit {
        /// The vCPU's number.
        id: u8,
        /// The exit reason with its details.
        exit: String,
        /// Guest instruction pointer.
        rip: u64,
    },
    /// An exit that no guest should cause here.
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
        /// From KVM.
        #[source]
        source: kvm_ioctls::Error,
    },
}

impl VcpuError {
    /// Whether the host's KVM, not the guest, is what failed.
    pub fn is_host_limit(&self) -> bool {
        matches!(self, VcpuError::HostLimit { .. })
    }
}

/// Whether this machine's processor runs guests itself. Otherwise KVM, if there is one, is a
/// paravirtual one that emulates guest kernels: very slowly, and not all of their instructions.
pub fn has_hardware_virtualisation() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags.split_whitespace().any(|word| matches!(word, "vmx" | "svm"))
}

/// What the user can do about an exit that KVM itself caused.
pub fn host_limit() -> &'static str {
    if has_hardware_virtualisation() {
        "The host's KVM cannot run this guest; its kernel log may say more"
    } else {
        "The limit is the host's KVM: this machine's processor shows neither vmx nor svm in /proc/cpuinfo, \
         so its /dev/kvm only emulates guest kernels, and not all of their instructions. Use a machine with \
         vmx or svm, or scripts/demo, which brings its own software-emulated one"
    }
}
