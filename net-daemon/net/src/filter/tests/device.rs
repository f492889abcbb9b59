//! Tests of a device with a filter, and of a filter in the next process.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;

use super::*;
use crate::builder::VirtioNetBuilder;
use crate::device::{HexBytes, NetDevice, PairVrings, RunState};
use crate::port::socket::SocketPort;
use crate::testing::until;

#[test]
fn another_process_continues_with_the_memory_and_nothing_else() {
    let filter = DeviceFilter::new(setup()).unwrap();
    let queue = FilterQueue::new(&filter, Arc::new(Recorder::default()), counters(), None, None);
    let count = |filter: &DeviceFilter| filter.filter().refused().map(|(_, _, count)| count).sum::<u64>();
    assert!(queue.send(&[IoPart::from_slice(&mut udp(PEER, 60, 1))]).is_err());
    let mut out = Exporter::default();
    let state = filter.export(&mut out);
    let pass = |out: Exporter<'_>| -> BTreeMap<_, _> {
        out.into_fds().into_iter().map(|(id, fd)| (id, fd.try_clone_to_owned().unwrap())).collect()
    };
    let mut from = Importer::new(pass(out));
    let next = DeviceFilter::import(state.clone(), &mut from).unwrap();
    assert_eq!((count(&next), next.filter().setup()), (1, &setup()));
    assert!(matches!(DeviceFilter::import(state.clone(), &mut from), Err(DeviceFilterError::State(_))));
    // The same guest with other settings: the memory stays, unless the table has another size.
    let longer = Setup { addresses: Vec::new(), ..setup() };
    let longer = next.with_setup(longer).unwrap();
    let mut out = Exporter::default();
    assert_eq!((count(&longer), longer.export(&mut out).memory), (1, state.memory));
    let other = next.with_setup(Setup { flows: 64, ..setup() }).unwrap();
    assert_eq!(count(&other), 0);
    assert_ne!(other.export(&mut out).memory, state.memory);
    // Memory of something else.
    let words = SharedWords::create("test", Kind { magic: *b"voltTEST", version: 1 }, 4096).unwrap();
    let file = words.file().unwrap().try_clone().unwrap();
    let mut from = Importer::new(BTreeMap::from([(state.memory, file.into())]));
    assert!(matches!(DeviceFilter::import(state, &mut from), Err(DeviceFilterError::Memory(_))));
}

/// A frame that a process without a filter received is judged before it is delivered.
#[test]
fn a_waiting_frame_is_judged() {
    for (policy, delivered) in [(None, 1), (Some(String::new()), 0)] {
        let (near, _far) = UnixDatagram::pair().unwrap();
        let port = SocketPort::new(vec![near.into()]).unwrap();
        let mut device = VirtioNetBuilder::over(port).build().unwrap().into_device();
        let stashes = vec![Some(HexBytes(udp(PEER, 60, 1)))];
        device.set_run_state(RunState { stashes, ..RunState::default() });
        device.set_filter(Some(DeviceFilter::new(Setup { policy, ..setup() }).unwrap()));
        let mut driver = Driver::new(8, Features::empty());
        driver.add(&[(BUFFERS, 2000, true)]);
        let rx = Some(Rig::vring(&driver, 0));
        device.start(0, PairVrings { rx, ..PairVrings::default() }, Features::empty()).unwrap();
        let counts = |device: &NetDevice| {
            let counters = device.counters(0);
            (counters.rx_frames.get(), counters.rx_filtered.get())
        };
        until("it is judged", || counts(&device) == (delivered, 1 - delivered));
        device.stop(0).unwrap();
        assert_eq!(driver.take_used().len() as u64, delivered);
    }
}
