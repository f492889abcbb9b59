//! Tests of a guest whose frames are judged.

use volt_net::port::socket::SocketPort;

use super::tests::{MAC, TX, wake, wires};
use super::*;
use crate::virtio::testing::Driver;

/// With `guard=on`, a guest sends with its own addresses only. What is refused counts as a drop.
#[test]
fn a_guarded_guest_sends_as_itself() {
    let (sockets, mut wires) = wires(1);
    let (wire, wake) = (wires.remove(0), wake());
    let builder = VirtioNetBuilder::over(SocketPort::new(sockets).unwrap()).mac(MAC).wake(wake.clone());
    let device = builder.guard(vec!["192.0.2.10".parse().unwrap()]).build().unwrap();
    let net = Net::in_process("test", device, wake, &Arc::default()).unwrap();
    let handle = net.handle();
    let mut driver = Driver::new(net);
    driver.run(Features::VERSION_1, &[0, 1]);
    // Who has 192.0.2.1?
    let arp = |host: u8| {
        let request = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC.0, &[192, 0, 2, host], &[0; 6], &[192, 0, 2, 1]];
        [&[0; 12][..], &[0xff; 6], &MAC.0, &[8, 6], &request.concat(), &[0; 18]].concat()
    };
    for host in [11, 10] {
        driver.put(TX, &arp(host));
        assert_eq!(driver.request(1, &[(TX, 72, false)]), 0);
    }
    let mut frame = [0; 256];
    let len = wire.recv(&mut frame).unwrap();
    assert_eq!(frame[..len], arp(10));
    let status = serde_json::to_value(handle.status()).unwrap();
    assert_eq!((&status["vrings"][1]["frames"], &status["vrings"][1]["drops"]), (&1.into(), &1.into()));
}
