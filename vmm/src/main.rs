//! volt-vmm: a minimal virtual machine monitor on KVM.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use log::info;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use volt_program::{logging, output};
use volt_virtio::error_chain;
use volt_vmm::api::{self, Api, client};
use volt_vmm::board::exit::{ExitEvent, status};
use volt_vmm::cli::{Ctl, Invocation};
use volt_vmm::console::terminal;
use volt_vmm::machine::builder;
use volt_vmm::{cli, signals};

fn main() -> ExitCode {
    let ended = match cli::parse(std::env::args_os()) {
        Ok(Invocation::Run(args)) => run(*args),
        Ok(Invocation::Ctl(ctl)) => ask(&ctl),
        Err(error) => error.exit(),
    };
    let status = ended.unwrap_or_else(|error| {
        logging::say(&format_args!("volt-vmm: {}", error_chain(&*error)));
        status::ERROR
    });
    logging::flush();
    ExitCode::from(status)
}

fn ask(ctl: &Ctl) -> Result<u8, Box<dyn Error>> {
    let Ctl { api_socket, command } = ctl;
    let answer = client::ask(api_socket, command.method(), &command.path(), command.body().as_ref())?;
    output::print(&format_args!("{answer:#}"))?;
    Ok(0)
}

fn run(args: cli::Args) -> Result<u8, Box<dyn Error>> {
    volt_program::signals::prepare()?;
    logging::init(args.log_level())?;
    end_on_panic();
    terminal::restore_on_fatal_signals()?;
    let exit = Arc::new(ExitEvent::new()?);
    signals::watch(Arc::clone(&exit))?;
    raise_limit();
    let config = args.into_config();
    if let Some(path) = &config.api_socket {
        api::check_path(path)?;
    }
    let mut machine = builder::build(&config, exit)?;
    let api =
        config.api_socket.as_deref().map(|path| Api::start(path, machine.handle.clone())).transpose()?;
    let (memory, kernel) = (config.memory >> 20, config.kernel.display());
    info!("{} vCPU(s), {memory} MiB of memory, kernel {kernel}", config.cpus);
    machine.run();
    // Who has asked is answered while there are devices.
    drop(api);
    Ok(machine.end())
}

/// Very many queue pairs need more descriptors than the usual limit of 1024, and most of them when the
/// guest's driver starts. Where the limit stays, so does the machine that needs no more.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// A panic in any thread ends the process, with the terminal as it was and the message readable.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore();
        logging::say_panic(panic);
        std::process::exit(status::PANIC.into());
    }));
}
