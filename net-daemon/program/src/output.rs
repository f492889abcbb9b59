//! Answers on standard output.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// Prints a line. A reader that has seen enough and closed its end is no error.
///
/// # Errors
///
/// When standard output takes no more for another reason, such as a full disk.
pub fn print(line: &dyn Display) -> io::Result<()> {
    print_to_reader(line).map(drop)
}

/// The same, for who prints again and again. Whether the reader may want more.
///
/// # Errors
///
/// As for [`print()`].
pub fn print_to_reader(line: &dyn Display) -> io::Result<bool> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(io::Error::new(error.kind(), format!("standard output takes no answer: {error}"))),
    }
}
