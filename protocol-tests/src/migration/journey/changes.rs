//! Changes of a session: logging, rings, memory, and the serving process.

use super::{Journey, Logging, MEMORY, START};
use crate::dirty_log::DirtyLog;
use crate::migration::oracle::Oracle;
use crate::rig::QUIET;
use crate::session::offer_vring;
use crate::wire::feature;

impl Journey {
    /// Returns an empty log with a random place in its file, for used rings at up to `shift` beyond memory.
    fn log(&mut self, shift: u64) -> DirtyLog {
        let end = START + MEMORY + shift;
        let bytes = end.div_ceil(crate::dirty_log::PAGE * 8);
        DirtyLog::new(bytes, self.random.below(9000)).expect("a log")
    }

    /// Switches logging on or off.
    pub(super) fn toggle(&mut self) -> &'static str {
        if self.logging.is_some() { self.end_logging() } else { self.start_logging() }
    }

    fn start_logging(&mut self) -> &'static str {
        // Rings beyond memory in the log, or where they are.
        let shift = if self.random.chance(2) { MEMORY } else { 0 };
        let log = self.log(shift);
        let features = self.session.nic.features | feature::LOG_ALL;
        if self.random.chance(3) {
            // A front-end that starts in the middle of a migration sends the log last.
            self.session.frontend.set_features(features).expect("taken");
            self.send_log(&log);
        } else {
            self.send_log(&log);
            self.session.frontend.set_features(features).expect("taken");
        }
        self.send_addresses(Some(shift));
        let oracle = Oracle::new(&self.session.nic, shift).expect("memory");
        self.logging = Some(Logging { log, oracle, shift });
        self.tally.migrations += 1;
        "logging on"
    }

    /// Ends a migration that failed: nothing is marked any more.
    pub(super) fn end_logging(&mut self) -> &'static str {
        let Some(ended) = self.logging.take() else { return "no log" };
        self.session.frontend.set_features(self.session.nic.features).expect("taken");
        self.send_addresses(None);
        self.tally.marked += ended.oracle.marked;
        self.tally.idle += ended.oracle.idle;
        ended.log.take();
        self.receive();
        self.transmit();
        assert!(ended.log.marked().is_empty(), "logging was not switched off: {:x?}", ended.log.marked());
        "logging off"
    }

    #[track_caller]
    fn send_log(&self, log: &DirtyLog) {
        let reply = self.session.frontend.set_log_base(log).expect("a reply");
        assert_eq!(reply.body, log.body());
    }

    /// Sends another log in place of the present one, whose marks stay for the next pass.
    pub(super) fn replace_log(&mut self) -> &'static str {
        let Some(shift) = self.logging.as_ref().map(|logging| logging.shift) else { return "no log" };
        let log = self.log(shift);
        self.send_log(&log);
        let logging = self.logging.as_mut().expect("logging");
        logging.oracle.pass(&logging.log);
        logging.log = log;
        "another log"
    }

    /// Sends each vring's addresses again.
    pub(super) fn addresses(&mut self) -> &'static str {
        self.send_addresses(self.logging.as_ref().map(|logging| logging.shift));
        "addresses"
    }

    fn send_addresses(&self, shift: Option<u64>) {
        for queue in &self.session.nic.queues {
            let (layout, mem) = (queue.ring.layout(), &self.session.nic.mem);
            let log = shift.map(|shift| layout.used + shift);
            self.session.frontend.set_vring_addr_logged(queue.vring, mem, &layout, log).expect("taken");
        }
    }

    /// Sends the memory table again.
    pub(super) fn memory(&mut self) -> &'static str {
        self.session.frontend.set_mem_table(&self.session.nic.mem).expect("taken");
        "memory"
    }

    /// Stops all rings, as at the end of a migration, and starts them again. At the answer everything that
    /// was published must be marked, and nothing may be written after it.
    pub(super) fn restart_rings(&mut self) -> &'static str {
        let vrings: Vec<u32> = self.session.nic.queues.iter().map(|queue| queue.vring).collect();
        for vring in &vrings {
            self.session.frontend.get_vring_base(*vring).expect("a base");
        }
        if let Some(Logging { log, oracle, .. }) = &mut self.logging {
            let missing = oracle.missing(log, &self.published);
            assert!(missing.is_empty(), "no mark for pages {missing:x?} when all rings have stopped");
            oracle.pass(log);
        }
        self.stays_quiet();
        self.start_rings();
        "rings stopped"
    }

    fn start_rings(&self) {
        for queue in &self.session.nic.queues {
            let used = queue.ring.used_idx();
            offer_vring(&self.session.frontend, &self.session.nic.mem, queue, used).expect("taken");
        }
        self.send_addresses(self.logging.as_ref().map(|logging| logging.shift));
        for queue in &self.session.nic.queues {
            self.session.frontend.set_vring_enable(queue.vring, true).expect("taken");
        }
    }

    /// Like QEMU when the guest resets its device during a migration: gives up the log with the rings, starts
    /// them again, and sends the next log last. A frame comes in between.
    pub(super) fn restart_before_the_log(&mut self) -> &'static str {
        self.restart_rings();
        let Some(mut logging) = self.logging.take() else { return "no log" };
        let frame = self.frame();
        self.rig.wire.send(&frame).expect("sent");
        let (pair, used) = loop {
            match self.used() {
                Some(used) => break used,
                None => self.wait(),
            }
        };
        let got = self.take(pair, used);
        assert!(got == frame, "{got:02x?} instead of {frame:02x?}");
        logging.log = self.log(logging.shift);
        self.send_log(&logging.log);
        self.logging = Some(logging);
        self.check("a log after the rings");
        self.post(pair);
        "a log after the rings"
    }

    /// Checks that nobody writes the rings or calls: sometimes for a while.
    fn stays_quiet(&mut self) {
        let before = self.used_rings();
        self.session.nic.queues.iter_mut().for_each(|queue| _ = queue.drain_call());
        if self.random.chance(50) {
            std::thread::sleep(QUIET);
        }
        self.session.frontend.sync().expect("served");
        assert!(before == self.used_rings(), "a stopped ring was written");
        let calls: u64 = self.session.nic.queues.iter_mut().map(crate::nic::Queue::drain_call).sum();
        assert_eq!(calls, 0, "a call of a stopped ring");
    }

    /// Returns the bytes of all used rings.
    fn used_rings(&self) -> Vec<Vec<u8>> {
        let layouts = self.session.nic.queues.iter().map(|queue| queue.ring.layout());
        layouts.map(|at| self.session.nic.mem.read(at.used, 6 + 8 * usize::from(at.size))).collect()
    }

    /// Another process takes over, with a frame on its way.
    pub(super) fn take_over(&mut self) -> &'static str {
        let frame = self.frame();
        self.rig.wire.send(&frame).expect("sent");
        self.rig.take_over(&["--supervise"]);
        self.arrives(&frame);
        self.tally.take_overs += 1;
        "take-over"
    }

    /// The worker dies under traffic. A frame may be lost.
    pub(super) fn kill(&mut self) -> &'static str {
        let frames = [self.frame(), self.frame()];
        self.rig.wire.send(&frames[0]).expect("sent");
        // Not always with the first instruction after it.
        for _ in 0..self.random.below(2000) {
            std::hint::spin_loop();
        }
        self.rig.kill_worker();
        self.rig.wire.send(&frames[1]).expect("sent");
        self.arrives(&frames[1]);
        self.tally.kills += 1;
        "kill"
    }
}
