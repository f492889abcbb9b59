//! A hash table of flows in memory that outlives the process.
//!
//! ```text
//! words  0      random key: two words
//!        2      entries in use
//!        3      where the search for expired entries goes on
//!        4      second of the last search through all places
//!        6 ...  marks: one word for each place, 0 if it is free, otherwise part of the hash
//!        ...    entries, in the same order
//! ```
//!
//! A mark is stored after its entry, so that a process that dies in between has inserted nothing. Eight marks
//! are a bucket in one cache line. An entry is in one of two buckets of its shard, chosen by a keyed hash
//! (SipHash-1-3), so that a guest cannot fill a bucket of its choice. There are twice as many places as
//! entries: buckets are practically never full before the table is.

use std::hash::Hasher;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Mutex, PoisonError};

use siphasher::sip::SipHasher13;

use crate::flows::entry::{self, Entry};
use crate::flows::key::Key;

/// Words before the marks.
const HEADER: usize = 6;
const KEY: usize = 0;
const USED: usize = 2;
const HAND: usize = 3;
const SEARCHED: usize = 4;
/// Places in a bucket.
const BUCKET: usize = 8;
/// Places that each insertion searches for expired entries: more than one, so that the table empties faster
/// than it fills.
const SWEPT: usize = 4 * BUCKET;
/// Most shards: threads that insert at the same time seldom wait for each other.
const SHARDS: usize = 16;
/// Least buckets of a shard: with fewer, one could be full long before the table is.
const SHARD: usize = 64;

/// One lock for each shard. They are not part of the memory, because only one process judges at a time.
#[derive(Debug, Default)]
pub struct Locks([Mutex<()>; SHARDS]);

/// The table.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    memory: &'a [AtomicU64],
    locks: &'a Locks,
    /// Most entries.
    most: usize,
    /// A power of two.
    places: usize,
    now: u32,
}

/// There is no place for another entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// Returns how many places a table for so many entries has.
const fn places(most: usize) -> usize {
    let places = (2 * most).next_power_of_two();
    if places < 4 * BUCKET { 4 * BUCKET } else { places }
}

/// Returns how many words a table for so many entries needs.
pub const fn words(most: usize) -> usize {
    HEADER + places(most) * (1 + entry::WORDS)
}

/// Prepares memory: sets `key` if it has none, and counts the entries.
pub fn prepare(memory: &[AtomicU64], key: [u64; 2], most: usize) {
    if memory[KEY].load(Relaxed) == 0 && memory[KEY + 1].load(Relaxed) == 0 {
        // Not both 0, which is no key.
        memory[KEY].store(key[0] | 1, Relaxed);
        memory[KEY + 1].store(key[1], Relaxed);
    }
    count(memory, places(most));
}

/// Counts the entries: a process that died may have inserted without counting.
fn count(memory: &[AtomicU64], places: usize) {
    let used = memory[HEADER..HEADER + places].iter().filter(|mark| mark.load(Relaxed) != 0).count();
    memory[USED].store(used as u64, Relaxed);
}

