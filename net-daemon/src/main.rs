//! `volt-netd`: the vhost-user-net back-end daemon.
//!
//! [`cli`] and [`config`] read the options. [`launch`] builds a daemon from them, or from another process's
//! state. [`server`] runs it, and [`supervisor`] restarts it after a crash.
//!
//! | module | holds |
//! |---|---|
//! | [`server`] | the main thread's loop: front-ends, clients of the control socket, hand-over, commits |
//! | [`connection`], [`endpoint`] | the connection to a front-end; the source of these connections |
//! | [`control`], [`handover`] | the control socket's requests; the successor's side of a hand-over |
//! | [`ctl`], [`runtime`] | `volt-netd ctl`, the client of those requests; the paths of control sockets |
//! | [`capture`] | `volt-netd ctl capture` |
//! | [`state`] | the state that a daemon leaves for the next process |
//! | [`status`] | the daemon's status |
//! | [`systemd`], [`supervision`] | where the state is kept: in systemd's store, or by the supervisor |
//! | [`opener`] | the helper process that opens the paths that the confined daemon may not open |
//! | [`own_file`] | files of sockets, and who removes them |
//! | [`check`], [`policy`] | `volt-netd check`, `volt-netd policy` |
//! | [`fds`] | descriptors named on the command line |
//! | [`filter`] | the filter of the guest's frames: from the command line, or from a state |
//! | [`metrics`], [`inquiry`] | metrics over HTTP; how the metrics server queries the daemon |
//! | [`xdp`] | AF_XDP on the command line, and its helper |
//! | [`signals`] | termination signals, as a descriptor |

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, error::ErrorKind};
use log::{info, warn};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use volt_program::{logging, memory, output};
use volt_virtio::error_chain;

use crate::cli::{Cli, Command, Confinement, MAX_PAIRS, TableForm};
use crate::config::ConfigError;
use crate::filter::Wanted;
use crate::filter::options::Guest;
use crate::handover::Predecessor;
use crate::launch::{AnyError, Given, GoSignal, Inheritance, Origin};
use crate::server::End;

mod capture;
mod check;
mod cli;
mod config;
mod connection;
mod control;
mod ctl;
mod endpoint;
mod fds;
mod filter;
mod handover;
mod inquiry;
mod launch;
mod metrics;
mod opener;
mod own_file;
mod policy;
mod runtime;
mod sandbox;
mod server;
mod signals;
mod state;
mod status;
mod supervision;
mod supervisor;
mod systemd;
mod xdp;

/// How long a daemon leaves its CPU to the successor after a hand-over, before it ends.
const COURTESY: std::time::Duration = std::time::Duration::from_millis(20);

/// Exit status for a wrong command line, the same as clap's.
const WRONG_COMMAND_LINE: u8 = 2;

fn main() -> ExitCode {
    memory::share_one_arena();
    let status = match memory::apart(|| config::read(std::env::args_os().collect())) {
        Ok(cli) => start(&cli).unwrap_or_else(|error| {
            logging::say("error", &format_args!("volt-netd: {}", error_chain(&*error)));
            ExitCode::FAILURE
        }),
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => {
            logging::say("error", &format_args!("volt-netd: {error}"));
            ExitCode::from(WRONG_COMMAND_LINE)
        }
    };
    logging::flush();
    status
}

