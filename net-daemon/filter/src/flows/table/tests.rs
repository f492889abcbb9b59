use std::sync::atomic::AtomicU64;

use super::*;
use crate::testing::ip;

const MOST: usize = 256;

fn memory() -> Vec<AtomicU64> {
    let memory: Vec<_> = (0..words(MOST)).map(|_| AtomicU64::new(0)).collect();
    prepare(&memory, [1, 2], MOST);
    memory
}

fn key(number: u32) -> Key {
    Key::neighbour(std::net::IpAddr::V4(number.into()))
}

fn insert(table: &Table<'_>, number: u32) -> Result<(), Full> {
    table.insert(&key(number), |entry| entry.set_lifetime(100)).map(|_| ())
}

#[test]
fn as_many_entries_as_it_says_and_no_more() {
    let (memory, locks) = (memory(), Locks::default());
    let table = Table::new(&memory, &locks, MOST, 10);
    for number in 0..MOST as u32 {
        insert(&table, number).unwrap();
    }
    assert_eq!(insert(&table, 1_000_000), Err(Full));
    // One that is there is no further one.
    insert(&table, 7).unwrap();
    assert!((0..MOST as u32).all(|number| table.find(&key(number)).is_some()));
    assert!(table.find(&key(1_000_000)).is_none());
    table.remove(&key(7));
    assert!(table.find(&key(7)).is_none());
    assert_eq!(table.used(), MOST - 1);
    insert(&table, 1_000_000).unwrap();
}

#[test]
fn expired_entries_make_room() {
    let (memory, locks) = (memory(), Locks::default());
    let table = Table::new(&memory, &locks, MOST, 10);
    (0..MOST as u32).for_each(|number| insert(&table, number).unwrap());
    table.find(&key(3)).unwrap().seen(50);
    let later = Table::new(&memory, &locks, MOST, 111);
    assert!(later.find(&key(4)).is_none() && later.find(&key(3)).is_some());
    (1000..1000 + MOST as u32 - 1).for_each(|number| insert(&later, number).unwrap());
    assert_eq!(insert(&later, 5000), Err(Full));
    assert!(later.find(&key(3)).is_some());
}

/// Whatever a process had done when it died, the next one finds whole entries and their number.
#[test]
fn a_process_may_die_at_any_time() {
    let (memory, locks) = (memory(), Locks::default());
    let table = Table::new(&memory, &locks, MOST, 10);
    (0..9).for_each(|number| insert(&table, number).unwrap());
    // It had written an entry, but not its mark; and a mark, but not the count.
    let marks = HEADER..HEADER + places(MOST);
    let marked = memory[marks].iter().find(|mark| mark.load(Relaxed) != 0).unwrap();
    marked.store(0, Relaxed);
    memory[USED].store(99, Relaxed);
    prepare(&memory, [3, 4], MOST);
    let next = Table::new(&memory, &locks, MOST, 10);
    assert_eq!(next.used(), 8);
    // The key is the first one's: the others are found.
    assert_eq!((0..9).filter(|number| next.find(&key(*number)).is_some()).count(), 8);
}

#[test]
fn threads_insert_at_the_same_time() {
    let (memory, locks) = (memory(), Locks::default());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (memory, locks) = (&memory, &locks);
            scope.spawn(move || {
                let table = Table::new(memory, locks, MOST, 10);
                for number in 0..200 {
                    // Half of them are the same in all threads.
                    let number = if number % 2 == 0 { number } else { number + 1000 * thread };
                    let _ = insert(&table, number);
                    if number % 7 == 0 {
                        table.remove(&key(number));
                    }
                }
            });
        }
    });
    let table = Table::new(&memory, &locks, MOST, 10);
    let marks = memory[HEADER..HEADER + places(MOST)].iter().filter(|mark| mark.load(Relaxed) != 0).count();
    assert_eq!(table.used(), marks);
    assert!(marks <= MOST + 4);
}

#[test]
fn keys_tell_ends_apart() {
    assert_ne!(Key::neighbour(ip("0.0.0.1")).0, Key::neighbour(ip("::2")).0);
    assert_eq!(Key::neighbour(ip("192.0.2.1")).peer(), ip("192.0.2.1"));
    assert_ne!(Key::neighbour(ip("192.0.2.1")), Key::neighbour(ip("::192.0.2.1")));
}
