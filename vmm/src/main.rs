//! volt-vmm: a minimal virtual machine monitor on KVM.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use log::error;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use volt_vmm::api::client;
use volt_vmm::cli::{Ctl, Invocation};
use volt_vmm::exit::{ExitEvent, status};
use volt_vmm::virtio::faults::chain;
use volt_vmm::{builder, cli, signals, terminal};

fn main() -> ExitCode {
    let args = match cli::parse(std::env::args_os()) {
        Ok(Invocation::Run(args)) => *args,
        Ok(Invocation::Ctl(ctl)) => return ask(&ctl),
        Err(error) => error.exit(),
    };
    env_logger::Builder::new().filter_level(args.log_level()).format_timestamp_millis().init();
    end_on_panic();
    match run(args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            error!("{}", chain(&*error));
            ExitCode::from(status::ERROR)
        }
    }
}

fn ask(ctl: &Ctl) -> ExitCode {
    let Ctl { api_socket, request } = ctl;
    match client::ask(api_socket, request.method(), &request.path(), request.body().as_ref()) {
        Ok(answer) => {
            // A reader that has seen enough is no error.
            let _ = writeln!(std::io::stdout(), "{answer:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("volt-vmm: {}", chain(&error));
            ExitCode::from(status::ERROR)
        }
    }
}

fn run(args: cli::Args) -> Result<u8, Box<dyn std::error::Error>> {
    terminal::restore_on_fatal_signals()?;
    let exit = Arc::new(ExitEvent::new()?);
    signals::watch(Arc::clone(&exit))?;
    raise_limit();
    let machine = builder::build(&args.into_config(), exit)?;
    Ok(machine.run()?)
}

/// Very many queue pairs need more descriptors than the usual limit of 1024, and most of them when the guest's driver starts. Where
/// the limit stays, so does the machine that needs no more.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// A panic in any thread ends the process, with the terminal as it was and the message readable.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        terminal::restore();
        print(panic);
        std::process::exit(status::PANIC.into());
    }));
}
