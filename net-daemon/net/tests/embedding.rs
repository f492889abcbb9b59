//! The example of an embedded device works.

#[path = "../examples/embed.rs"]
mod embed;

/// A device over a port of the program is built, activated, notified and reset, twice. Its frame arrives.
#[test]
fn the_example_sends_its_frame() {
    let frame = embed::send_a_frame().unwrap();
    assert_eq!(frame[12..18], [0xff; 6]);
    assert_eq!(frame[18..], *b"hello, wire and all on it");
}
