#![expect(unsafe_code, reason = "fork")]

use std::fmt;
use std::sync::mpsc::{Sender, channel};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::*;

const A_WHILE: Duration = Duration::from_millis(100);

/// Tells when it is being formatted, and takes a while.
struct Slow(Sender<()>);

impl Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = self.0.send(());
        thread::sleep(A_WHILE);
        f.write_str("slow")
    }
}

/// A thread is logging when another one forks the process. The child, which has no thread that would release
/// a lock, can log nevertheless.
#[test]
fn a_child_logs_whatever_other_threads_log() {
    for format in [Format::Text, Format::Json] {
        let logger = &Logger::new(LevelFilter::Debug, format);
        let log = move |what: &dyn Display| {
            logger.log(&Record::builder().level(Level::Debug).args(format_args!("{what}")).build());
        };
        let (begins, begun) = channel();
        let child = thread::scope(|scope| {
            scope.spawn(move || log(&Slow(begins)));
            begun.recv().unwrap();
            let forked = across_fork(|| {
                thread::sleep(2 * A_WHILE);
                // SAFETY: the child uses the log, whose locks are free, and the allocator, which the C
                // library keeps usable.
                unsafe { libc::fork() }
            });
            if forked == 0 {
                // SAFETY: ends the child, by a signal if it cannot log.
                unsafe {
                    libc::alarm(20);
                    log(&"in the child");
                    libc::_exit(0)
                }
            }
            forked
        });
        let waited = waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap();
        let (_, status) = waited.expect("the child ends");
        assert_eq!(status.exit_status(), Some(0), "{format:?}: {status:?}");
    }
}