impl<'a> Table<'a> {
    /// Uses [`words`] words of `memory`, which were [prepared](prepare), for up to `most` entries.
    #[inline]
    pub fn new(memory: &'a [AtomicU64], locks: &'a Locks, most: usize, now: u32) -> Table<'a> {
        Table { memory, locks, most, places: places(most), now }
    }

    /// Returns the number of entries, expired ones that were not found yet included.
    pub fn used(&self) -> usize {
        self.memory[USED].load(Relaxed) as usize
    }

    /// Finds the entry with this key, unless it has expired.
    #[inline]
    pub fn find(&self, key: &Key) -> Option<Entry<'a>> {
        let hash = self.hash(key);
        self.buckets(hash).into_iter().find_map(|bucket| self.find_in(bucket, mark(hash), key))
    }

    #[inline]
    fn find_in(&self, bucket: usize, mark: u64, key: &Key) -> Option<Entry<'a>> {
        let first = HEADER + bucket * BUCKET;
        let marks = &self.memory[first..first + BUCKET];
        (0..BUCKET).filter(|place| marks[*place].load(Acquire) == mark).find_map(|place| {
            let entry = self.entry(bucket * BUCKET + place);
            (entry.has(key) && !entry.is_expired(self.now)).then_some(entry)
        })
    }

    /// Inserts an entry, which `fill` completes before it can be found. Returns whether it is new: another
    /// thread may have inserted it meanwhile.
    ///
    /// # Errors
    ///
    /// Fails if the table is full.
    pub fn insert(&self, key: &Key, fill: impl FnOnce(Entry<'a>)) -> Result<(Entry<'a>, bool), Full> {
        let hash = self.hash(key);
        let _lock = self.locks.0[self.shard(hash)].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.find(key) {
            return Ok((entry, false));
        }
        self.sweep(SWEPT);
        if self.used() >= self.most {
            // Once a second, so that a guest that fills the table does not buy a search with each frame.
            if self.memory[SEARCHED].swap(self.now.into(), Relaxed) != u64::from(self.now) {
                self.sweep(self.places);
                count(self.memory, self.places);
            }
            if self.used() >= self.most {
                return Err(Full);
            }
        }
        // The emptier bucket, so that both fill evenly.
        let free = self.buckets(hash).map(|bucket| self.free_places(bucket));
        let [one, other] = free.map(|(count, place)| place.map(|place| (count, place)));
        let (_, place) = one.max(other).ok_or(Full)?;
        let entry = self.entry(place);
        entry.clear(key, self.now);
        fill(entry);
        self.memory[HEADER + place].store(mark(hash), Release);
        self.memory[USED].fetch_add(1, Relaxed);
        Ok((entry, true))
    }

    /// Removes the entry with this key.
    pub fn remove(&self, key: &Key) {
        let hash = self.hash(key);
        let _lock = self.locks.0[self.shard(hash)].lock().unwrap_or_else(PoisonError::into_inner);
        for place in self.buckets(hash).into_iter().flat_map(|bucket| bucket * BUCKET..(bucket + 1) * BUCKET)
        {
            let seen = self.memory[HEADER + place].load(Acquire);
            if seen == mark(hash) && self.entry(place).has(key) {
                self.free(place, seen);
            }
        }
    }

    /// Frees those of the next `count` places whose entries have expired.
    fn sweep(&self, count: usize) {
        let places = self.places;
        let hand = self.memory[HAND].fetch_add(count as u64, Relaxed) as usize % places;
        for place in (hand..hand + count).map(|place| place % places) {
            let seen = self.memory[HEADER + place].load(Acquire);
            if seen != 0 && self.entry(place).is_expired(self.now) {
                self.free(place, seen);
            }
        }
    }

    /// Returns the number of free places of a bucket, and one of them.
    fn free_places(&self, bucket: usize) -> (usize, Option<usize>) {
        let places = bucket * BUCKET..(bucket + 1) * BUCKET;
        let free = places.filter(|place| self.is_free(*place));
        free.fold((0, None), |(count, _), place| (count + 1, Some(place)))
    }

    /// Whether a place is free, or its entry has expired, which is then freed.
    fn is_free(&self, place: usize) -> bool {
        let seen = self.memory[HEADER + place].load(Acquire);
        if seen != 0 && self.entry(place).is_expired(self.now) {
            self.free(place, seen);
        }
        self.memory[HEADER + place].load(Acquire) == 0
    }

    /// Frees a place that has this mark. A thread of another shard may have freed it meanwhile, and one of
    /// this shard may have filled it again with another flow, which stays.
    fn free(&self, place: usize, seen: u64) {
        if self.memory[HEADER + place].compare_exchange(seen, 0, AcqRel, Relaxed).is_ok() {
            // Never below 0, although a count may have run meanwhile.
            let _ = self.memory[USED].fetch_update(Relaxed, Relaxed, |used| used.checked_sub(1));
        }
    }

    fn entry(&self, place: usize) -> Entry<'a> {
        let first = HEADER + self.places + place * entry::WORDS;
        Entry::new(&self.memory[first..first + entry::WORDS])
    }

    fn hash(&self, key: &Key) -> u64 {
        let [first, second] = [KEY, KEY + 1].map(|word| self.memory[word].load(Relaxed));
        let mut hasher = SipHasher13::new_with_keys(first, second);
        key.hash_into(&mut hasher);
        hasher.finish()
    }

    fn shard(&self, hash: u64) -> usize {
        hash as usize & (self.shards() - 1)
    }

    /// Returns the number of shards: a power of two.
    fn shards(&self) -> usize {
        (self.places / BUCKET / SHARD).clamp(1, SHARDS)
    }

    /// Returns the two buckets of a hash, which belong to its shard.
    fn buckets(&self, hash: u64) -> [usize; 2] {
        let in_shard = self.places / BUCKET / self.shards();
        let first = self.shard(hash) * in_shard;
        let one = (hash >> 4) as usize & (in_shard - 1);
        // An odd distance: never the same one.
        let other = (one + ((hash >> 24) as usize | 1)) & (in_shard - 1);
        [first + one, first + other]
    }
}

/// Returns the mark for a hash: never 0.
fn mark(hash: u64) -> u64 {
    hash | 1
}

#[cfg(test)]
mod tests;
