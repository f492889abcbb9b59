//! Opens what the command line names: the interface, and the sockets.

use std::os::fd::OwnedFd;

use log::{info, warn};
use volt_net::port::Port;
use volt_net::port::macvtap::Macvtap;
use volt_net::port::peer::PeerPort;
use volt_net::port::peer_options::PeerOptions;
use volt_net::port::reopening::open_again;
use volt_net::port::tap::{Tap, TapOptions};
use volt_net::port::xdp::{Xdp, XdpFds};
use volt_program::unix::{Access, bind, bind_datagram, check_path};
use volt_virtio::error_chain;

use super::AnyError;
use crate::cli::Cli;
use crate::endpoint::{Endpoint, EndpointError, Listener};
use crate::metrics::listener::MetricsListener;
use crate::own_file::OwnFile;
use crate::runtime::Runtime;
use crate::sandbox;

pub(super) fn open_metrics(cli: &Cli) -> Result<Option<MetricsListener>, AnyError> {
    let Some(address) = &cli.metrics else { return Ok(None) };
    let metrics = MetricsListener::open(address, sandbox::user())?;
    info!(event = "metrics_served", place:% = metrics; "serving metrics at {metrics}");
    Ok(Some(metrics))
}

/// Opens the port. Also returns the file of the port's socket, if it creates one.
pub(super) fn open_port(
    cli: &Cli,
    fds: Vec<OwnedFd>,
    xdp: Option<XdpFds>,
) -> Result<(Box<dyn Port>, Option<OwnFile>), AnyError> {
    if let Some(peer) = cli.peer() {
        return open_peer(peer);
    }
    if let Some(fds) = xdp {
        return Ok((Box::new(Xdp::from_fds(fds)?), None));
    }
    if let Some(xdp) = &cli.xdp {
        return Ok((Box::new(Xdp::open(xdp.options(cli.pairs()))?), None));
    }
    let port: Box<dyn Port> = match (&cli.tap, &cli.macvtap) {
        (Some(name), _) => Box::new(Tap::open(TapOptions {
            name: name.clone(),
            queues: cli.pairs().into(),
            persist: cli.persist,
            mtu: cli.mtu,
            owner: sandbox::user(),
        })?),
        (None, Some(name)) => Box::new(Macvtap::open(name, cli.pairs().into())?),
        (None, None) => Box::new(Tap::from_fds(fds)?),
    };
    Ok((port, None))
}

fn open_peer(options: PeerOptions) -> Result<(Box<dyn Port>, Option<OwnFile>), AnyError> {
    let (own, file) = match &options {
        PeerOptions::Stream(stream) if stream.listen => {
            let (listener, file) = bind(&stream.path, &private())?;
            (Some(listener.into()), Some(file))
        }
        PeerOptions::Stream(_) => (None, None),
        PeerOptions::Datagram(datagram) => {
            let (socket, file) = bind_datagram(&datagram.local, &private())?;
            (Some(socket), Some(file))
        }
    };
    // Owned first, so that an error removes it.
    let file = file.map(OwnFile::new);
    check_path(options.path())?;
    Ok((Box::new(PeerPort::open(options, own, open_again)?), file))
}

/// Opens the control socket at its default path, where `volt-netd ctl` looks for it. The daemon also runs
/// without one.
pub(super) fn usual_control(interface: &str) -> Option<Listener> {
    let runtime = Runtime::of_this_process();
    let Some(path) = runtime.control(interface) else {
        info!(
            event = "no_control_socket", interface;
            "no control socket: neither $RUNTIME_DIRECTORY nor $XDG_RUNTIME_DIR names a directory; \
             use --control PATH"
        );
        return None;
    };
    let bound = runtime.make_directory().map_err(EndpointError::System);
    let bound = bound.and_then(|()| Listener::bind(&path, &private()));
    let tell = |error: &EndpointError| {
        warn!(
            event = "no_control_socket", interface, path:% = path.display();
            "no control socket at {}: {}; use --control PATH for another path, or --control none",
            path.display(), error_chain(error)
        );
    };
    bound.inspect_err(tell).ok()
}

/// Returns the permissions of a socket for the daemon's user only.
pub(super) fn private() -> Access {
    Access { user: sandbox::user(), ..Access::PRIVATE }
}

pub(super) fn open_endpoint(cli: &Cli, fd: Option<OwnedFd>) -> Result<Endpoint, AnyError> {
    let access = Access { mode: cli.socket_mode, group: cli.socket_group.clone(), user: sandbox::user() };
    Ok(match (&cli.socket, fd) {
        (Some(path), _) if cli.client => Endpoint::client(path)?,
        (Some(path), _) => Endpoint::Listen(Listener::bind(path, &access)?),
        (None, Some(fd)) => Endpoint::from_fd(fd)?,
        (None, None) => unreachable!("checked before"),
    })
}
