//! One line of a list: a system call, with which arguments, and why.

/// Why a list has a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Seen in use; a test that makes it so.
    Seen(&'static str),
    /// Not seen in use: kept for another C library, a clock without vDSO, the end in an error.
    Kept,
}

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Allow {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// Arguments: all of one of these must be so. Nothing is asked of them where there are none.
    pub only: &'static [&'static [Arg]],
    /// The error that it has in place of being carried out, if any.
    pub refused: Option<i32>,
    /// Why it is in the list.
    pub class: Class,
    /// What for.
    pub why: &'static str,
}

/// What is asked of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    /// Which: 0 to 5.
    pub index: u8,
    /// What it must be.
    pub is: Is,
}

/// What an argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// This, in its lower 32 bits.
    Equal(u32),
    /// This, in those of its lower 32 bits that are in the mask.
    Masked {
        /// Which bits count.
        mask: u32,
        /// What they are.
        value: u32,
    },
    /// No pointer.
    Null,
    /// The number of the process that asks.
    OwnProcess,
}

impl Allow {
    /// A call that `test` has seen in use, with any arguments.
    pub const fn seen(name: &'static str, number: i64, test: &'static str, why: &'static str) -> Allow {
        Allow { name, number, only: &[], refused: None, class: Class::Seen(test), why }
    }

    /// A call that is kept for what no test brings about, with any arguments.
    pub const fn kept(name: &'static str, number: i64, why: &'static str) -> Allow {
        Allow { name, number, only: &[], refused: None, class: Class::Kept, why }
    }

    /// The same with these arguments only.
    pub const fn only(self, only: &'static [&'static [Arg]]) -> Allow {
        Allow { only, ..self }
    }

    /// The same, which fails with `error` in place of being carried out.
    pub const fn refused(self, error: i32) -> Allow {
        Allow { refused: Some(error), ..self }
    }

    /// Whether it may be made with `arguments`, by process `process`.
    pub fn allows(&self, arguments: &[u64; 6], process: u32) -> bool {
        self.only.is_empty()
            || self.only.iter().any(|all| all.iter().all(|one| one.holds(arguments, process)))
    }
}

/// The lower half of an argument, which is all that the kernel looks at of an `int`.
pub const fn equal(index: u8, value: u32) -> Arg {
    Arg { index, is: Is::Equal(value) }
}

/// Some bits of an argument.
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
