//! A filter of system calls as it is in the program: [`compile`](crate::compile) writes it,
//! [`enter`](crate::enter) puts it in force.

use seccompiler::{Error, apply_filter};

/// An instruction of classic BPF (the kernel's `struct sock_filter`).
pub use seccompiler::sock_filter as Instruction;

/// A filter for whatever process it is put in force in.
#[derive(Debug)]
pub struct Filter {
    /// The program.
    pub instructions: &'static [Instruction],
    /// Which instructions compare with the number of the process.
    pub of_process: &'static [usize],
}

impl Filter {
    /// Puts it in force for this thread.
    ///
    /// # Errors
    ///
    /// When the kernel takes none.
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
