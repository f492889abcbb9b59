//! Counters of a queue pair, in memory that survives the process.
#![expect(unsafe_code, reason = "says that counters are words")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::shared_words::{AllWords, Kind, SharedWords, WordsError};

/// A counter that one thread increments and others read.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the pair's worker counts, so that no locked instruction is needed.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Returns the value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Declares the counters: field, and name in the log. States of format 1 use the name in the log, too.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $text:literal;)*) => {
        /// The counters of one queue pair.
        #[derive(Debug, Default)]
        #[repr(C)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Returns all counters with their names in the log.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($text, self.$name.get()),)*].into_iter()
            }

            /// Returns all counters with the names of their fields.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get()),)*].into_iter()
            }

            /// Continues from `counts`, by the names of [`Counters::all`]. No worker may count meanwhile.
            pub fn set(&self, counts: &BTreeMap<String, u64>) {
                $(self.$name.0.store(counts.get($text).copied().unwrap_or(0), Relaxed);)*
            }
        }
    };
}

impl Counters {
    /// Returns the number of frames to the guest that were delivered or dropped, and of malformed receive
    /// chains.
    pub fn rx_served(&self) -> u64 {
        let done = [
            &self.rx_frames,
            &self.rx_bad_chain,
            &self.rx_too_long,
            &self.rx_not_offloaded,
            &self.rx_failed,
            &self.rx_filtered,
        ];
        done.iter().map(|counter| counter.get()).fold(0, u64::wrapping_add)
    }

    /// Returns the number of transmit chains that were sent or dropped.
    pub fn tx_served(&self) -> u64 {
        let done = [
            &self.tx_frames,
            &self.tx_bad_chain,
            &self.tx_refused,
            &self.tx_no_port,
            &self.tx_disabled,
            &self.tx_filtered,
            &self.deadly_chains,
        ];
        done.iter().map(|counter| counter.get()).fold(0, u64::wrapping_add)
    }
}

counters! {
    /// Frames from the guest that the port accepted.
    tx_frames: "tx frames";
    /// Their bytes, headers included.
    tx_bytes: "tx bytes";
    /// Frames to the guest.
    rx_frames: "rx frames";
    /// Their bytes, headers included.
    rx_bytes: "rx bytes";
    /// Malformed transmit chains.
    tx_bad_chain: "tx bad chains";
    /// Frames that the kernel refused, usually because of an invalid header.
    tx_refused: "tx refused by the kernel";
    /// Frames dropped because the interface was down or gone.
    tx_no_port: "tx without interface";
    /// Frames dropped on a ring that the front-end has disabled.
    tx_disabled: "tx on a disabled ring";
    /// Malformed receive chains.
    rx_bad_chain: "rx bad chains";
    /// Frames longer than the guest's buffers for one frame.
    rx_too_long: "rx too long for the guest's buffers";
    /// Frames dropped because they need segmentation, which their driver did not acknowledge.
    rx_not_offloaded: "rx for another driver's offloads";
    /// Frames lost because receiving them failed, for example into memory that the front-end took away,
    /// because they were shorter than an Ethernet header, or because their guest was gone.
    rx_failed: "rx failed";
    /// Chains that were returned unserved because they killed this process twice.
    deadly_chains: "chains that killed this daemon";
    /// Notifications to the driver.
    calls: "calls";
    /// Notifications from the driver.
    kicks: "kicks";
    /// Times that a rate limit delayed the receive half.
    rx_limited: "rx waits for a limit";
    /// Times that a rate limit delayed the transmit half.
    tx_limited: "tx waits for a limit";
    /// Marks in the front-end's log of written pages, without those for the control queue. A page that is
    /// marked again counts again.
    pages_marked: "marks in the log of written pages";
    /// Announcements of the guest on the network.
    announcements: "announcements of the guest";
    /// Frames from the guest that the filter refused.
    tx_filtered: "tx refused by the filter";
    /// Frames to the guest that the filter refused.
    rx_filtered: "rx refused by the filter";
    /// Times that the transmit half waited for the port, or for a rate limit.
    tx_waits: "tx waits for the port";
    /// Times that the interface was opened again, or its peer connected again. The first pair counts them.
    reopened: "interface opened again";
}

