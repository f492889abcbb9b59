//! What each thread of a program may do, as tables, and their enforcement.
//!
//! Threads of one process share its memory: whoever writes that makes any of them do what that one may. So
//! what counts is the union over the threads of a process that maps a guest's memory, and what takes more
//! than that belongs into another process. The table of each thread is published all the same, as it is
//! shorter, and as it is what has to be gone through first.
//!
//! A program's build script [compiles](compile::write) its [`Role`](role::Role)s to a
//! [`Sandbox`](enter::Sandbox). When the program has opened what it needs, it has its main thread
//! [confined](enter::Sandbox::confine). Threads that are made from there on inherit that, and
//! [enter](enter::Sandbox::enter) their own, shorter list first of all.
//!
//! | module | holds |
//! |---|---|
//! | [`allow`], [`role`] | a line of a table; tables |
//! | [`parts`] | what roles of several programs have in common |
//! | [`table`] | a table as text |
//! | [`compile`], [`filter`] | tables as filters |
//! | [`enter`] | putting them in force |
//! | [`violation`] | the end of a process that does what is in no table |
//! | [`host`] | what the kernel has of it, for a program that is asked to check |

pub mod allow;
pub mod compile;
pub mod enter;
pub mod filter;
pub mod host;
pub mod parts;
pub mod role;
pub mod table;
pub mod violation;
