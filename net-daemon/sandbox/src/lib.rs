//! Tables of the system calls that each thread of a program may make, and their enforcement.
//!
//! The threads of a process share its memory: an attacker who can write it can use the rights of any of them.
//! So the protection of a process that maps guest memory is the union of its threads' tables, and operations
//! that need more rights belong into another process. Each thread still has its own table: it is shorter, and
//! an attacker has to break out of it first.
//!
//! A program's build script [compiles](compile::write) its [`Role`](role::Role)s to a
//! [`Sandbox`](enter::Sandbox). When the program has opened everything, it
//! [confines](enter::Sandbox::confine) its main thread. Threads created later inherit that, and first
//! [enter](enter::Sandbox::enter) their own, shorter list.
//!
//! | module | holds |
//! |---|---|
//! | [`allow`], [`role`] | a line of a table; tables |
//! | [`parts`] | common parts of several programs' roles |
//! | [`table`] | tables as text |
//! | [`compile`], [`filter`] | tables as filters |
//! | [`enter`] | enforcement |
//! | [`violation`] | the end of a process with a forbidden system call |
//! | [`host`] | checks of the kernel's support |

pub mod allow;
pub mod compile;
pub mod enter;
pub mod filter;
pub mod host;
pub mod parts;
pub mod role;
pub mod table;
pub mod violation;
