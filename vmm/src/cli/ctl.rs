//! `volt-vmm ctl`: its commands, and the API request for each.

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

/// Control a running machine
#[derive(Debug, Parser)]
#[command(name = "volt-vmm ctl", bin_name = "volt-vmm ctl", version)]
pub struct Ctl {
    /// API socket of the machine (its --api-socket)
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/volt/vmm.api")]
    pub api_socket: PathBuf,

    /// Command
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// A command for a running machine.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum CtlCommand {
    /// Print the status of the machine and its devices
    Status(StatusOptions),
    /// Pause the guest until 'resume'. Its connections survive as long as their peers wait
    Pause,
    /// Resume a paused guest
    Resume,
    /// Change the rate limits of a network device. A limit that is not given stays as it is
    #[command(group = ArgGroup::new("change").args(["rx_rate", "tx_rate"]).required(true).multiple(true))]
    Limits {
        /// Device: its interface, or its number among the network devices, from 0
        net: String,
        /// Rate to the guest: 100Mbit, 1Gbit:256K, 20kpps, 100Mbit+20kpps, or none
        #[arg(long, value_name = "RATE")]
        rx_rate: Option<Rate>,
        /// Rate from the guest, in the same form
        #[arg(long, value_name = "RATE")]
        tx_rate: Option<Rate>,
    },
    /// Add a device while the guest runs. Needs '--transport pci'
    Add {
        /// Kind of device
        #[command(subcommand)]
        what: AddCommand,
    },
    /// Ask the guest to release a device, and remove it then
    Remove {
        /// Kind of device
        #[arg(value_name = "net|disk")]
        kind: KindArg,
        /// Device: its interface, socket or image, or its number among the devices of its kind, from 0
        name: String,
    },
    /// Press the power button. The guest decides what to do
    PowerButton,
    /// End the machine at once, without asking the guest
    Shutdown,
}

/// Output of `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct StatusOptions {
    /// Print JSON
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,

    /// Print again every SECONDS, with frame and bit rates, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub watch: Option<Duration>,
}

/// A device to add. `ctl` opens a disk itself if it can. The machine's process resolves all other paths,
/// relative to its own working directory.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum AddCommand {
    /// Add a network device
    Net {
        /// Interface or socket, with options as for --net
        #[arg(value_name = "KIND=WHERE[,mac=MAC][,mtu=N][,queues=N][,...]")]
        options: String,
    },
    /// Add a disk
    Disk {
        /// Image, with options as for --disk
        #[arg(value_name = "FILE[,ro][,format=raw]")]
        options: String,
    },
}

/// A kind of device that can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// Network device
    Net,
    /// Disk
    Disk,
}

impl CtlCommand {
    /// Returns the method of the API request.
    pub fn method(&self) -> Method {
        match self {
            CtlCommand::Status(_) => Method::GET,
            CtlCommand::Add { .. } => Method::POST,
            CtlCommand::Remove { .. } => Method::DELETE,
            _ => Method::PUT,
        }
    }

    /// Returns the path of the API request.
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

    /// Opens the disk to add with the caller's rights. Returns `None` for other commands, and for options
    /// that the machine will refuse.
    pub fn disk(&self) -> Option<Result<File, ImageError>> {
        let CtlCommand::Add { what: AddCommand::Disk { options } } = self else { return None };
        Some(open_file(&options.parse().ok()?))
    }

    /// Returns the body of the API request.
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
