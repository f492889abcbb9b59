//! epoll with tokens that are an enum of the caller's.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::Timespec;
pub use rustix::event::epoll::EventFlags;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};

/// Most events taken in one call.
const EVENTS: usize = 16;

/// An epoll instance whose descriptors are told apart by a `T`.
#[derive(Debug)]
pub struct Poller<T> {
    epoll: std::os::fd::OwnedFd,
    tokens: Vec<T>,
}

impl<T: Copy + PartialEq> Poller<T> {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Poller<T>> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)?, tokens: Vec::new() })
    }

    /// Reports `events` of `fd` as `token` from now on.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` for a descriptor that cannot be waited for, such as a regular file's.
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
    /// When it was not added.
    pub fn remove(&mut self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits until something happens or `timeout` is over, for ever without one, and calls `each` with what
    /// happened. A signal ends the wait with nothing.
    ///
    /// # Errors
    ///
    /// Only for a broken epoll instance.
    pub fn wait(&self, timeout: Option<Duration>, mut each: impl FnMut(T, EventFlags)) -> io::Result<()> {
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let mut events = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((happened, _)) => {
                for event in happened {
                    // A packed field: copied out before it is used.
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
