//! Events other than those of front-ends: kicks of the control queue, the interface, broken rings.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use log::warn;
use volt_net::device::NetDevice;
use volt_net::port::Reopener;
use volt_net::port::watch::LinkWatch;
use volt_virtio::error_chain;
use volt_virtio::poller::{EventFlags, Poller};

use super::{RETRY, Server, ServerError, Token};
use crate::opener::Request;

/// Watches the interfaces' link state. Without it, the daemon also serves, but the guest always sees its link
/// up.
pub(super) fn watch_links(poller: &mut Poller<Token>) -> Option<LinkWatch> {
    let watch = LinkWatch::new().and_then(|watch| {
        poller.add(&watch, EventFlags::IN, Token::Links)?;
        Ok(watch)
    });
    let tell = |error: &io::Error| {
        warn!(event = "link_news_missing"; "cannot watch the interface's link state: {error}");
    };
    watch.inspect_err(tell).ok()
}

impl Server {
    /// Changes the device while its pairs are paused.
    pub(super) fn change_device(&mut self, change: impl FnOnce(&mut NetDevice)) -> Result<(), ServerError> {
        if let Some(connection) = &mut self.connection {
            connection.session.pause(&mut self.device)?;
        }
        change(&mut self.device);
        if let Some(connection) = &mut self.connection {
            connection.session.resume(&mut self.device);
        }
        // Not earlier: the resume delivers waiting frames, and the next process must not deliver them again.
        self.commit();
        Ok(())
    }

    pub(super) fn serve_control_queue(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let more = connection.session.control_kicked(&mut self.device);
        // Before the answer: the state must include all that the driver has been told.
        self.commit();
        let Some(connection) = &mut self.connection else { return };
        self.pending.control_queue = connection.session.answer_control() || more;
    }

    /// Watches the control queue's kick descriptor, as far as the front-end has set it up.
    pub(super) fn watch_control_queue(&mut self) -> Result<(), ServerError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let now = connection.session.control_kick();
        if now.map(Arc::as_ptr) == connection.control_kick.as_ref().map(Arc::as_ptr) {
            return Ok(());
        }
        if let Some(old) = connection.control_kick.take() {
            self.poller.remove(&*old)?;
        }
        if let Some(kick) = now {
            match self.poller.add(&**kick, EventFlags::IN, Token::ControlKick) {
                Ok(()) => connection.control_kick = Some(kick.clone()),
                Err(error) => warn!(
                    event = "control_queue_not_started";
                    "cannot wait for the control queue's kick descriptor: {error}"
                ),
            }
            // The driver may have kicked already.
            self.pending.control_queue = true;
        }
        Ok(())
    }

    /// Checks whether the interface is up, and tells the front-end of a change.
    pub(super) fn check_link(&mut self) {
        let Some(links) = &self.links else { return };
        links.clear();
        self.device.look_at_link();
        if self.device.port().is_gone() {
            self.reopen.get_or_insert_with(Instant::now);
        }
        if let Some(connection) = &mut self.connection
            && connection.session.tell_link(&self.device)
        {
            self.commit();
        }
    }

    /// Detaches pairs whose receive ring the driver broke, so that they get no more frames.
    pub(super) fn check_rings(&mut self) {
        if let Some(connection) = &mut self.connection
            && connection.session.leave_out_broken(&mut self.device)
        {
            self.commit();
        }
    }

    /// Asks the opener to reopen a deleted interface when it is time.
    pub(super) fn check_port(&mut self) -> Result<(), ServerError> {
        if self.port_asked.is_some() || self.reopen.is_none_or(|when| when > Instant::now()) {
            return Ok(());
        }
        self.reopen = None;
        let given = match self.device.reopening() {
            Reopener::Process(_, given) => given,
            Reopener::Port => {
                let opened = self.device.reopen_port();
                return self.port_is_open(opened);
            }
            Reopener::Nobody => {
                self.tell_lost_port();
                return Ok(());
            }
        };
        let asked = self.opener.ask_with(&Request::OpenPort, given).and_then(|asked| {
            self.poller.add(&asked, EventFlags::IN, Token::PortOpened)?;
            Ok(asked)
        });
        match asked {
            Ok(asked) => self.port_asked = Some(asked),
            Err(error) => self.port_not_opened(&error),
        }
        Ok(())
    }

    /// Adopts the interface that the opener has reopened.
    pub(super) fn port_opened(&mut self) -> Result<(), ServerError> {
        let Some(asked) = self.port_asked.take() else { return Ok(()) };
        self.poller.remove(&asked)?;
        let opened = asked.take().and_then(|queues| self.device.adopt_port(queues));
        self.port_is_open(opened)
    }

    /// Starts the pairs with the port's new queues, or tries again later.
    fn port_is_open(&mut self, opened: io::Result<()>) -> Result<(), ServerError> {
        match opened {
            Ok(()) => {
                self.reopen = None;
                self.reopen_failure.clear();
                if let Some(connection) = &mut self.connection {
                    connection.session.port_changed(&mut self.device)?;
                }
                self.commit();
            }
            Err(error) => self.port_not_opened(&error),
        }
        Ok(())
    }

    /// Tells once that the interface stays away.
    fn tell_lost_port(&mut self) {
        let why = "its descriptors came from --tap-fd or --xsk-fd";
        if self.reopen_failure != why {
            warn!(
                event = "interface_needs_restart", interface = self.device.port_name();
                "{}: the interface is gone and cannot be reopened, because {why}: restart the daemon with \
                 new ones",
                self.device.port_name()
            );
            self.reopen_failure = why.to_owned();
        }
    }

    fn port_not_opened(&mut self, error: &io::Error) {
        let failure = error_chain(error);
        // A peer that has not connected yet is no failure.
        if failure != self.reopen_failure && error.kind() != io::ErrorKind::WouldBlock {
            warn!(
                event = "interface_not_opened", interface = self.device.port_name();
                "cannot reopen {} yet: {failure}", self.device.port_name()
            );
            self.reopen_failure = failure;
        }
        self.reopen = Some(Instant::now() + RETRY);
    }
}
