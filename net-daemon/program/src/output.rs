//! Answers on standard output.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// Prints a line. A reader that has seen enough and closed its end is no error.
///
/// # Errors
///
/// When standard output takes no more for another reason, such as a full disk.
pub fn print(line: &dyn Display) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), format!("standard output takes no answer: {error}")))
        }
        _ => Ok(()),
    }
}