fn start(cli: &Cli) -> Result<ExitCode, AnyError> {
    if cli.print_capabilities {
        output::print(&serde_json::json!({ "type": "net" }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(form) = cli.print_sandbox {
        match form {
            TableForm::Text => output::print(&sandbox::TABLE)?,
            TableForm::Json => output::print(&sandbox::TABLE.json())?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    match &cli.command {
        None => check_usage(cli),
        Some(Command::Check { tap, format }) => return check::run(tap.as_deref(), *format),
        Some(Command::Policy { request }) => return Ok(policy::run(request)?),
        Some(Command::XdpHelper(helper)) => match xdp::help(helper)? {},
        Some(Command::Ctl { .. }) => {}
    }
    volt_program::signals::prepare()?;
    logging::set_format(cli.log_format.into());
    if let Some(Command::Ctl { which, request }) = &cli.command {
        logging::init(cli.log_level.into())?;
        return ctl::run(which, request);
    }
    serve(cli)
}

/// Makes a panic of any thread end the process. Front-end and supervisor notice that and can react. They
/// would not notice a ring that is no longer served.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        logging::say_panic(panic);
        std::process::abort();
    }));
}

/// Checks the conditions that clap cannot check. Ends the program if one fails.
fn check_usage(cli: &Cli) {
    let wrong = |kind, text: &str| Cli::command().error(kind, text).exit();
    if cli.user.is_some() && cli.sandbox == Confinement::Off {
        wrong(ErrorKind::ArgumentConflict, "--user requires the sandbox: leave out --sandbox=off");
    }
    if let Some(address) = cli.metrics.as_ref().filter(|address| address.is_public() && !cli.metrics_public) {
        let text = format!(
            "other hosts could read the metrics at {address}: choose a loopback address, or add \
             --metrics-public"
        );
        wrong(ErrorKind::ArgumentConflict, &text);
    }
    let guest = match cli.take_over {
        Some(_) => Guest::Served,
        None if cli.mac.is_some() || cli.macvtap.is_some() || cli.has_xdp() => Guest::Known,
        None => Guest::Unknown,
    };
    if let Err((kind, text)) = cli.filter.check(guest) {
        wrong(kind, &text);
    }
    if cli.take_over.is_some() {
        if cli.mac.is_some() && !cli.filter.is_given() {
            let text = "--mac with --take-over is for a filter: add --guard or --policy FILE";
            wrong(ErrorKind::MissingRequiredArgument, text);
        }
        return;
    }
    let interface = cli.tap.is_some() || !cli.tap_fd.is_empty() || cli.macvtap.is_some() || cli.has_xdp();
    if !interface && cli.peer().is_none() {
        wrong(
            ErrorKind::MissingRequiredArgument,
            "no interface is given: add --tap NAME, --macvtap NAME, --xdp IFACE, --tap-fd N, --stream PATH \
             or --dgram PATH",
        );
    }
    if cli.peer().is_some() && cli.queues.is_some_and(|queues| queues > 1) {
        let text = "--stream and --dgram have one queue pair: leave out --queues";
        wrong(ErrorKind::ArgumentConflict, text);
    }
    if cli.socket.is_none() && cli.fd.is_none() {
        wrong(
            ErrorKind::MissingRequiredArgument,
            "no socket for the front-end is given: add --socket PATH or --fd N",
        );
    }
    if let (Some(socket), Some(control)) = (&cli.socket, &cli.control)
        && std::path::absolute(socket).ok() == std::path::absolute(control).ok()
    {
        let text = "--socket and --control must differ: one is for front-ends, one for 'volt-netd ctl'";
        wrong(ErrorKind::ArgumentConflict, text);
    }
    for (option, given) in [("--tap-fd", cli.tap_fd.len()), ("--xsk-fd", cli.xsk_fd.len())] {
        if given > MAX_PAIRS {
            let text = format!("more {option} descriptors than the 127 queue pairs that vhost-user can name");
            wrong(ErrorKind::TooManyValues, &text);
        }
        if given > 0 && cli.queues.is_some_and(|queues| usize::from(queues) != given) {
            let text =
                format!("--queues differs from the number of {option} descriptors: leave out --queues");
            wrong(ErrorKind::ArgumentConflict, &text);
        }
    }
}

fn serve(cli: &Cli) -> Result<ExitCode, AnyError> {
    raise_limit();
    // Take the command line's descriptors first: a descriptor opened here could have one of their numbers.
    let (tap, socket) = (fds::take(&cli.tap_fd)?, fds::take(cli.fd.as_slice())?.pop());
    let xdp = xdp::take(&cli.xsk_fd)?;
    let filter = Wanted::read(&cli.filter)?;
    cli.user.as_deref().map(sandbox::serve_as).transpose()?;
    if cli.sandbox == Confinement::Off {
        sandbox::leave_off();
    }
    memory::give_back();
    // Fork before the log thread exists: otherwise the opener would keep that thread's stack for ever.
    let opener = Arc::new(opener::start()?);
    logging::init(cli.log_level.into())?;
    end_on_panic();
    tell_options(cli);
    let origin = match &cli.take_over {
        Some(path) => take_over(path, filter)?,
        None => Origin::Fresh(Given { tap, xdp, socket, filter }),
    };
    if cli.supervise {
        return supervisor::run(cli, origin, opener);
    }
    if launch::run(cli, origin, opener, None)? == End::GivenAway {
        // Freeing this process's memory takes CPU time from the successor, which has a backlog of frames.
        std::thread::sleep(COURTESY);
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs options with an effect that an operator may not expect.
fn tell_options(cli: &Cli) {
    if let Some(path) = cli.config.as_deref().filter(|path| !path.exists()) {
        info!(
            event = "no_config"; "there is no {}: only the command line's options apply", path.display()
        );
    }
    if !sandbox::is_on() {
        warn!(
            event = "sandbox_off";
            "--sandbox=off: an attacker who takes over this daemon can do everything that its user can"
        );
    }
}

/// Raises the limit of open files: many queue pairs need more than the usual 1024. A failure is ignored: most
/// daemons need fewer.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn take_over(path: &std::path::Path, filter: Option<Wanted>) -> Result<Origin, AnyError> {
    let (predecessor, offer, fds) = Predecessor::ask(path)?;
    let fds: BTreeMap<_, _> = offer.fds.iter().copied().zip(fds).collect();
    let state = offer.state.get().to_owned();
    let (unsent, read, drop_connection, last) = (None, Vec::new(), false, None);
    let inheritance = Inheritance { state, fds, unsent, read, drop_connection, filter, last };
    Ok(Origin::Running(inheritance, GoSignal::Direct(predecessor)))
}
