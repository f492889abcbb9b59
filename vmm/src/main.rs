//! volt-vmm: a minimal virtual machine monitor on KVM.

use std::error::Error;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use volt_program::opener::WirePath;
use volt_program::unix::SocketFile;
use volt_program::watch::watch;
use volt_program::{logging, output};
use volt_virtio::error_chain;
use volt_vmm::api::client::{self, CtlError};
use volt_vmm::api::{self, Api, ApiSocket, table};
use volt_vmm::board::exit::{ExitEvent, status};
use volt_vmm::cli::{Check, Confinement, Ctl, CtlCommand, Invocation, TableForm};
use volt_vmm::config::{NetDeviceConfig, VmConfig};
use volt_vmm::console::terminal;
use volt_vmm::machine::builder;
use volt_vmm::opener::{Duties, Opener};
use volt_vmm::{cli, host, sandbox, signals};

/// How long a watched machine may leave a status request unanswered until it counts as ended.
const AWAY: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let ended = match cli::parse(std::env::args_os()) {
        Ok(Invocation::Run(args)) => run(*args),
        Ok(Invocation::Ctl(ctl)) => ask(&ctl),
        Ok(Invocation::PrintSandbox(form)) => print_sandbox(form),
        Ok(Invocation::Check(wanted)) => check(&wanted),
        Err(error) => error.exit(),
    };
    let status = ended.unwrap_or_else(|error| {
        logging::say("error", &format_args!("volt-vmm: {}", error_chain(&*error)));
        status::ERROR
    });
    logging::flush();
    ExitCode::from(status)
}

fn ask(ctl: &Ctl) -> Result<u8, Box<dyn Error>> {
    let Ctl { api_socket, command } = ctl;
    if let CtlCommand::Status(options) = command
        && !options.json
    {
        return show(api_socket, options.watch);
    }
    let disk = command.disk().transpose();
    let passed: Vec<_> = disk.as_ref().ok().into_iter().flatten().map(AsFd::as_fd).collect();
    let (method, path, body) = (command.method(), command.path(), command.body());
    let answer = client::ask_with(api_socket, method, &path, body.as_ref(), &passed);
    let answer = answer.map_err(|error| match (error, disk) {
        // The machine's process may see files that this process cannot open.
        (CtlError::Refused(why), Err(here)) => CtlError::Unopened(why, here),
        (error, _) => error,
    })?;
    output::print(&format_args!("{answer:#}"))?;
    Ok(0)
}

/// Prints a machine's status as text, once or repeatedly until the machine has ended.
fn show(api_socket: &Path, interval: Option<Duration>) -> Result<u8, Box<dyn Error>> {
    let ask = || client::status(api_socket);
    match interval {
        None => output::print(&table::whole(&ask()?).trim_end())?,
        Some(interval) => watch(interval, AWAY, ask, table::moving)?,
    }
    Ok(0)
}

fn print_sandbox(form: TableForm) -> Result<u8, Box<dyn Error>> {
    match form {
        TableForm::Text => output::print(&sandbox::TABLE)?,
        TableForm::Json => output::print(&sandbox::TABLE.json())?,
    }
    Ok(0)
}

fn check(wanted: &Check) -> Result<u8, Box<dyn Error>> {
    let findings = host::look(wanted.tap.as_deref());
    match wanted.format {
        TableForm::Text => output::print(&findings)?,
        TableForm::Json => output::print(&format_args!("{:#}", findings.json()))?,
    }
    Ok(if findings.suffice() { 0 } else { status::ERROR })
}

fn run(args: cli::Args) -> Result<u8, Box<dyn Error>> {
    volt_program::signals::prepare()?;
    logging::set_format(args.log_format());
    let (confinement, allowed) = args.sandbox();
    // Before the log's thread and any other exists.
    let opener = start_opener(confinement)?;
    logging::init(args.log_level())?;
    end_on_panic();
    terminal::restore_on_fatal_signals()?;
    prepare_sandbox(confinement)?;
    let exit = Arc::new(ExitEvent::new()?);
    signals::watch(Arc::clone(&exit))?;
    raise_limit();
    let config = args.into_config();
    if let Some(path) = &config.api_socket {
        api::check_path(path)?;
    }
    let mut machine = builder::build(&config, exit)?;
    let socket = config.api_socket.as_deref().map(ApiSocket::bind).transpose()?;
    if let Some(opener) = opener {
        opener.is_asked(duties(&config, allowed, socket.as_ref()))?;
        sandbox::confine()?;
    }
    let api = socket.map(|socket| Api::start(socket, machine.handle.clone())).transpose()?;
    let (memory, kernel) = (config.memory >> 20, config.kernel.display());
    info!(
        event = "started", cpus = config.cpus, memory_mib = memory;
        "{} vCPU(s), {memory} MiB of memory, kernel {kernel}", config.cpus
    );
    machine.run();
    // Clients get their answers while the devices still exist.
    drop(api);
    Ok(machine.end())
}

/// Starts the opener, unless the sandbox is off.
fn start_opener(confinement: Confinement) -> Result<Option<Opener>, Box<dyn Error>> {
    if confinement == Confinement::Off {
        return Ok(None);
    }
    let opener = Opener::start(|| {
        let confined = sandbox::confine_opener();
        confined.map_err(|error| format!("volt-vmm: the opener cannot be confined: {}", error_chain(&error)))
    })?;
    Ok(Some(opener))
}

/// Prepares the confinement of this process, which begins when the machine is built. Warns if it is off.
fn prepare_sandbox(confinement: Confinement) -> Result<(), Box<dyn Error>> {
    if confinement == Confinement::Off {
        warn!(
            event = "sandbox_off";
            "--sandbox=off: a guest that takes over this process can do everything that its user can"
        );
        return Ok(());
    }
    Ok(sandbox::prepare(terminal::restore)?)
}

/// Returns the files that the opener may open while the machine runs.
fn duties(config: &VmConfig, allowed: Vec<PathBuf>, api: Option<&ApiSocket>) -> Duties {
    let peers = || config.nets.iter().filter_map(NetDeviceConfig::peer);
    let sockets = config.nets.iter().filter_map(|net| match net {
        NetDeviceConfig::Socket(net) => Some(WirePath(net.socket.clone())),
        NetDeviceConfig::Port(_) => None,
    });
    // The device asks by the absolute path.
    let sockets = sockets.chain(peers().filter_map(|peer| absolute(peer.path()).ok().map(WirePath)));
    let own = peers().filter_map(|peer| SocketFile::at(peer.own_path()?).ok());
    let own = own.map(|file| (WirePath(file.path().to_owned()), file.inode()));
    let api = api.map(|socket| {
        let (path, inode) = socket.file();
        (WirePath(path.to_owned()), inode)
    });
    Duties {
        directories: allowed.into_iter().map(WirePath).collect(),
        sockets: sockets.collect(),
        files: api.into_iter().chain(own).collect(),
    }
}

/// Raises the limit of open files. Very many queue pairs need more descriptors than the usual limit of 1024,
/// most of them when the guest's driver starts. If the limit cannot be raised, a machine that needs fewer
/// still runs.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Ends the process after a panic in any thread, with the terminal restored and the message readable.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore();
        logging::say_panic(panic);
        std::process::exit(status::PANIC.into());
    }));
}
