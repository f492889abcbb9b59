//! Live migration as a front-end sees it: an oracle that finds missing marks in the log of written pages.
//!
//! [`journey`] plays random sessions under the oracle, and [`instant`] looks at each instruction of a worker.

pub mod instant;

pub mod journey;
pub mod oracle;
