//! One line of a list: a system call, its allowed arguments, and the reason.

/// The evidence for a call in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Seen in use, by the named test.
    Seen(&'static str),
    /// Not seen in use: kept for another C library, a clock without vDSO, or the end after an error.
    Kept,
}

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Allow {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// Allowed arguments: all conditions in one of these sets must hold. Without sets, all arguments are
    /// allowed.
    pub only: &'static [&'static [Arg]],
    /// The error with which the call fails without being carried out, if any.
    pub refused: Option<i32>,
    /// The evidence for it.
    pub class: Class,
    /// Its purpose.
    pub why: &'static str,
}

/// A condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    /// Index of the argument, 0 to 5.
    pub index: u8,
    /// Its required value.
    pub is: Is,
}

/// The required value of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// The lower 32 bits are equal to this.
    Equal(u32),
    /// The bits in `mask`, among the lower 32, are equal to those of `value`.
    Masked {
        /// The bits to compare.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// A null pointer.
    Null,
    /// The calling process's number.
    OwnProcess,
}

impl Allow {
    /// Creates a line for a call that `test` has seen in use, with any arguments.
    pub const fn seen(name: &'static str, number: i64, test: &'static str, why: &'static str) -> Allow {
        Allow { name, number, only: &[], refused: None, class: Class::Seen(test), why }
    }

    /// Creates a line for a call that no test causes, with any arguments.
    pub const fn kept(name: &'static str, number: i64, why: &'static str) -> Allow {
        Allow { name, number, only: &[], refused: None, class: Class::Kept, why }
    }

    /// Returns the line restricted to these arguments.
    pub const fn only(self, only: &'static [&'static [Arg]]) -> Allow {
        Allow { only, ..self }
    }

    /// Returns the line for a call that fails with `error` without being carried out.
    pub const fn refused(self, error: i32) -> Allow {
        Allow { refused: Some(error), ..self }
    }

    /// Returns whether process `process` may make the call with `arguments`.
    pub fn allows(&self, arguments: &[u64; 6], process: u32) -> bool {
        self.only.is_empty()
            || self.only.iter().any(|all| all.iter().all(|one| one.holds(arguments, process)))
    }
}

/// Compares the lower half of an argument, which is all that the kernel reads of an `int`.
pub const fn equal(index: u8, value: u32) -> Arg {
    Arg { index, is: Is::Equal(value) }
}

/// Compares some bits of an argument.
pub const fn masked(index: u8, mask: u32, value: u32) -> Arg {
    Arg { index, is: Is::Masked { mask, value } }
}

impl Arg {
    fn holds(&self, arguments: &[u64; 6], process: u32) -> bool {
        let argument = arguments[usize::from(self.index)];
        let lower = argument as u32;
        match self.is {
            Is::Equal(value) => lower == value,
            Is::Masked { mask, value } => lower & mask == value,
            Is::Null => argument == 0,
            Is::OwnProcess => lower == process,
        }
    }
}
