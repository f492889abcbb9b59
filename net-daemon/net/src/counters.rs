//! What happened on a queue pair, counted, where it is still to be read after a death.
#![expect(unsafe_code, reason = "says that counters are words")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::shared_words::{AllWords, Kind, SharedWords, WordsError};

/// A number that one thread counts up and others read.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the pair's worker counts, so no locked instruction is needed.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Declares the counters: name, and what the log calls it, by which states of format 1 have it too.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $text:literal;)*) => {
        /// The counters of one queue pair.
        #[derive(Debug, Default)]
        #[repr(C)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// All counters with their names.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($text, self.$name.get()),)*].into_iter()
            }

            /// The same, by what programs call them: the fields of this structure.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get()),)*].into_iter()
            }

            /// Goes on from `counts`, by the names of [`Counters::all`]. Only while no worker counts.
            pub fn set(&self, counts: &BTreeMap<String, u64>) {
                $(self.$name.0.store(counts.get($text).copied().unwrap_or(0), Relaxed);)*
            }
        }
    };
}

impl Counters {
    /// Frames to the guest that are done with, one way or another, and receive chains that made none.
    pub fn rx_served(&self) -> u64 {
        let done =
            [&self.rx_frames, &self.rx_bad_chain, &self.rx_too_long, &self.rx_not_offloaded, &self.rx_failed];
        done.iter().map(|counter| counter.get()).fold(0, u64::wrapping_add)
    }

    /// Transmit chains that are done with, one way or another.
    pub fn tx_served(&self) -> u64 {
        let done = [
            &self.tx_frames,
            &self.tx_bad_chain,
            &self.tx_refused,
            &self.tx_no_port,
            &self.tx_disabled,
            &self.deadly_chains,
        ];
        done.iter().map(|counter| counter.get()).fold(0, u64::wrapping_add)
    }
}

counters! {
    /// Frames from the guest that the port took.
    tx_frames: "tx frames";
    /// Their bytes, headers included.
    tx_bytes: "tx bytes";
    /// Frames to the guest.
    rx_frames: "rx frames";
    /// Their bytes, headers included.
    rx_bytes: "rx bytes";
    /// Malformed transmit chains.
    tx_bad_chain: "tx bad chains";
    /// Frames that the kernel refused, mostly for a header that makes no sense.
    tx_refused: "tx refused by the kernel";
    /// Frames dropped because the interface was down or gone.
    tx_no_port: "tx without interface";
    /// Frames dropped on a ring that the front-end has disabled.
    tx_disabled: "tx on a disabled ring";
    /// Malformed receive chains.
    rx_bad_chain: "rx bad chains";
    /// Frames longer than the buffers that the guest has for one.
    rx_too_long: "rx too long for the guest's buffers";
    /// Frames dropped because they are to be segmented, which their driver did not acknowledge to do.
    rx_not_offloaded: "rx for another driver's offloads";
    /// Frames lost because receiving them failed, for instance into memory that the front-end has taken away,
    /// because they were shorter than an Ethernet header, or because their guest had gone.
    rx_failed: "rx failed";
    /// Chains that were returned unserved because this process died of them twice.
    deadly_chains: "chains that killed this daemon";
    /// Notifications to the driver.
    calls: "calls";
    /// Notifications from the driver.
    kicks: "kicks";
    /// Times that a rate limit made the receive half wait.
    rx_limited: "rx waits for a limit";
    /// The same for the transmit half.
    tx_limited: "tx waits for a limit";
}

/// Why a frame went nowhere: a counter for each. Not all that is lost is a frame, or still there to be looked
/// at: malformed chains have counters and no reason here.
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
    /// All of them. One that is added comes last: a program of another version knows them by their places.
    pub const ALL: [DropReason; 6] = [
        DropReason::TxRefused,
        DropReason::TxNoPort,
        DropReason::TxDisabled,
        DropReason::RxTooLong,
        DropReason::RxNotOffloaded,
        DropReason::RxFailed,
    ];

    /// Whether the frame was one for the guest.
    pub fn is_rx(self) -> bool {
        matches!(self, DropReason::RxTooLong | DropReason::RxNotOffloaded | DropReason::RxFailed)
    }

    /// What programs call its counter.
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
    /// The counter of frames that went nowhere for this reason.
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

/// The counters are words in their order, as many for each pair. One that is added comes last: a program of
/// another version finds those that it knows in their places.
const KIND: Kind = Kind { magic: *b"voltCNTR", version: 1 };

/// The counters of all queue pairs of a device, in memory that another process can go on with.
#[derive(Clone, Debug)]
pub struct CounterMemory {
    words: Arc<SharedWords>,
    /// Words of a pair: more than ours in memory that a later version has made.
    stride: usize,
}

impl CounterMemory {
    /// Counters at zero.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub fn new(pairs: usize) -> Result<CounterMemory, WordsError> {
        let words = SharedWords::create("volt-counters", KIND, pairs * WORDS)?;
        Ok(CounterMemory { words: Arc::new(words), stride: WORDS })
    }

    /// Those of another process; of an earlier version, which has fewer, a copy with room for all. Whether it
    /// is one.
    ///
    /// # Errors
    ///
    /// When it is something else.
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

    /// The memory, for another process; `None` where it cannot have it.
    pub fn file(&self) -> Option<&File> {
        self.words.file()
    }

    /// The counters of `pair`.
    ///
    /// # Panics
    ///
    /// When there are fewer pairs, as where they are used.
    pub fn of(&self, pair: usize) -> &Counters {
        self.words.view(pair * self.stride)
    }

    /// The same for a worker.
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
    /// Those that are not 0, or `nothing`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (name, count) in self.all().filter(|(_, count)| *count > 0) {
            write!(f, "{comma}{name} {count}")?;
            comma = ", ";
        }
        if comma.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}

/// Memory of a version that has so many counters, on so many pairs, each word holding its number.
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

    /// They are words in memory that other versions go on with: what is there stays where it is.
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
        // What only the later one knows is still there.
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