/// The reason why a frame was dropped, with a counter for each. Malformed chains have counters but no reason
/// here: they are not frames, or can no longer be read. Nor have frames that a filter refuses,
/// which shows them to captures itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the counters of these names say what they are")]
pub enum DropReason {
    TxRefused,
    TxNoPort,
    TxDisabled,
    RxTooLong,
    RxNotOffloaded,
    RxFailed,
}

impl DropReason {
    /// All reasons. A new one must be the last: programs of other versions know reasons by their positions.
    pub const ALL: [DropReason; 6] = [
        DropReason::TxRefused,
        DropReason::TxNoPort,
        DropReason::TxDisabled,
        DropReason::RxTooLong,
        DropReason::RxNotOffloaded,
        DropReason::RxFailed,
    ];

    /// Whether the frame was a frame to the guest.
    pub fn is_rx(self) -> bool {
        matches!(self, DropReason::RxTooLong | DropReason::RxNotOffloaded | DropReason::RxFailed)
    }

    /// Returns the field name of its counter.
    pub fn key(self) -> &'static str {
        match self {
            DropReason::TxRefused => "tx_refused",
            DropReason::TxNoPort => "tx_no_port",
            DropReason::TxDisabled => "tx_disabled",
            DropReason::RxTooLong => "rx_too_long",
            DropReason::RxNotOffloaded => "rx_not_offloaded",
            DropReason::RxFailed => "rx_failed",
        }
    }
}

impl Counters {
    /// Returns the counter of frames that were dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> &Counter {
        match reason {
            DropReason::TxRefused => &self.tx_refused,
            DropReason::TxNoPort => &self.tx_no_port,
            DropReason::TxDisabled => &self.tx_disabled,
            DropReason::RxTooLong => &self.rx_too_long,
            DropReason::RxNotOffloaded => &self.rx_not_offloaded,
            DropReason::RxFailed => &self.rx_failed,
        }
    }
}

// SAFETY: repr(C), and every field a word (the macro).
unsafe impl AllWords for Counters {}

/// Words of a pair's counters.
const WORDS: usize = size_of::<Counters>() / size_of::<u64>();

/// The counters are words in their order, the same number for each pair. A new counter must be the last:
/// programs of other versions find the counters that they know by position.
const KIND: Kind = Kind { magic: *b"voltCNTR", version: 1 };

/// The counters of all queue pairs of a device, in memory that another process can continue to use.
#[derive(Clone, Debug)]
pub struct CounterMemory {
    words: Arc<SharedWords>,
    /// Words of a pair. A later version's memory has more words than this version uses.
    stride: usize,
}

impl CounterMemory {
    /// Creates counters at zero.
    ///
    /// # Errors
    ///
    /// Fails if there is no memory.
    pub fn new(pairs: usize) -> Result<CounterMemory, WordsError> {
        let words = SharedWords::create("volt-counters", KIND, pairs * WORDS)?;
        Ok(CounterMemory { words: Arc::new(words), stride: WORDS })
    }

    /// Opens the counters of another process. An earlier version has fewer: its counters are copied into
    /// memory with room for all. Returns whether this is a copy.
    ///
    /// # Errors
    ///
    /// Fails if the memory contains something else.
    pub fn open(memory: OwnedFd, pairs: usize) -> Result<(CounterMemory, bool), WordsError> {
        let words = SharedWords::open(memory, KIND)?;
        let stride = words.len().checked_div(pairs).unwrap_or(0);
        if stride == 0 || stride * pairs != words.len() {
            return Err(WordsError::Other("its length"));
        }
        if stride >= WORDS {
            return Ok((CounterMemory { words: Arc::new(words), stride }, false));
        }
        let copy = CounterMemory::new(pairs)?;
        for pair in 0..pairs {
            for word in 0..stride {
                let count = words.word(pair * stride + word).load(Relaxed);
                copy.words.word(pair * WORDS + word).store(count, Relaxed);
            }
        }
        Ok((copy, true))
    }

    /// Returns the memory, for another process; `None` if no other process can map it.
    pub fn file(&self) -> Option<&File> {
        self.words.file()
    }

