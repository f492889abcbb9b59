//! A panic's message is written after the earlier lines of the log, and nothing waits for the reader.

use std::io::{Read, Write, pipe};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use volt_program::logging::{self, Format};

const CHILD: &str = "VOLT_PROGRAM_TEST_CHILD";
/// Longer than the log's second at the end, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs `test` in a child process, which panics.
fn run(test: &str, stderr: impl Into<Stdio>) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    let mut child = command.env("RUST_BACKTRACE", "0").stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
    // Only the child keeps its end of the pipe, so that the reader sees an end of file.
    drop(command);
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the program does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn a_program_that_panics(format: Format) {
    logging::set_format(format);
    logging::init(log::LevelFilter::Info).unwrap();
    std::panic::set_hook(Box::new(|panic| {
        logging::say_panic(panic);
        std::process::abort();
    }));
    log::info!("before");
    thread::Builder::new()
        .name("worker".to_owned())
        .spawn(|| panic!("at the worst moment"))
        .unwrap()
        .join()
        .ok();
}

#[test]
fn a_panic_is_logged_in_order() {
    if std::env::var_os(CHILD).is_some() {
        return a_program_that_panics(Format::Text);
    }
    let (mut reader, writer) = pipe().unwrap();
    let status = run("a_panic_is_logged_in_order", writer);
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{log}");
    let (before, after) = log.split_once("before").expect(&log);
    assert!(!before.contains("worst") && after.contains("at the worst moment"), "{log}");
    assert!(after.contains("thread 'worker' panicked at "), "{log}");
}

#[test]
fn a_panic_is_an_object_in_a_log_for_programs() {
    if std::env::var_os(CHILD).is_some() {
        return a_program_that_panics(Format::Json);
    }
    let (mut reader, writer) = pipe().unwrap();
    run("a_panic_is_an_object_in_a_log_for_programs", writer);
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    let objects = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let [before, panic] = &objects.collect::<Vec<_>>()[..] else { panic!("{log}") };
    assert_eq!((&before["level"], &before["message"]), (&"info".into(), &"before".into()));
    assert_eq!((&panic["level"], &panic["event"]), (&"error".into(), &"panic".into()));
    let message = panic["message"].as_str().unwrap();
    assert!(
        message.starts_with("thread 'worker' panicked at ") && message.ends_with("\nat the worst moment")
    );
}

#[test]
fn a_panic_that_nobody_reads_ends_the_program() {
    if std::env::var_os(CHILD).is_some() {
        return a_program_that_panics(Format::Text);
    }
    let (_reader, mut writer) = pipe().unwrap();
    let size = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    writer.write_all(&vec![b'.'; size]).unwrap();
    assert_eq!(run("a_panic_that_nobody_reads_ends_the_program", writer).signal(), Some(libc::SIGABRT));
}
