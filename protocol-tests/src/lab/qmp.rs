//! A client of QEMU's monitor protocol (QMP): one JSON object a line, each request answered in turn, events
//! in between.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use super::PATIENCE;

/// A connection that is ready for commands.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the socket of `-qmp unix:PATH,server=on`. QEMU greets only when it is completely started.
    ///
    /// # Errors
    /// If nothing listens there yet, or QEMU ended instead.
    pub fn connect(path: &Path) -> io::Result<Qmp> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        qmp.read_with("QMP")?;
        qmp.execute("qmp_capabilities", &json!({}))?.map_err(io::Error::other)?;
        Ok(qmp)
    }

    /// Runs a command. The inner error is QEMU's own description of why it refused.
    ///
    /// # Errors
    /// If the connection ends.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> io::Result<Result<Value, String>> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut message = self.read()?;
            if let Some(value) = message.get_mut("return") {
                return Ok(Ok(value.take()));
            }
            if let Some(error) = message.get("error") {
                return Ok(Err(error["desc"].as_str().unwrap_or_default().to_owned()));
            }
        }
    }

    /// Like `execute`, for a command that must succeed.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn done(&mut self, command: &str, arguments: &Value) -> Value {
        match self.execute(command, arguments) {
            Ok(Ok(value)) => value,
            Ok(Err(why)) => panic!("QEMU refuses {command} {arguments}: {why}"),
            Err(error) => panic!("QEMU does not answer {command}: {error}"),
        }
    }

    /// Returns the next message with this member.
    fn read_with(&mut self, member: &str) -> io::Result<Value> {
        loop {
            let message = self.read()?;
            if message.get(member).is_some() {
                return Ok(message);
            }
        }
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Serves one connection with these lines, one after each request but the first, which is unasked.
    fn scripted(lines: &'static [&'static str]) -> (tempfile::TempDir, thread::JoinHandle<Vec<String>>) {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("qmp")).expect("a socket");
        let served = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut requests = BufReader::new(stream.try_clone().expect("a second handle"));
            let mut stream = stream;
            let mut seen = Vec::new();
            for lines in lines {
                stream.write_all(lines.as_bytes()).expect("written");
                let mut request = String::new();
                if requests.read_line(&mut request).expect("a request") > 0 {
                    seen.push(request);
                }
            }
            seen
        });
        (directory, served)
    }

    #[test]
    fn events_are_not_answers() {
        let (directory, served) = scripted(&[
            "{\"QMP\": {\"version\": {}}}\n",
            "{\"return\": {}}\n",
            "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"completed\"}}\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"blocked\"}}\n",
        ]);
        let mut qmp = Qmp::connect(&directory.path().join("qmp")).expect("connected");
        assert_eq!(qmp.done("query-migrate", &json!({}))["status"], "completed");
        let refused = qmp.execute("migrate", &json!({ "uri": "unix:x" })).expect("an answer");
        assert_eq!(refused, Err("blocked".into()));
        drop(qmp);
        let requests = served.join().expect("served");
        assert_eq!(requests.len(), 3, "{requests:?}");
        assert!(requests[0].contains("qmp_capabilities") && requests[2].contains("unix:x"), "{requests:?}");
    }

    #[test]
    fn an_end_is_an_error() {
        let (directory, served) = scripted(&["{\"QMP\": {}}\n", "{\"return\": {}}\n"]);
        let mut qmp = Qmp::connect(&directory.path().join("qmp")).expect("connected");
        assert!(qmp.execute("query-status", &json!({})).is_err(), "nobody answers");
        served.join().expect("served");
    }
}