    /// Returns the counters of `pair`.
    ///
    /// # Panics
    ///
    /// Panics if `pair` does not exist. So does any use of the result of [`CounterMemory::pair`].
    pub fn of(&self, pair: usize) -> &Counters {
        self.words.view(pair * self.stride)
    }

    /// Returns the counters of `pair`, for a worker.
    pub fn pair(&self, pair: usize) -> PairCounters {
        PairCounters { memory: self.clone(), pair }
    }
}

/// The counters of one queue pair.
#[derive(Clone, Debug)]
pub struct PairCounters {
    memory: CounterMemory,
    pair: usize,
}

impl Deref for PairCounters {
    type Target = Counters;

    #[inline]
    fn deref(&self) -> &Counters {
        self.memory.of(self.pair)
    }
}

impl fmt::Display for Counters {
    /// Writes the counters that are not 0, or `nothing`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (name, count) in self.all().filter(|(_, count)| *count > 0) {
            write!(f, "{comma}{name} {count}")?;
            comma = ", ";
        }
        if comma.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}

/// Creates memory of a version that has so many counters, for so many pairs. Each word holds its number.
#[cfg(test)]
pub(crate) fn memory_of_version(counters: usize, pairs: usize) -> (SharedWords, OwnedFd) {
    let words = SharedWords::create("test", KIND, counters * pairs).unwrap();
    (0..words.len()).for_each(|word| words.word(word).store(word as u64, Relaxed));
    let file = words.file().unwrap().try_clone().unwrap();
    (words, file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other versions continue to use the words: existing counters keep their positions.
    #[test]
    fn what_is_added_comes_last() {
        let first = [
            "tx_frames",
            "tx_bytes",
            "rx_frames",
            "rx_bytes",
            "tx_bad_chain",
            "tx_refused",
            "tx_no_port",
            "tx_disabled",
            "rx_bad_chain",
            "rx_too_long",
            "rx_not_offloaded",
            "rx_failed",
            "deadly_chains",
            "calls",
            "kicks",
            "rx_limited",
            "tx_limited",
            "pages_marked",
            "announcements",
            "tx_filtered",
            "rx_filtered",
            "tx_waits",
            "reopened",
        ];
        let counters = Counters::default();
        assert!(counters.fields().map(|(name, _)| name).take(first.len()).eq(first));
    }

    #[test]
    fn each_reason_has_the_counter_of_its_name() {
        for reason in DropReason::ALL {
            let counters = Counters::default();
            counters.dropped(reason).add(1);
            let counted: Vec<_> = counters.fields().filter(|(_, count)| *count > 0).collect();
            assert_eq!(counted, [(reason.key(), 1)]);
            assert_eq!(reason.is_rx(), reason.key().starts_with("rx_"));
        }
    }

    #[test]
    fn memory_of_an_earlier_version_is_copied() {
        let (_, file) = memory_of_version(2, 2);
        let (memory, copied) = CounterMemory::open(file, 2).unwrap();
        assert!(copied);
        let of = |pair| memory.of(pair).fields().map(|(_, count)| count).take(3).collect::<Vec<_>>();
        assert_eq!((of(0), of(1)), (vec![0, 1, 0], vec![2, 3, 0]));
    }

    #[test]
    fn memory_of_a_later_version_is_counted_on_in() {
        let counters = WORDS + 3;
        let (words, file) = memory_of_version(counters, 2);
        let (memory, copied) = CounterMemory::open(file, 2).unwrap();
        assert!(!copied);
        memory.of(1).tx_frames.add(100);
        let first = counters as u64;
        assert_eq!(memory.of(1).tx_frames.get(), first + 100);
        // Counters that only the later version knows are still there.
        assert_eq!(words.word(counters + WORDS).load(Relaxed), first + WORDS as u64);
    }

    #[test]
    fn memory_of_other_pairs_is_refused() {
        for pairs in [0, 4, usize::MAX] {
            let (_, file) = memory_of_version(7, 2);
            assert!(CounterMemory::open(file, pairs).unwrap_err().to_string().ends_with("its length"));
        }
    }
}
