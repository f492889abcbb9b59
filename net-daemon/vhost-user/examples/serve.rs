//! Serves vhost-user front-ends on the socket that the first argument names, one after the other.
//! Returns each frame of the guest to the guest.
use std::error::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;

use volt_net::builder::VirtioNetBuilder;
use volt_net::device::NetDevice;
use volt_net::port::MAX_FRAME_LEN;
use volt_net::port::socket::SocketPort;
use volt_net::volt_virtio::notify::Notifier;
use volt_net::volt_virtio::poller::{EventFlags, Poller};
use volt_vhost_user::channel::Channel;
use volt_vhost_user::session::{Session, SessionError};

const MAX_RING_SIZE: u16 = 1024;

#[derive(Clone, Copy, PartialEq)]
enum Token {
    FrontEnd,
    Device,
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: serve SOCKET")?;

    // The port: frames leave and arrive at `far`, each behind its 12-byte virtio-net header.
    let (near, far) = UnixDatagram::pair()?;
    std::thread::spawn(move || echo(&far));
    let port = SocketPort::new(vec![OwnedFd::from(near)])?;

    let wake = Arc::new(Notifier::eventfd()?);
    let builder = VirtioNetBuilder::over(port).wake(wake.clone());
    let mut device = builder.build()?.into_device();

    let listener = UnixListener::bind(path)?;
    loop {
        let (stream, _) = listener.accept()?;
        match serve(stream, &mut device, &wake) {
            // A worker did not stop: this process cannot serve guest memory safely any more.
            Err(error) if error.downcast_ref::<SessionError>().is_some() => return Err(error),
            Err(error) => eprintln!("front-end gone: {error}"),
            Ok(()) => {}
        }
    }
}

/// One front-end, from its first message to its last.
fn serve(stream: UnixStream, device: &mut NetDevice, wake: &Notifier) -> Result<(), Box<dyn Error>> {
    let mut channel = Channel::new(stream)?;
    let mut session = Session::new(device, MAX_RING_SIZE);
    let mut poller = Poller::new()?;
    let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    poller.add(&channel, edges, Token::FrontEnd)?;
    poller.add(wake, EventFlags::IN, Token::Device)?;
    let end = loop {
        let mut woken = false;
        poller.wait(None, |token, _| woken |= token == Token::Device)?;
        if woken {
            wake.clear();
            session.leave_out_broken(device);
        }
        match messages(&mut channel, &mut session, device) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    session.close(device).map_err(SessionError::Device)?;
    Err(end)
}

/// Carries out the messages that have arrived.
fn messages(
    channel: &mut Channel,
    session: &mut Session,
    device: &mut NetDevice,
) -> Result<(), Box<dyn Error>> {
    while channel.flush()? {
        let Some(message) = channel.receive()? else { break };
        match session.handle(message, device) {
            Ok(Some(reply)) => channel.send(&reply)?,
            Ok(None) => {}
            Err(error @ SessionError::Refused { .. }) => return Err(error.to_string().into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn echo(far: &UnixDatagram) {
    let mut frame = vec![0; MAX_FRAME_LEN];
    while let Ok(len) = far.recv(&mut frame) {
        let _ = far.send(&frame[..len]);
    }
}
