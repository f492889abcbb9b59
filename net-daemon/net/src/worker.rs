//! The thread of one queue pair. It owns the pair while it runs, and returns it when it is stopped.
//!
//! Without work it sleeps until a kick or a frame wakes it. With busy polling, it polls for a while before it
//! sleeps: see [`Polling`].

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{error, warn};
use volt_virtio::notify::Notifier;
use volt_virtio::poller::{EventFlags, Poller};

use crate::batch::Turn;
use crate::config::Mac;
use crate::pair::Pair;
use crate::report::PairReport;
pub use crate::thread::WorkerError;
use crate::thread::prepare_signal;
use crate::thread::{LIMIT, ThreadKind, ends_within, interrupted_until, started};
use crate::vring::NO_KICK;
use crate::vring::Vring;

/// Events that a worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Order,
    Port,
    RxKick,
    TxKick,
    /// The port may be usable again: see [`PortQueue::wakers`](crate::port::PortQueue::wakers).
    Waker,
}

/// Orders to a running worker.
#[derive(Debug)]
enum Order {
    Stop,
    /// Use another call descriptor for a vring, and confirm it.
    SetCall {
        vring: usize,
        call: Option<Arc<Notifier>>,
        done: SyncSender<()>,
    },
    /// Report on the rings.
    Report(SyncSender<PairReport>),
    /// Announce the guest's address on the network.
    Announce(Mac),
}

/// A running queue pair.
#[derive(Debug)]
pub struct Worker {
    thread: JoinHandle<Pair>,
    orders: Sender<Order>,
    /// Notified of each order.
    ordered: Arc<Notifier>,
    stuck: bool,
}

impl Worker {
    /// Starts a thread called `name` that runs `pair`. It polls for `polling` before it sleeps.
    ///
    /// # Errors
    ///
    /// Returns the pair if it cannot run.
    pub fn start(name: String, pair: Pair, polling: Duration) -> Result<Worker, (WorkerError, Box<Pair>)> {
        let ready = || -> Result<_, WorkerError> {
            prepare_signal().map_err(WorkerError::Start)?;
            let ordered = Notifier::eventfd().map_err(WorkerError::Start)?;
            let poller = watch(&ordered, &pair)?;
            Ok((Arc::new(ordered), poller))
        };
        let (ordered, poller) = match ready() {
            Ok(ready) => ready,
            Err(error) => return Err((error, Box::new(pair))),
        };
        // The pair goes to the thread through a channel, so that it is not lost if no thread starts.
        let (send, receive) = sync_channel::<Pair>(1);
        let (orders, received) = channel();
        let notified = ordered.clone();
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            started(ThreadKind::Pair);
            let pair = receive.recv().expect("sent right after the thread has started");
            let orders = Orders { received, notified };
            Running { pair, poller, polling: Polling::new(polling), orders }.run()
        });
        match spawned {
            Ok(thread) => {
                send.send(pair).expect("the thread waits for it");
                Ok(Worker { thread, orders, ordered, stuck: false })
            }
            Err(error) => Err((WorkerError::Start(error), Box::new(pair))),
        }
    }

    /// Stops the thread and returns the pair. All popped chains are published by then.
    ///
    /// # Errors
    ///
    /// Fails if the thread does not stop. Then returns the worker, which may still touch its rings: nothing
    /// else may use them until it has stopped. Another call of `stop` finds that out without waiting.
    pub fn stop(mut self) -> Result<Pair, (WorkerError, Option<Worker>)> {
        self.order(Order::Stop);
        let limit = if self.stuck { Duration::ZERO } else { LIMIT };
        if !ends_within(&self.thread, limit) {
            self.stuck = true;
            return Err((WorkerError::Stuck, Some(self)));
        }
        self.thread.join().map_err(|_| (WorkerError::Panicked, None))
    }

    /// Replaces the call descriptor of vring `vring`. The old one is not used any more. The pair continues to
    /// run. Does nothing without such a vring.
    ///
    /// # Errors
    ///
    /// Fails if the thread does not answer. It is then treated like one that did not stop.
    pub fn set_call(&mut self, vring: usize, call: Option<Arc<Notifier>>) -> Result<(), WorkerError> {
        let (done, answer) = sync_channel(1);
        self.order(Order::SetCall { vring, call, done });
        // Disconnected: the thread has ended by itself and touches nothing any more.
        let answered = || !matches!(answer.try_recv(), Err(TryRecvError::Empty));
        if self.stuck || !interrupted_until(&self.thread, LIMIT, answered) {
            self.stuck = true;
            return Err(WorkerError::Stuck);
        }
        Ok(())
    }

    /// Asks for a report, which arrives on the channel if the thread still moves. The thread also looks for
    /// work, so that a missed notification costs no more time.
    pub fn ask_report(&self) -> Receiver<PairReport> {
        let (report, answer) = sync_channel(1);
        self.order(Order::Report(report));
        answer
    }

    /// Makes the thread announce the guest's address on the network.
    pub fn announce(&self, mac: Mac) {
        self.order(Order::Announce(mac));
    }

    fn order(&self, order: Order) {
        // Fails if the thread has ended by itself.
        let _ = self.orders.send(order);
        self.ordered.notify();
    }

    /// Whether it was told to stop but did not.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }
}

