//! Export of the daemon's state, and import by the next process.
//!
//! ```text
//! export -> state and descriptors -> (hand-over, supervisor, systemd's store) -> import -> resume
//! ```
//!
//! Before `resume`, the new process changes nothing. From `resume` on, it owns everything.

use std::io;
use std::os::fd::BorrowedFd;

use serde_json::value::{RawValue, to_raw_value};
use volt_net::device::RunState;
use volt_net::state::{Exporter, FdId, Format, Importer, StateError};
use volt_vhost_user::channel::Piece;

use super::{Server, ServerError};
use crate::connection::Connection;
use crate::own_file::OwnFile;
use crate::state::{ConnectionState, DaemonState, FinalState, program};

/// Descriptors of a state.
pub(super) type Fds<'a> = Vec<(FdId, BorrowedFd<'a>)>;

impl Server {
    /// Exports the daemon's state in this format, or in an older one that has everything.
    ///
    /// # Errors
    ///
    /// The reason why no other process can use the state.
    pub(super) fn export(&self, format: Format) -> Result<(Box<RawValue>, Fds<'_>), String> {
        let mut out = Exporter::default();
        let filter = self.device.filter();
        let port = self.device.port().export(&mut out).ok_or("its interface cannot be handed over")?;
        let format = format.with_only(filter.is_some(), port.is_recent());
        if port.is_recent() && !format.has_recent_ports() {
            let why = "its port is one of --stream, --dgram and --xdp, which this format does not contain";
            return Err(why.to_owned());
        }
        if filter.is_some() && !format.has_filter() {
            return Err("it filters its guest's frames, which this format does not contain".to_owned());
        }
        let state = DaemonState {
            format,
            program: program(),
            take_overs: self.take_overs,
            device: self.device.export(format, &mut out),
            filter: filter.map(|filter| filter.export(&mut out)),
            port,
            port_file: self.port_file.as_ref().map(OwnFile::export),
            max_ring_size: self.max_ring_size,
            endpoint: self.endpoint.export(&mut out),
            control: self.control.as_ref().map(|control| control.export(&mut out)),
            metrics: self.metrics.as_ref().map(|metrics| metrics.export(&mut out)),
            connection: self.connection.as_ref().map(|connection| connection.export(&mut out)),
            run_state: self.device.run_state(format),
        };
        let state =
            to_raw_value(&state).map_err(|error| format!("cannot write the daemon's state: {error}"))?;
        Ok((state, out.into_fds()))
    }

    /// Continues the predecessor's counters.
    pub(crate) fn import_counters(&mut self, id: FdId, from: &mut Importer) -> Result<(), StateError> {
        self.device.import_counters(id, from)
    }

    /// Imports the connection of a state. Its rings stay stopped.
    pub(crate) fn import(
        &mut self,
        connection: Option<ConnectionState>,
        read: Vec<Piece>,
        run_state: RunState,
        take_overs: u64,
        from: &mut Importer,
    ) -> Result<(), StateError> {
        self.take_overs = take_overs;
        self.device.set_run_state(run_state);
        let import = |state| Connection::import(state, from, &self.device, self.max_ring_size);
        self.connection = connection.map(import).transpose()?;
        if let Some(connection) = &mut self.connection {
            let added = read.into_iter().try_for_each(|piece| connection.channel.add(piece));
            self.drop_connection |= added.is_err();
        }
        Ok(())
    }

    /// Makes [`resume`](Self::resume) close the imported connection, if `drop`.
    pub(crate) fn drop_connection_on_resume(&mut self, drop: bool) {
        self.drop_connection |= drop;
    }

    /// Reports that this daemon is ready, and waits for the supervisor to start it.
    pub(crate) fn wait_for_start(&self) -> io::Result<FinalState> {
        self.supervisor.as_ref().ok_or(io::ErrorKind::NotConnected)?.wait_for_start()
    }

    /// Returns the name of the interface.
    pub(crate) fn port_name(&self) -> &str {
        self.device.port_name()
    }

    /// Starts everything that ran in the previous process.
    pub(crate) fn resume(&mut self, last: Option<FinalState>) -> Result<(), ServerError> {
        self.device.own_port();
        self.endpoint.own();
        self.port_file.iter_mut().for_each(OwnFile::own);
        if let Some(control) = &mut self.control {
            control.own();
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.own();
        }
        if let Some(last) = &last
            && let Some(connection) = &mut self.connection
        {
            connection.session.set_broken(&last.broken);
        }
        if let Some(last) = last {
            self.device.set_run_state(last.run_state);
            self.take_overs += 1;
        }
        self.watch_connection()?;
        if std::mem::take(&mut self.drop_connection) {
            return self.disconnect("a request kills this daemon, or was lost with the previous process");
        }
        if let Some(connection) = &mut self.connection {
            connection.session.resume(&mut self.device);
        }
        self.commit();
        Ok(())
    }
}
