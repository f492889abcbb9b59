//! A filtered guest between its wire and its memory.
//!
//! [`Book::refused`] sends frames that must not arrive, then an allowed one: a queue keeps order, so the
//! arrival of that one alone proves that the others never come. Each call names a line of the page, whose
//! reasons the daemon must have counted.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::hosts::{BOTH, GATEWAY, GUEST, Hosts, NEIGHBOUR, OPEN, POLICY, V4};
use super::link::{Arp, TARGET, advertisement, mac_option};
use super::packet::{Mac, Packet};
use super::page::Tried;
use super::transport::{self, ICMPV6, UDP};
use crate::frame::NetHeader;
use crate::nic::Nic;
use crate::rig::{LIMIT, Rig};
use crate::session::{Session, Setup};

/// The port of markers at the end that opens their flows.
pub(super) const MARKERS: u16 = 50_000;
/// Counts of refused frames by direction and reason.
type Counts = BTreeMap<(String, String), u64>;

/// A guest, its daemon with a filter, and the wire.
#[derive(Debug)]
pub struct Book {
    /// The connection and the guest's card.
    pub session: Session,
    /// The daemon and the wire.
    pub rig: Rig,
    /// The lines of the test.
    pub tried: Tried,
    /// The daemon's arguments.
    pub arguments: Vec<String>,
    /// The policy file.
    pub policy: PathBuf,
    _directory: tempfile::TempDir,
    number: u32,
}

impl Book {
    /// Starts a daemon with [`POLICY`]. Returns `None`, and prints that `test` is skipped, if the machine
    /// allows no namespace.
    ///
    /// # Panics
    /// If something fails.
    pub fn new(test: &'static str) -> Option<Book> {
        Book::with(test, Some(POLICY), &[], &Setup::default())
    }

    /// Starts a daemon with this policy, or with the guard alone, and with further arguments; connects a
    /// guest; and shows it the gateway and a neighbour.
    ///
    /// # Panics
    /// If something fails.
    pub fn with(test: &'static str, policy: Option<&str>, extra: &[&str], setup: &Setup) -> Option<Book> {
        let mut book = Book::unshown(test, policy, extra, setup)?;
        book.introduce();
        Some(book)
    }

    /// As [`Book::with`], but shows nothing to the guest.
    ///
    /// # Panics
    /// If something fails.
    pub fn unshown(test: &'static str, policy: Option<&str>, extra: &[&str], setup: &Setup) -> Option<Book> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("policy.toml");
        let mut arguments = vec!["--mac", "52:54:00:01:02:03", "--control", "{control}"];
        if !extra.contains(&"--guest-ip") {
            arguments.extend(["--guard", "--guest-ip", "192.0.2.10,2001:db8:1::10"]);
        }
        if let Some(text) = policy {
            fs::write(&file, text).expect("a policy");
            arguments.extend(["--policy", file.to_str().expect("a plain path")]);
        }
        arguments.extend(extra);
        let rig = Rig::new(test, &arguments)?;
        let session = rig.session(setup);
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let (tried, number) = (Tried::new(test), 0);
        Some(Book { session, rig, tried, arguments, policy: file, _directory: directory, number })
    }

    /// Ends the connection, if the daemon has not, and makes another one with the same card after
    /// `meanwhile`.
    ///
    /// # Panics
    /// If the daemon does not take it.
    #[must_use]
    pub fn reconnect(self, meanwhile: impl FnOnce(&mut Rig, &mut Nic)) -> Book {
        let Book { session: Session { frontend, mut nic, .. }, mut rig, .. } = self;
        let from = rig.daemon.log().len();
        drop(frontend);
        let gone = rig.daemon.has_exited() || rig.daemon.logged(from, &["front-end gone"], LIMIT).is_some();
        assert!(gone, "{}", rig.daemon.log());
        meanwhile(&mut rig, &mut nic);
        let session = Session::resume(rig.connect(), nic, &Setup::default()).expect("a session");
        Book { session, rig, ..self }
    }

