//! Builds a daemon from the command line or from a state, and runs it.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use log::{info, warn};
use thiserror::Error;
use volt_net::config::Mac;
use volt_net::crash_note::{CrashNote, CrashNotes, REQUESTS, Watches};
use volt_net::device::{DeviceOptions, NetDevice};
use volt_net::filter::DeviceFilter;
use volt_net::limiter::RateLimits;
use volt_net::port::import::import as import_port;
use volt_net::port::xdp::XdpFds;
use volt_net::port::{Port, Reopener};
use volt_net::state::{FdId, Importer};
use volt_program::display::of;
use volt_program::opener::{Opener, WirePath};
use volt_program::signals::SignalSet;
use volt_vhost_user::channel::Piece;
use volt_virtio::error_chain;
use volt_virtio::notify::Notifier;

use crate::cli::{Cli, NO_CONTROL};
use crate::endpoint::{Endpoint, Listener};
use crate::filter::Wanted;
use crate::handover::Predecessor;
use crate::inquiry::{self, Respondent};
use crate::metrics::listener::MetricsListener;
use crate::opener::{Duties, Request};
use crate::own_file::OwnFile;
use crate::sandbox;
use crate::server::{End, Parts, Server};
use crate::signals::{self, Signals};
use crate::state::{DaemonState, FinalState};
use crate::supervision::Line;

mod open;

use open::{open_endpoint, open_metrics, open_port, private, usual_control};

/// The permission that a group needs to connect to a socket.
const WRITE_BY_GROUP: u32 = 0o020;

pub(crate) type AnyError = Box<dyn Error>;

/// Descriptors and files named on the command line.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) tap: Vec<OwnedFd>,
    pub(crate) xdp: Option<XdpFds>,
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) filter: Option<Wanted>,
}

/// The state of another process.
#[derive(Debug)]
pub(crate) struct Inheritance {
    pub(crate) state: String,
    pub(crate) fds: BTreeMap<FdId, OwnedFd>,
    /// The bytes of replies that the front-end has not accepted, if they differ from those in the state.
    pub(crate) unsent: Option<Vec<u8>>,
    /// Messages received on the connection since the state was written.
    pub(crate) read: Vec<Piece>,
    /// Close the connection: its next request has killed two processes.
    pub(crate) drop_connection: bool,
    /// The command line's filter, if it is to replace the state's.
    pub(crate) filter: Option<Wanted>,
    /// The part of the state known only after the predecessor stopped, if the state lacks it.
    pub(crate) last: Option<FinalState>,
}

/// The origin of a daemon's state.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The command line.
    Fresh(Given),
    /// A dead process.
    Dead(Inheritance),
    /// A running process, which stops when this one reports that it is ready.
    Running(Inheritance, GoSignal),
}

/// The process that tells a successor to start.
#[derive(Debug)]
pub(crate) enum GoSignal {
    /// The predecessor.
    Direct(Predecessor),
    /// The supervisor, which has asked the predecessor.
    Supervisor,
}

/// The supervisor's part of a worker's start.
#[derive(Debug)]
pub(crate) struct Supervision {
    pub(crate) supervisor: Line,
    pub(crate) notes: CrashNotes,
    /// Descriptor chains to return unserved, by vring.
    pub(crate) deadly: BTreeMap<usize, u16>,
    pub(crate) restarts: u64,
    pub(crate) leave: bool,
    /// Signals that the worker blocks because the supervisor handles them: systemd and terminals send them to
    /// every process.
    pub(crate) blocked: SignalSet,
    /// The lines on which the supervisor and its metrics server query the worker.
    pub(crate) inquiries: Vec<Respondent>,
}

