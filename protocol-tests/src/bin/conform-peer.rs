//! Back-ends and front-ends to calibrate `volt-conform`. All echo frames, and serve until they are ended
//! (except for faults that end them).
//!
//! `conform-peer SOCKET crate` is the back-end on vhost-user-backend, `conform-peer SOCKET scripted` the
//! scripted one, and `conform-peer SOCKET FAULT` the scripted one with one fault. `conform-peer --faults`
//! lists the faults. With `frontend` as first argument, each command does the same for front-ends.

use std::path::Path;
use std::process::ExitCode;

use protocol_tests::backend::fault::Fault;
use protocol_tests::backend::{Backend, Script};
use protocol_tests::front_peer::{self, FrontFault};
use protocol_tests::peer;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result =
        match arguments[..] {
            ["frontend", "--faults"] => {
                FrontFault::ALL.iter().for_each(|fault| println!("{}", fault.name()));
                return ExitCode::SUCCESS;
            }
            ["frontend", socket, kind] => frontend(Path::new(socket), kind),
            ["--faults"] => {
                Fault::ALL.iter().for_each(|fault| println!("{}", fault.name()));
                return ExitCode::SUCCESS;
            }
            [socket, "crate"] => peer::serve(Path::new(socket)).map_err(|error| error.to_string()),
            [socket, "scripted"] => scripted(socket, None),
            [socket, name] => match Fault::named(name) {
                Some(fault) => scripted(socket, Some(fault)),
                None => Err(format!("no fault '{name}': --faults lists them")),
            },
            _ => Err("usage: conform-peer [frontend] SOCKET crate|scripted|FAULT, or [frontend] --faults"
                .to_owned()),
        };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("conform-peer: {message}");
            ExitCode::FAILURE
        }
    }
}

fn frontend(socket: &Path, kind: &str) -> Result<(), String> {
    let fault = FrontFault::ALL.iter().copied().find(|fault| fault.name() == kind);
    let result = match kind {
        "crate" => front_peer::by_crate::serve(socket),
        "scripted" => front_peer::scripted(socket, None),
        _ if fault.is_some() => front_peer::scripted(socket, fault),
        _ => return Err(format!("no fault '{kind}': frontend --faults lists them")),
    };
    result.map_err(|error| error.to_string())
}

fn scripted(socket: &str, fault: Option<Fault>) -> Result<(), String> {
    let script = Script { echo: true, fault, ..Script::full() };
    Backend::listen(Path::new(socket), script).map_err(|error| error.to_string())?.join();
    Ok(())
}
