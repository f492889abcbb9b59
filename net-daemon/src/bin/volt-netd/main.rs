//! `volt-netd`: the vhost-user-net back-end daemon.
//!
//! [`cli`] says what is wanted, `main` opens the port and the endpoint, [`server`] runs until it is told to end.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser, error::ErrorKind};
use log::info;
use rustix::event::{EventfdFlags, eventfd};
use signal_hook::consts::{SIGINT, SIGTERM};
use volt_net::error_chain;
use volt_net::event::notify::Notifier;
use volt_net::event::worker::prepare_signals;
use volt_net::net::config::Mac;
use volt_net::net::device::{DeviceOptions, NetDevice};
use volt_net::port::Port;
use volt_net::port::macvtap::Macvtap;
use volt_net::port::tap::{Tap, TapOptions};

use crate::cli::{Cli, MAX_PAIRS};
use crate::endpoint::{Access, Endpoint};
use crate::server::Server;

mod cli;
mod endpoint;
mod fds;
mod logging;
mod server;

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.print_capabilities {
        println!("{}", serde_json::json!({ "type": "net" }));
        return ExitCode::SUCCESS;
    }
    logging::init(cli.log_level.into());
    check(&cli);
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("volt-netd: {}", error_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// What clap cannot check by itself. Ends the program.
fn check(cli: &Cli) {
    let wrong = |kind, text: &str| Cli::command().error(kind, text).exit();
    if cli.tap.is_none() && cli.tap_fd.is_empty() && cli.macvtap.is_none() {
        wrong(
            ErrorKind::MissingRequiredArgument,
            "where do frames go? give --tap NAME, --macvtap NAME or --tap-fd N",
        );
    }
    if cli.socket.is_none() && cli.fd.is_none() {
        wrong(
            ErrorKind::MissingRequiredArgument,
            "where do front-ends come from? give --socket PATH or --fd N",
        );
    }
    if cli.tap_fd.len() > MAX_PAIRS {
        wrong(
            ErrorKind::TooManyValues,
            "more --tap-fd descriptors than the 127 queue pairs that vhost-user can name",
        );
    }
    if !cli.tap_fd.is_empty() && cli.queues.is_some_and(|queues| usize::from(queues) != cli.tap_fd.len()) {
        let text = "--queues differs from the number of --tap-fd descriptors: leave it out";
        wrong(ErrorKind::ArgumentConflict, text);
    }
}

fn run(cli: &Cli) -> Result<(), AnyError> {
    // Descriptors from the command line first, so that none that is opened here can be mistaken for one.
    let tap_fds = fds::take(&cli.tap_fd)?;
    let fd = fds::take(cli.fd.as_slice())?.pop();
    let (signals, signalled) = UnixStream::pair()?;
    let told = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first signal asks, a second one does not. It is for a main thread that the kernel holds, as
        // it can in memory of a front-end that never comes.
        signal_hook::flag::register_conditional_shutdown(signal, 1, told.clone())?;
        signal_hook::flag::register(signal, told.clone())?;
        signal_hook::low_level::pipe::register(signal, signalled.try_clone()?)?;
    }
    prepare_signals()?;
    let port = open_port(cli, tap_fds)?;
    let endpoint = open_endpoint(cli, fd)?;
    let wake = Arc::new(Notifier::new(eventfd(0, EventfdFlags::CLOEXEC)?)?);
    let mac = cli.mac.or(port.mac()).map_or_else(Mac::random, Ok)?;
    let options = DeviceOptions { pairs: pairs(cli), mac, mtu: cli.mtu };
    let device = NetDevice::new(port, options, wake.clone());
    info!(
        "{} with {} queue pairs, MAC {}, {}",
        device.port_name(),
        options.pairs,
        options.mac,
        match &cli.socket {
            Some(path) if cli.client => format!("connecting to {}", path.display()),
            Some(path) => format!("listening on {}", path.display()),
            None => "on an open socket".to_owned(),
        }
    );
    Ok(Server::new(device, cli.queue_size, endpoint, wake, &signals)?.run()?)
}

fn pairs(cli: &Cli) -> u16 {
    let fds = u16::try_from(cli.tap_fd.len()).ok().filter(|fds| *fds > 0);
    fds.or(cli.queues).unwrap_or(1)
}

fn open_port(cli: &Cli, fds: Vec<std::os::fd::OwnedFd>) -> Result<Box<dyn Port>, AnyError> {
    Ok(match (&cli.tap, &cli.macvtap) {
        (Some(name), _) => Box::new(Tap::open(TapOptions {
            name: name.clone(),
            queues: pairs(cli).into(),
            persist: cli.persist,
            mtu: cli.mtu,
        })?),
        (None, Some(name)) => Box::new(Macvtap::open(name, pairs(cli).into())?),
        (None, None) => Box::new(Tap::from_fds(fds)?),
    })
}

fn open_endpoint(cli: &Cli, fd: Option<std::os::fd::OwnedFd>) -> Result<Endpoint, AnyError> {
    let access = Access { mode: cli.socket_mode, group: cli.socket_group.clone() };
    Ok(match (&cli.socket, fd) {
        (Some(path), _) if cli.client => Endpoint::Client(path.clone()),
        (Some(path), _) => Endpoint::listen(path, &access)?,
        (None, Some(fd)) => Endpoint::from_fd(fd)?,
        (None, None) => unreachable!("checked before"),
    })
}
