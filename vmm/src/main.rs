//! volt-vmm: a minimal virtual machine monitor on KVM.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use volt_program::{logging, output};
use volt_vmm::api::client;
use volt_vmm::cli::{Ctl, Invocation};
use volt_vmm::exit::{ExitEvent, status};
use volt_vmm::virtio::faults::chain;
use volt_vmm::{builder, cli, signals, terminal};

fn main() -> ExitCode {
    let ended = match cli::parse(std::env::args_os()) {
        Ok(Invocation::Run(args)) => run(*args),
        Ok(Invocation::Ctl(ctl)) => ask(&ctl),
        Err(error) => error.exit(),
    };
    let status = ended.unwrap_or_else(|error| {
        logging::say(&format_args!("volt-vmm: {}", chain(&*error)));
        status::ERROR
    });
    logging::flush();
    ExitCode::from(status)
}

fn ask(ctl: &Ctl) -> Result<u8, Box<dyn Error>> {
    let Ctl { api_socket, request } = ctl;
    let answer = client::ask(api_socket, request.method(), &request.path(), request.body().as_ref())?;
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
    let machine = builder::build(&args.into_config(), exit)?;
    Ok(machine.run())
}

/// Very many queue pairs need more descriptors than the usual limit of 1024, and most of them when the guest's driver starts. Where
/// the limit stays, so does the machine that needs no more.
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