/// A state that another worker could not use either.
#[derive(Debug, Error)]
#[error("the state of the previous process cannot be used")]
pub(crate) struct Unusable(#[source] AnyError);

/// Runs a daemon until it ends.
pub(crate) fn run(
    cli: &Cli,
    origin: Origin,
    opener: Arc<Opener>,
    supervision: Option<Supervision>,
) -> Result<End, AnyError> {
    let mut ending = signals::ending();
    ending.extend(supervision.is_some().then_some(signals::END.as_raw()));
    let signals = Signals::watch(&ending)?;
    if supervision.is_some() {
        SignalSet::of(&signals::OF_A_WORKER).unblock()?;
    }
    let supervision = Supervised::by(opener, supervision);
    match origin {
        Origin::Fresh(given) => {
            let server = fresh(cli, given, supervision, signals)?;
            sandbox::confine(&ending)?;
            Ok(server.run()?)
        }
        Origin::Dead(mut inheritance) => {
            let last = inheritance.last.take();
            let mut server = import(cli, inheritance, supervision, signals).map_err(Unusable)?;
            sandbox::confine(&ending)?;
            server.resume(last)?;
            Ok(server.run()?)
        }
        Origin::Running(inheritance, go_signal) => {
            let mut server = match import(cli, inheritance, supervision, signals) {
                Ok(server) => server,
                Err(error) => {
                    if let GoSignal::Direct(predecessor) = go_signal {
                        predecessor.give_up(&error_chain(&*error));
                    }
                    return Err(error);
                }
            };
            sandbox::confine(&ending)?;
            let last = match go_signal {
                GoSignal::Direct(predecessor) => predecessor.wait_for_go()?,
                GoSignal::Supervisor => server.wait_for_start()?,
            };
            server.resume(Some(last))?;
            Ok(server.run()?)
        }
    }
}

/// The supervisor's part of a [`Server`]; empty without a supervisor.
struct Supervised {
    opener: Arc<Opener>,
    supervisor: Option<Line>,
    watches: Option<Watches>,
    request: Option<CrashNote>,
    restarts: u64,
    leave: bool,
    blocked: SignalSet,
    inquiries: Vec<Respondent>,
}

impl Supervised {
    fn by(opener: Arc<Opener>, supervision: Option<Supervision>) -> Supervised {
        let Some(Supervision { supervisor, notes, deadly, restarts, leave, blocked, inquiries }) =
            supervision
        else {
            let blocked = SignalSet::of(&[]);
            return Supervised {
                opener,
                supervisor: None,
                watches: None,
                request: None,
                restarts: 0,
                leave: false,
                blocked,
                inquiries: Vec::new(),
            };
        };
        let request = Some(notes.note(REQUESTS));
        let watches = Some(Watches::new(notes, deadly));
        Supervised {
            opener,
            supervisor: Some(supervisor),
            watches,
            request,
            restarts,
            leave,
            blocked,
            inquiries,
        }
    }
}

fn fresh(cli: &Cli, given: Given, supervised: Supervised, signals: Signals) -> Result<Server, AnyError> {
    let pairs = cli.pairs();
    let (port, port_file) = open_port(cli, given.tap, given.xdp)?;
    advise(cli, &*port);
    let endpoint = open_endpoint(cli, given.socket)?;
    let control = match &cli.control {
        Some(path) if path == Path::new(NO_CONTROL) => None,
        Some(path) => Some(Listener::bind(path, &private())?),
        None => usual_control(port.name()),
    };
    let metrics = open_metrics(cli)?;
    let mac = cli.mac.or(port.mac()).map_or_else(Mac::random, Ok)?;
    let options = DeviceOptions { pairs, mac, mtu: cli.mtu };
    let wanted = given.filter.as_ref();
    let filter = wanted.map(|wanted| wanted.filter(mac, None)).transpose()?;
    let guarded = wanted.zip(filter.as_ref()).map(|(wanted, filter)| wanted.describe(filter));
    let guarded = guarded.map_or(String::new(), |guarded| format!(", {guarded}"));
    let described = format!("offering MAC {mac}, {}{guarded}", endpoint.describe());
    let limits = RateLimits { rx: cli.rx_rate.unwrap_or_default(), tx: cli.tx_rate.unwrap_or_default() };
    let sockets = Sockets { endpoint, port_file, control, metrics };
    let mut server = build(port, options, sockets, cli.queue_size, supervised, signals)?;
    server.set_limits(limits);
    server.set_busy_poll(cli.busy_poll_us);
    server.set_filter(filter);
    info!(
        event = "started", interface = server.port_name(), pairs;
        "{} with {}, {described}", server.port_name(), of(pairs.into(), "queue pair")
    );
    Ok(server)
}

/// Warns of options that are valid, but probably unintended.
fn advise(cli: &Cli, port: &dyn Port) {
    let name = port.name();
    if port.is_up() == Some(false) {
        warn!(
            event = "interface_down", interface = name;
            "{name} is down, so it passes no frames: ip link set {name} up"
        );
    }
    if let (Some(told), Some(mtu)) = (cli.mtu, port.mtu())
        && told > mtu
    {
        warn!(
            event = "mtu_exceeds_interface", interface = name, mtu = told;
            "the guest is offered an MTU of {told}, but {name} has {mtu} and drops longer packets: \
             ip link set {name} mtu {told}"
        );
    }
    if let Some(group) = &cli.socket_group
        && cli.socket_mode & WRITE_BY_GROUP == 0
    {
        warn!(
            event = "socket_group_useless";
            "--socket-group {group} has no effect without write permission for the group: --socket-mode 0660"
        );
    }
}

/// Builds a daemon from another process's state. Changes nothing that the other process uses.
fn import(
    cli: &Cli,
    inheritance: Inheritance,
    supervised: Supervised,
    signals: Signals,
) -> Result<Server, AnyError> {
    let mut state = DaemonState::parse(&inheritance.state)?;
    let mut from = Importer::new(inheritance.fds);
    let port = import_port(state.port, &mut from)?;
    let device = &state.device;
    let options = DeviceOptions { pairs: device.pairs, mac: Mac(device.mac), mtu: device.mtu };
    let endpoint = Endpoint::import(state.endpoint, &mut from)?;
    let port_file = state.port_file.map(OwnFile::import);
    let control = match state.control {
        Some(control) => Some(Listener::import(control, &mut from)?),
        // An older daemon, from before control sockets, wrote the state.
        None if cli.control.is_none() && supervised.restarts == 0 => usual_control(port.name()),
        None => None,
    };
    let metrics = match state.metrics {
        Some(metrics) => Some(MetricsListener::import(metrics, &mut from)?),
        // The predecessor served no metrics.
        None => open_metrics(cli)?,
    };
    if let Some(connection) = &mut state.connection
        && let Some(unsent) = inheritance.unsent
    {
        connection.channel.unsent = unsent;
    }
    let before = state.filter.map(|filter| DeviceFilter::import(filter, &mut from)).transpose()?;
    let filter = match &inheritance.filter {
        Some(wanted) => {
            // Under QEMU, the offered address is often a random one that no guest has.
            let guarded = before.as_ref().map(|before| Mac(before.filter().setup().mac));
            let mac = cli.mac.or(guarded).unwrap_or(options.mac);
            Some(wanted.filter(mac, before.as_ref())?)
        }
        None => before,
    };
    let (limits, busy_poll_us, counters) = (device.limits, device.busy_poll_us, device.counters);
    let sockets = Sockets { endpoint, port_file, control, metrics };
    let mut server = build(port, options, sockets, state.max_ring_size, supervised, signals)?;
    server.set_limits(limits);
    server.set_busy_poll(busy_poll_us);
    if let Some((wanted, filter)) = inheritance.filter.as_ref().zip(filter.as_ref()) {
        let guarded = wanted.describe(filter);
        info!(event = "filter_set", interface = server.port_name(); "{}: {guarded}", server.port_name());
    }
    server.set_filter(filter);
    if let Some(counters) = counters {
        server.import_counters(counters, &mut from)?;
    }
    server.import(state.connection, inheritance.read, state.run_state, state.take_overs, &mut from)?;
    server.drop_connection_on_resume(inheritance.drop_connection);
    Ok(server)
}

fn build(
    port: Box<dyn Port>,
    options: DeviceOptions,
    sockets: Sockets,
    max_ring_size: u16,
    supervised: Supervised,
    signals: Signals,
) -> Result<Server, AnyError> {
    let Supervised { opener, supervisor, watches, request, restarts, leave, blocked, mut inquiries } =
        supervised;
    let Sockets { mut endpoint, mut port_file, mut control, mut metrics } = sockets;
    let of_metrics = metrics.as_mut().and_then(MetricsListener::with_file);
    let files = endpoint.listener().into_iter().chain(&mut control).chain(of_metrics);
    let files = files.filter_map(|listener| listener.removed_by(&opener));
    let duties = Duties {
        port: match port.reopening() {
            Reopener::Process(what, _) => Some(what),
            Reopener::Port | Reopener::Nobody => None,
        },
        files: files.chain(port_file.iter_mut().map(|file| file.removed_by(&opener))).collect(),
        frontend: endpoint.frontend().map(|path| WirePath(path.to_owned())),
        supervised: supervisor.is_some(),
    };
    match opener.ask(&Request::Entrust(duties)).and_then(|asked| asked.take()) {
        // A restarted worker serves its guest even without the opener.
        Err(error) if restarts > 0 => warn!(
            event = "opener_gone";
            "the opener is gone: this daemon cannot reopen its interface, reconnect (--client) or remove its \
             sockets; replace it with --take-over: {error}"
        ),
        told => drop(told?),
    }
    let mut asker = None;
    if metrics.is_some() {
        let (own, respondent) = inquiry::line()?;
        asker = Some(own);
        inquiries.push(respondent);
    }
    let wake = Arc::new(Notifier::eventfd()?);
    let mut device = NetDevice::new(port, options, wake.clone())?;
    if let Some(watches) = watches {
        device.watched_by(watches);
    }
    let parts = Parts {
        device,
        wake,
        max_ring_size,
        endpoint,
        port_file,
        control,
        metrics,
        asker,
        inquiries,
        opener,
        supervisor,
        blocked,
        drop_connection: false,
        request,
        leave,
        restarts,
        signals,
    };
    Ok(Server::new(parts)?)
}

/// The daemon's sockets.
struct Sockets {
    endpoint: Endpoint,
    /// The file of the port's own socket.
    port_file: Option<OwnFile>,
    control: Option<Listener>,
    metrics: Option<MetricsListener>,
}
