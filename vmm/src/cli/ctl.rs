//! `volt-vmm ctl`: what a running machine is asked, and how the API is asked for it.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use volt_http::Method;
use volt_net::limiter::Rate;
use volt_program::watch::interval;

use crate::api::path::encode;
use crate::virtio::blk::image::{ImageError, open_file};

/// Talk to a machine that runs
#[derive(Debug, Parser)]
#[command(name = "volt-vmm ctl", bin_name = "volt-vmm ctl", version)]
pub struct Ctl {
    /// The machine's --api-socket
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/volt/vmm.api")]
    pub api_socket: PathBuf,

    /// What it is asked
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What a running machine is asked.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum CtlCommand {
    /// Print how the machine and its devices are
    Status(StatusOptions),
    /// Stop the guest where it is, until 'resume'; its connections wait as long as their far ends do
    Pause,
    /// Go on after 'pause'
    Resume,
    /// Change what a network device may receive and send; what is not given stays as it is
    #[command(group = ArgGroup::new("change").args(["rx_rate", "tx_rate"]).required(true).multiple(true))]
    Limits {
        /// The device: its interface, or its number among the network devices, from 0
        net: String,
        /// What the guest receives: like 100Mbit, 1Gbit:256K, 20kpps or 100Mbit+20kpps; or none
        #[arg(long, value_name = "RATE")]
        rx_rate: Option<Rate>,
        /// What the guest sends
        #[arg(long, value_name = "RATE")]
        tx_rate: Option<Rate>,
    },
    /// Add a device while the guest runs, which takes '--transport pci'
    Add {
        /// What is added
        #[command(subcommand)]
        what: AddCommand,
    },
    /// Ask the guest for a device, and take it away when the guest has given it back
    Remove {
        /// What is removed
        #[arg(value_name = "net|disk")]
        kind: KindArg,
        /// The device: its interface, socket or image, or its number among those of its kind, from 0
        name: String,
    },
    /// Press the power button: what the guest makes of it is its affair
    PowerButton,
    /// End the machine at once, without asking the guest
    Shutdown,
}

/// How the status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct StatusOptions {
    /// As JSON, for programs
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,

    /// Again every so many seconds, with frames and bits a second, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub watch: Option<Duration>,
}

/// A device to be added. A disk is opened here, where that is possible; other paths are those that the
/// machine's process sees from where it was started.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum AddCommand {
    /// A network device
    Net {
        /// As with --net
        #[arg(value_name = "KIND=WHERE[,mac=MAC][,mtu=N][,queues=N][,...]")]
        options: String,
    },
    /// A disk
    Disk {
        /// As with --disk
        #[arg(value_name = "FILE[,ro][,format=raw]")]
        options: String,
    },
}

/// Kinds of devices that can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// A network device
    Net,
    /// A disk
    Disk,
}

impl CtlCommand {
    /// How the API is asked for it.
    pub fn method(&self) -> Method {
        match self {
            CtlCommand::Status(_) => Method::GET,
            CtlCommand::Add { .. } => Method::POST,
            CtlCommand::Remove { .. } => Method::DELETE,
            _ => Method::PUT,
        }
    }

    /// Where the API is asked for it.
    pub fn path(&self) -> String {
        let path = match self {
            CtlCommand::Add { what: AddCommand::Net { .. } } => "net",
            CtlCommand::Add { what: AddCommand::Disk { .. } } => "disk",
            CtlCommand::Remove { kind: KindArg::Net, name } => return format!("/v1/net/{}", encode(name)),
            CtlCommand::Remove { kind: KindArg::Disk, name } => return format!("/v1/disk/{}", encode(name)),
            CtlCommand::Status(_) => "status",
            CtlCommand::Pause => "pause",
            CtlCommand::Resume => "resume",
            CtlCommand::Limits { net, .. } => return format!("/v1/net/{}/limits", encode(net)),
            CtlCommand::PowerButton => "power-button",
            CtlCommand::Shutdown => "shutdown",
        };
        format!("/v1/{path}")
    }

    /// The disk to be added, opened with the rights of whoever asks. `None` where there is none, or its
    /// options are for the machine to refuse.
    pub fn disk(&self) -> Option<Result<File, ImageError>> {
        let CtlCommand::Add { what: AddCommand::Disk { options } } = self else { return None };
        Some(open_file(&options.parse().ok()?))
    }

    /// What goes with it.
    pub fn body(&self) -> Option<Value> {
        match self {
            CtlCommand::Limits { rx_rate, tx_rate, .. } => {
                let rates = [("rx_rate", rx_rate), ("tx_rate", tx_rate)].into_iter();
                let given =
                    rates.filter_map(|(name, rate)| Some((name.to_owned(), (*rate)?.to_string().into())));
                Some(Value::Object(given.collect::<Map<_, _>>()))
            }
            CtlCommand::Add { what: AddCommand::Net { options } | AddCommand::Disk { options } } => {
                Some(json!({ "options": options }))
            }
            _ => None,
        }
    }
}
