use super::*;

fn ends() -> (RingWriter, RingReader) {
    let words = Arc::new(memory(1).unwrap());
    let memory = words.file().unwrap().try_clone().unwrap();
    (RingWriter::new(&words, 0, 1), readers(memory.into(), 1).unwrap().remove(0))
}

fn write(writer: &RingWriter, number: u64, len: usize) {
    let mut frame = vec![number as u8; len];
    let entry = Entry { is_rx: false, fate: Fate::Passed.code(), time: number, len, snap: 100 };
    writer.write(&entry, &[IoPart::from_slice(&mut frame)]);
}

fn hold(writer: &RingWriter, number: u64) {
    let entry = Entry { is_rx: true, fate: Fate::Passed.code(), time: number, len: 20, snap: 100 };
    writer.hold(&entry, &[IoPart::from_slice(&mut [number as u8; 20])]);
}

fn all(reader: &mut RingReader) -> Vec<Captured> {
    std::iter::from_fn(|| reader.next_time(false).map(|_| reader.take().unwrap())).collect()
}

/// Goes around the ring many times. The ring's length is not a multiple of an entry's.
#[test]
fn frames_come_out_as_they_went_in() {
    let (writer, mut reader) = ends();
    for number in 0..100_000 {
        let len = 12 + number as usize % 200;
        write(&writer, number, len);
        if number % 50 == 0 {
            for (captured, number) in all(&mut reader).into_iter().rev().zip((0..=number).rev()) {
                let len = 12 + number as usize % 200;
                let bytes = vec![number as u8; len.min(100)];
                let expected =
                    Captured { is_rx: false, fate: Fate::Passed, time: number, len, bytes, lost: 0 };
                assert_eq!(captured, expected);
            }
        }
    }
    assert_eq!((writer.frames(), writer.lost()), (100_000, 0));
}

#[test]
fn what_finds_no_room_is_lost_and_counted() {
    let (writer, mut reader) = ends();
    let mut frame = vec![7; 60_000];
    for time in 0..1000 {
        let entry = Entry { is_rx: false, fate: Fate::Passed.code(), time, len: 60_000, snap: 60_000 };
        writer.write(&entry, &[IoPart::from_slice(&mut frame)]);
    }
    let read = all(&mut reader);
    let room = (BYTES / 60_100) as u64;
    assert!((room - 1..=room + 1).contains(&(read.len() as u64)), "{}", read.len());
    assert!(read.iter().map(|captured| captured.time).eq(0..read.len() as u64), "those that came first");
    let lost = 1000 - read.len() as u64;
    assert_eq!((writer.lost(), reader.lost()), (lost, lost));
    write(&writer, 5, 20);
    assert_eq!(all(&mut reader)[0].lost, lost, "told with the next one");
    write(&writer, 6, 20);
    assert_eq!(all(&mut reader)[0].lost, 0);
}

#[test]
fn a_frame_is_held_until_it_is_known_what_becomes_of_it() {
    let (writer, mut reader) = ends();
    hold(&writer, 1);
    assert_eq!(all(&mut reader), []);
    assert!(writer.mark_held(DropReason::RxNotOffloaded));
    assert_eq!(all(&mut reader)[0].fate, Fate::Dropped(DropReason::RxNotOffloaded));
    assert!(!writer.mark_held(DropReason::RxFailed), "it is not held any more");
    hold(&writer, 2);
    hold(&writer, 3);
    let read = all(&mut reader);
    assert_eq!(
        read.iter().map(|captured| (captured.time, captured.fate)).collect::<Vec<_>>(),
        [(2, Fate::Passed)]
    );
    // A frame is not held forever. Afterwards it cannot be marked.
    crate::testing::until("a held frame is shown", || !all(&mut reader).is_empty());
    assert!(!writer.mark_held(DropReason::RxTooLong));
    write(&writer, 4, 20);
    assert_eq!(all(&mut reader)[0].time, 4);
    hold(&writer, 5);
    assert_eq!(reader.next_time(true), Some(5), "who reads for the last time takes it at once");
}

/// A process that has the memory can write anything. The writer stays within its ring, and counts frames that
/// it cannot write.
#[test]
fn a_reader_that_says_nonsense_has_no_room() {
    for nonsense in [100, 1 << 40, u64::MAX, 1 << 63] {
        let (writer, reader) = ends();
        write(&writer, 1, 20);
        reader.ring.control(TAIL).store(nonsense, Relaxed);
        write(&writer, 2, 20);
        hold(&writer, 3);
        writer.mark_held(DropReason::RxFailed);
        assert_eq!((writer.frames(), writer.lost()), (1, 2), "{nonsense}");
        reader.ring.control(TAIL).store(0, Relaxed);
        write(&writer, 4, 20);
        assert_eq!(writer.frames(), 2);
    }
}

#[test]
fn a_writer_that_says_nonsense_is_told() {
    for (word, value) in [(0, 0), (0, 3), (0, u64::MAX), (2, 1 << 20), (2, 0)] {
        let (writer, mut reader) = ends();
        write(&writer, 1, 20);
        reader.ring.word(word).store(value, Relaxed);
        assert_eq!(reader.take(), Err(Garbled), "word {word} is {value}");
    }
}

#[test]
fn other_memory_is_refused() {
    let memory = || memory(2).unwrap().file().unwrap().try_clone().unwrap().into();
    assert_eq!(readers(memory(), 2).unwrap().len(), 2);
    for rings in [0, usize::MAX, 1 << 20] {
        assert!(readers(memory(), rings).unwrap_err().to_string().ends_with("its length"));
    }
}