/// Everything is edge-triggered: [`Ready`] remembers unfinished work, and an undrained descriptor cannot make
/// the worker spin.
fn watch(ordered: &Notifier, pair: &Pair) -> Result<Poller<Token>, WorkerError> {
    let mut poller = Poller::new().map_err(WorkerError::Start)?;
    let edge = EventFlags::IN | EventFlags::ET;
    poller.add(ordered, edge, Token::Order).map_err(WorkerError::Start)?;
    let room = if pair.queue.tells_room() { EventFlags::OUT } else { EventFlags::empty() };
    poller.add(pair.queue.as_fd(), edge | room, Token::Port).map_err(WorkerError::Start)?;
    for waker in pair.queue.wakers() {
        poller.add(waker, edge, Token::Waker).map_err(WorkerError::Start)?;
    }
    for (vring, token) in [
        (pair.rx.as_ref().map(|rx| &rx.vring), Token::RxKick),
        (pair.tx.as_ref().map(|tx| &tx.vring), Token::TxKick),
    ] {
        if let Some(vring) = vring {
            let added = poller.add(&*vring.kick, edge, token);
            added.map_err(|source| WorkerError::Kick(vring.index, source))?;
        }
    }
    Ok(poller)
}

/// Work that can be done.
#[derive(Debug)]
struct Ready {
    rx: bool,
    tx: bool,
    /// Whether the halves wait: for buffers of the guest, or for room in the port.
    rx_waits_for_kick: bool,
    tx_waits_for_port: bool,
}

/// How long a worker polls before it sleeps. It polls for the full time as long as polling finds work, or
/// would have found the event that woke it. Each longer sleep halves the time, so that a quiet guest costs
/// nothing. Kicks are disabled meanwhile.
#[derive(Debug)]
struct Polling {
    most: Duration,
    now: Duration,
    began: Instant,
}

impl Polling {
    fn new(most: Duration) -> Polling {
        Polling { most, now: most, began: Instant::now() }
    }

    fn is_on(&self) -> bool {
        !self.most.is_zero()
    }

    fn begin(&mut self) {
        self.began = Instant::now();
    }

    fn is_over(&self) -> bool {
        self.began.elapsed() >= self.now
    }

    fn woken(&mut self) {
        self.now = if self.began.elapsed() < self.most { self.most } else { self.now / 2 };
    }
}

/// The receiving end of the orders.
struct Orders {
    received: Receiver<Order>,
    notified: Arc<Notifier>,
}

struct Running {
    pair: Pair,
    poller: Poller<Token>,
    polling: Polling,
    orders: Orders,
}

impl Running {
    fn run(mut self) -> Pair {
        // The previous server of the rings may have taken a kick: look once without one. A disabled transmit
        // ring is only drained when its driver kicks.
        let enabled_tx = self.pair.tx.as_ref().is_some_and(|tx| !tx.discard);
        let mut ready =
            Ready { rx: true, tx: enabled_tx, rx_waits_for_kick: false, tx_waits_for_port: false };
        self.pair.call_all();
        if let Some(tx) = &mut self.pair.tx {
            tx.polled = self.polling.is_on() && !tx.discard;
        }
        loop {
            if self.polling.is_on() && !ready.tx && !ready.rx {
                self.poll(&mut ready);
            }
            let sleeps = !ready.tx && !ready.rx;
            match self.wait(&mut ready) {
                Ok(true) => {}
                Ok(false) => {
                    self.pair.leave();
                    return self.pair;
                }
                Err(error) => {
                    error!(
                        event = "queue_pair_wait_failed";
                        "a queue pair stops: waiting for events failed: {error}"
                    );
                    self.pair.leave();
                    return self.pair;
                }
            }
            if sleeps && self.polling.is_on() {
                self.polling.woken();
            }
            // Nobody kicks a polled ring: look at it even while the other direction is busy.
            ready.tx |= !ready.tx_waits_for_port && self.pair.wants_to_send();
            if ready.tx {
                let turn = self.pair.run_tx();
                ready.tx = turn == Turn::More;
                ready.tx_waits_for_port = turn == Turn::PortFull;
            }
            if ready.rx {
                self.receive(&mut ready);
            }
        }
    }

