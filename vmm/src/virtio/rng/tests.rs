use super::*;
use crate::virtio::testing::{BUFFERS, Driver};

#[test]
fn buffers_are_filled_and_what_is_odd_comes_back_empty() {
    let mut driver = Driver::new(Rng::new(&Arc::default()));
    for round in 0..2 {
        driver.run(Features::VERSION_1, &[0]);
        assert_eq!(driver.request(0, &[(BUFFERS, 100, true), (BUFFERS + 200, 28, true)]), 128, "{round}");
        // A probability of 2^-224.
        assert_ne!(driver.get(BUFFERS + 200, 28), [0; 28]);
        assert_eq!(driver.get(BUFFERS + 100, 100), [0; 100], "nothing between the buffers");
        driver.put(BUFFERS, &[0; 256]);
        assert_eq!(driver.request(0, &[(BUFFERS, 100, false)]), 0, "nothing to write to");
        assert_eq!(driver.request(0, &[(BUFFERS, 1 << 20, true)]), 1 << 16, "as much as one request gets");
        driver.put(BUFFERS, &[0; 256]);
    }
}
