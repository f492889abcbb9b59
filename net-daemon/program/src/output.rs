//! Output of commands on standard output.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// Prints a line. A reader that has closed its end is not an error.
///
/// # Errors
///
/// Standard output cannot be written for another reason, such as a full disk.
pub fn print(line: &dyn Display) -> io::Result<()> {
    print_to_reader(line).map(drop)
}

/// Like [`print()`], but returns whether the reader still reads, for a caller that prints repeatedly.
///
/// # Errors
///
/// As for [`print()`].
pub fn print_to_reader(line: &dyn Display) -> io::Result<bool> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))),
    }
}
