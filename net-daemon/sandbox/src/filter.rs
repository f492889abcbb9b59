//! A compiled filter of system calls: [`compile`](crate::compile) writes it, [`enter`](crate::enter) applies
//! it.

use seccompiler::{Error, apply_filter};

/// An instruction of classic BPF (the kernel's `struct sock_filter`).
pub use seccompiler::sock_filter as Instruction;

/// A filter for any process.
#[derive(Debug)]
pub struct Filter {
    /// The BPF program.
    pub instructions: &'static [Instruction],
    /// Indexes of the instructions that compare with the process's number.
    pub of_process: &'static [usize],
}

impl Filter {
    /// Applies the filter to this thread.
    ///
    /// # Errors
    ///
    /// The kernel refuses the filter.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        if self.of_process.is_empty() {
            return apply_filter(self.instructions);
        }
        let mut instructions = self.instructions.to_vec();
        for at in self.of_process {
            instructions[*at].k = std::process::id();
        }
        apply_filter(&instructions)
    }
}