    /// Shows the gateway and the neighbour to the guest.
    ///
    /// # Panics
    /// If a frame does not arrive.
    pub fn introduce(&mut self) {
        for frame in introductions() {
            self.rig.wire_to_guest(&mut self.session, &frame);
        }
    }

    /// Returns a frame from the guest that is allowed, and differs from all others.
    pub fn marker(&mut self) -> Vec<u8> {
        self.number += 1;
        marker(&V4, self.number)
    }

    /// Returns a frame to the guest that is allowed, and differs from all others.
    pub fn marker_in(&mut self) -> Vec<u8> {
        self.number += 1;
        let data = [&b"inward marker"[..], &self.number.to_be_bytes()].concat();
        V4.inward(V4.remote, UDP, transport::udp(MARKERS, OPEN, &data)).frame()
    }

    /// Sends a frame of the guest that is refused.
    ///
    /// # Panics
    /// If it arrives, or is counted for another reason than the line says. The message begins with `line`.
    pub fn refused(&mut self, line: &str, frame: &[u8]) {
        self.refused_all(line, [(NetHeader::default(), frame.to_vec())]);
    }

    /// Sends frames of the guest that are all refused.
    ///
    /// # Panics
    /// As [`Book::refused`].
    pub fn refused_all(&mut self, line: &str, frames: impl IntoIterator<Item = (NetHeader, Vec<u8>)>) {
        let before = self.counts();
        let mut sent = 0;
        for (header, frame) in frames {
            self.send(line, &header, &frame, &[]);
            sent += 1;
        }
        self.only_a_marker(line);
        self.counted(line, &before, "tx", sent);
    }

    /// Gives a frame of the guest to the daemon, cut into parts of these lengths.
    ///
    /// # Panics
    /// If it does not come back.
    pub fn send(&mut self, line: &str, header: &NetHeader, frame: &[u8], cuts: &[usize]) {
        let used = self.session.tx(0).send_cut(header, frame, cuts, LIMIT);
        let used = used.unwrap_or_else(|error| panic!("{line}: the frame does not come back: {error}"));
        assert_eq!(used.len, 0, "{line}: nothing is written to a transmit chain");
    }

    /// Sends a marker of the guest, and checks that nothing arrives before it.
    ///
    /// # Panics
    /// If something does.
    pub fn only_a_marker(&mut self, line: &str) {
        let marker = self.marker();
        self.send(line, &NetHeader::default(), &marker, &[]);
        self.arrives(line, &marker);
    }

    /// Checks that the next frame on the wire is this one. Returns its header.
    ///
    /// # Panics
    /// If it is not.
    pub fn arrives(&mut self, line: &str, frame: &[u8]) -> NetHeader {
        let got = self.rig.wire.recv(LIMIT).expect("the wire");
        let (header, bytes) = got.unwrap_or_else(|| panic!("{line}: nothing arrives on the wire"));
        assert!(bytes == frame, "{line}: arrived:\n{bytes:02x?}\ninstead of:\n{frame:02x?}");
        header
    }

    /// Sends a frame of the guest that passes unchanged. Returns its header on the wire.
    ///
    /// # Panics
    /// If it does not arrive.
    pub fn passes(&mut self, line: &str, frame: &[u8]) -> NetHeader {
        self.passes_with(line, &NetHeader::default(), frame)
    }

    /// Sends a frame of the guest with this header, which passes unchanged. Returns its header on the wire.
    ///
    /// # Panics
    /// If it does not arrive.
    pub fn passes_with(&mut self, line: &str, header: &NetHeader, frame: &[u8]) -> NetHeader {
        self.tried.line(line);
        self.send(line, header, frame, &[]);
        self.arrives(line, frame)
    }

