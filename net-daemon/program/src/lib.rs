//! What volt-netd and volt-vmm have in common as programs, and no library below them knows of: the
//! [log](logging), [metrics], what is said on [standard output](output), [for people](display) and [again and
//! again](mod@watch), [sockets with a path](unix), [users](accounts), [signals], the [process
//! beside](opener) that opens things, [what a host gives](check), and [memory] that is given back.

pub mod accounts;
pub mod check;
pub mod display;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod opener;
pub mod output;
mod peer;
pub mod signals;
pub mod unix;
pub mod watch;
