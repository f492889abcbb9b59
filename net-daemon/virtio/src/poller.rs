//! epoll with tokens of a caller's type.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::Timespec;
pub use rustix::event::epoll::EventFlags;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};

/// Maximum number of events in one call.
const EVENTS: usize = 16;

/// An epoll instance that identifies descriptors by a `T`.
#[derive(Debug)]
pub struct Poller<T> {
    epoll: std::os::fd::OwnedFd,
    tokens: Vec<T>,
}

impl<T: Copy + PartialEq> Poller<T> {
    /// Creates an empty instance.
    ///
    /// # Errors
    ///
    /// Fails if the process has no descriptor left.
    pub fn new() -> io::Result<Poller<T>> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)?, tokens: Vec::new() })
    }

    /// Reports `events` of `fd` as `token` from now on.
    ///
    /// # Errors
    ///
    /// Returns `PermissionDenied` for a descriptor that does not support waiting, such as that of a regular
    /// file.
    pub fn add(&mut self, fd: impl AsFd, events: EventFlags, token: T) -> io::Result<()> {
        let index = self.tokens.iter().position(|known| *known == token).unwrap_or_else(|| {
            self.tokens.push(token);
            self.tokens.len() - 1
        });
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(index as u64), events)?)
    }

    /// Stops reporting `fd`.
    ///
    /// # Errors
    ///
    /// Fails if it was not added.
    pub fn remove(&mut self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits for events, for at most `timeout` (`None`: without limit), and calls `each` with each event. A
    /// signal ends the wait without events.
    ///
    /// # Errors
    ///
    /// Fails only for a broken epoll instance.
    pub fn wait(&self, timeout: Option<Duration>, mut each: impl FnMut(T, EventFlags)) -> io::Result<()> {
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let mut events = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((happened, _)) => {
                for event in happened {
                    // A packed field: copy it before use.
                    let (data, flags) = (event.data, event.flags);
                    if let Some(token) = self.tokens.get(data.u64() as usize) {
                        each(*token, flags);
                    }
                }
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