    fn receive(&mut self, ready: &mut Ready) {
        let turn = self.pair.run_rx();
        ready.rx = turn == Turn::More;
        ready.rx_waits_for_kick = turn == Turn::NoBuffers;
    }

    /// Polls ring and port for a while. Returns with work to do, or after asking for kicks.
    fn poll(&mut self, ready: &mut Ready) {
        self.polling.begin();
        while !ready.tx && !ready.rx && !self.polling.is_over() {
            if !ready.rx_waits_for_kick {
                self.receive(ready);
            }
            ready.tx = !ready.tx_waits_for_port && self.pair.wants_to_send();
            std::hint::spin_loop();
        }
        // A full port notifies when it has room. Kicks are of no use until then.
        if !ready.tx && !ready.rx && !ready.tx_waits_for_port {
            ready.tx = self.pair.expect_kicks();
        }
    }

    /// Adds new events to `ready`. Waits for one if there is no work. Returns `false` to end the run.
    fn wait(&mut self, ready: &mut Ready) -> io::Result<bool> {
        let timeout = (ready.tx || ready.rx).then_some(Duration::ZERO);
        let (mut ordered, mut failed, mut dead) = (false, false, Vec::new());
        let pair = &self.pair;
        self.poller.wait(timeout, |token, flags| match token {
            Token::Order => ordered = true,
            Token::Port => {
                // If the port is readable as well, reading it reports the error and loses no frame.
                let readable = flags.contains(EventFlags::IN);
                failed |= flags.intersects(EventFlags::ERR | EventFlags::HUP) && !readable;
                ready.rx |= !ready.rx_waits_for_kick;
                ready.tx |= ready.tx_waits_for_port && flags.contains(EventFlags::OUT);
            }
            Token::Waker => {
                ready.rx |= !ready.rx_waits_for_kick;
                ready.tx |= ready.tx_waits_for_port;
            }
            Token::RxKick => {
                // Frames make the worker look for buffers. A kick matters only if the guest had none.
                ready.rx |= ready.rx_waits_for_kick;
                let vring = pair.rx.as_ref().map(|rx| &rx.vring);
                dead.extend(vring.filter(|vring| !taken(pair, vring)).map(|vring| vring.kick.clone()));
            }
            Token::TxKick => {
                ready.tx = true;
                let vring = pair.tx.as_ref().map(|tx| &tx.vring);
                dead.extend(vring.filter(|vring| !taken(pair, vring)).map(|vring| vring.kick.clone()));
            }
        })?;
        if failed {
            self.pair.probe();
        }
        for kick in dead {
            self.poller.remove(&*kick)?;
        }
        let goes_on = !ordered || self.carry_out(ready);
        if self.pair.announcement.is_some() {
            self.pair.announce();
        }
        Ok(goes_on)
    }

    /// Carries out the orders. Returns `false` to end the run.
    fn carry_out(&mut self, ready: &mut Ready) -> bool {
        self.orders.notified.clear();
        for order in self.orders.received.try_iter() {
            match order {
                Order::Stop => return false,
                Order::SetCall { vring, call, done } => {
                    self.pair.set_call(vring, call);
                    let _ = done.send(());
                }
                Order::Report(report) => {
                    let _ = report.send(self.pair.report(ready.rx_waits_for_kick, ready.tx_waits_for_port));
                    ready.rx = true;
                    // A disabled ring is drained only after a kick.
                    ready.tx |= self.pair.tx.as_ref().is_some_and(|tx| !tx.discard);
                }
                Order::Announce(mac) => self.pair.announcement = Some(mac),
            }
        }
        true
    }
}

/// Takes a kick. Returns `false` if no further kick can arrive.
fn taken(pair: &Pair, vring: &Vring) -> bool {
    pair.kicked();
    let alive = vring.kick.clear();
    if !alive {
        warn!(event = "kick_lost", vring = vring.index; "vring {}: {NO_KICK}", vring.index);
    }
    alive
}

#[cfg(test)]
mod tests;