    /// Sends a frame to the guest that is refused.
    ///
    /// # Panics
    /// As [`Book::refused`].
    pub fn refused_in(&mut self, line: &str, frame: &[u8]) {
        let before = self.counts();
        self.rig.wire.send(frame).expect("sent");
        let marker = self.marker_in();
        self.rig.wire.send(&marker).expect("sent");
        self.received(line, &marker);
        self.counted(line, &before, "rx", 1);
    }

    /// Sends a frame to the guest that passes unchanged.
    ///
    /// # Panics
    /// If it does not arrive.
    pub fn passes_in(&mut self, line: &str, frame: &[u8]) {
        self.tried.line(line);
        self.rig.wire.send(frame).expect("sent");
        self.received(line, frame);
    }

    /// Checks that the next frame that the guest receives is this one.
    ///
    /// # Panics
    /// If it is not.
    pub fn received(&mut self, line: &str, frame: &[u8]) {
        let got = self.session.rx(0).recv(LIMIT);
        let got = got.unwrap_or_else(|error| panic!("{line}: the guest gets nothing: {error}"));
        assert!(got.bytes == frame, "{line}: the guest got:\n{:02x?}\ninstead of:\n{frame:02x?}", got.bytes);
    }

    /// Returns the daemon's counts of refused frames.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn counts(&self) -> Counts {
        let status = self.rig.status();
        let mut counts = Counts::new();
        for (way, reasons) in status["filter"]["refused"].as_object().expect("counts of the filter") {
            for (reason, count) in reasons.as_object().expect("reasons") {
                counts.insert((way.clone(), reason.clone()), count.as_u64().expect("a number"));
            }
        }
        counts
    }

    /// Checks that `sent` more frames than `before` are counted this way, for reasons of the line.
    ///
    /// # Panics
    /// If not.
    pub fn counted(&mut self, line: &str, before: &Counts, way: &str, sent: u64) {
        let more: Vec<_> = self
            .counts()
            .into_iter()
            .filter_map(|(of, count)| {
                let more = count - before.get(&of).copied().unwrap_or(0);
                (more > 0).then_some((of, more))
            })
            .collect();
        let expected = self.tried.line(line);
        let total: u64 = more.iter().map(|(_, more)| more).sum();
        let fits = more.iter().all(|((of, reason), _)| of == way && expected.has_reason(reason));
        assert!(fits && total == sent, "{line}: counted {more:?} of {sent}, instead of: {}", expected.result);
    }

    /// Checks that all lines of the test were tried, and that frames go both ways still.
    ///
    /// # Panics
    /// If not.
    pub fn done(mut self) {
        let line = "at the end";
        self.only_a_marker(line);
        let marker = self.marker_in();
        self.rig.wire.send(&marker).expect("sent");
        self.received(line, &marker);
        self.tried.all();
    }
}

/// Returns an allowed frame of the guest with this number.
pub fn marker(hosts: &Hosts, number: u32) -> Vec<u8> {
    let data = [&b"outward marker"[..], &number.to_be_bytes()].concat();
    hosts.out(hosts.remote, UDP, transport::udp(MARKERS, OPEN, &data)).frame()
}

/// Returns the frames by which the gateway and the neighbour show themselves to the guest, in both families.
pub fn introductions() -> Vec<Vec<u8>> {
    let [v4, v6] = BOTH;
    let by_arp = |mac, address| Arp::reply((mac, address), (GUEST, v4.guest)).frame();
    vec![
        by_arp(GATEWAY, v4.gateway),
        by_arp(NEIGHBOUR, v4.neighbour),
        advertised(&v6, GATEWAY, v6.gateway),
        advertised(&v6, NEIGHBOUR, v6.neighbour),
    ]
}

/// Returns an advertisement to the guest that `mac` has `address`.
fn advertised(hosts: &Hosts, mac: Mac, address: std::net::IpAddr) -> Vec<u8> {
    let message = advertisement(address, &mac_option(TARGET, mac));
    Packet::new((GUEST, mac), (address, hosts.guest), ICMPV6, message).hops(255).frame()
}
