//! Vectors, masks and messages, and the conditions for sending one.

use super::*;

#[test]
fn each_vring_has_the_message_of_its_vector() {
    let mut driver = Driver::new();
    for vector in 0..3 {
        driver.set_message(vector, message(vector), 0);
    }
    assert_eq!(driver.set_vector(None, 0), 0);
    assert_eq!(driver.set_vector(Some(0), 1), 1);
    assert_eq!(driver.messages(), [None; 3], "MSI-X is off");
    driver.set_msix_control(ENABLE);
    assert_eq!(driver.messages(), [Some(message(1)), None, Some(message(0))]);
    assert_eq!(driver.set_vector(Some(1), 3), NO_VECTOR, "there are three");
    assert_eq!(driver.set_vector(Some(1), 1), 1, "two vrings may share one");
    assert_eq!(driver.messages(), [Some(message(1)), Some(message(1)), Some(message(0))]);
    driver.set_message(1, message(7), 0);
    assert_eq!(driver.messages(), [Some(message(7)), Some(message(7)), Some(message(0))]);
    driver.set_msix_control(ENABLE | MASK_ALL);
    assert_eq!(driver.messages(), [None; 3]);
    driver.set_msix_control(ENABLE);
    driver.write(0x14, &[0]);
    assert_eq!(driver.messages(), [None; 3], "a reset takes the vectors back");
    assert_eq!(driver.set_vector(Some(0), 1), 1);
    assert_eq!(driver.messages(), [Some(message(7)), None, None], "but not the table");
}

/// A function without bus mastering, which kexec disables for all functions, touches no memory and sends no
/// message. Its state of the rings is lost, so it requests a reset. Its driver gets that request when
/// messages are allowed again.
#[test]
fn without_bus_mastering_it_touches_no_memory() {
    let mut driver = Driver::new();
    let activations = |driver: &Driver| driver.log.lock().unwrap().activations.len();
    driver.set_msix_control(ENABLE);
    driver.set_message(0, message(9), 0);
    driver.negotiate(Features::VERSION_1);
    driver.add_vring(0, 16, 0x1_0000);
    driver.set_vector(None, 0);
    driver.start();
    assert_eq!((activations(&driver), driver.messages()[2]), (1, Some(message(9))));
    let resets = driver.log.lock().unwrap().resets;
    driver.function.write_config(4, &[2, 0]);
    assert_eq!(driver.log.lock().unwrap().resets, resets + 1);
    assert_eq!((driver.status(), driver.messages()), (0x4f, vec![None; 3]));
    assert_eq!(driver.read::<8>(PENDING), [1, 0, 0, 0, 0, 0, 0, 0]);
    driver.function.write_config(4, &[6, 0]);
    assert_eq!((driver.status(), driver.messages()[2]), (0x4f, Some(message(9))));
    assert_eq!(activations(&driver), 1, "not before a reset");

    // A driver that enables it last is served from then on.
    driver.function.write_config(4, &[2, 0]);
    driver.negotiate(Features::VERSION_1);
    driver.add_vring(0, 16, 0x1_0000);
    assert_eq!((driver.start(), activations(&driver)), (15, 1));
    driver.function.write_config(4, &[6, 0]);
    assert_eq!((driver.status(), activations(&driver)), (15, 2));
    driver.function.write_config(4, &[6, 4]);
    assert_eq!((driver.status(), activations(&driver)), (15, 2));
}

/// An interrupt of a masked vector is pending until it is unmasked. Without a vector, it is lost.
#[test]
fn interrupts_wait_behind_a_mask() {
    let mut driver = Driver::new();
    driver.set_msix_control(ENABLE);
    driver.set_message(1, message(5), 1);
    driver.negotiate(Features::VERSION_1);
    driver.add_vring(0, 16, 0x1_0000);
    driver.start();
    let interrupt = driver.log.lock().unwrap().interrupt.clone().unwrap();
    interrupt.used(0);
    driver.set_vector(Some(0), 1);
    assert_eq!(driver.read::<8>(PENDING), [0; 8], "it had no vector then");
    interrupt.used(0);
    interrupt.used(1);
    assert_eq!(driver.read::<8>(PENDING), [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.read::<8>(PENDING), [2, 0, 0, 0, 0, 0, 0, 0], "reading takes nothing away");
    driver.set_message(1, message(5), 0);
    assert_eq!(driver.read::<8>(PENDING), [0; 8]);
    assert!(interrupt.call(0).read().is_ok(), "with a message it is on its way");
}

#[test]
fn the_isr_status_is_cleared_by_reading() {
    let mut driver = Driver::new();
    driver.negotiate(Features::VERSION_1);
    driver.add_vring(0, 16, 0x1_0000);
    driver.start();
    let interrupt = driver.log.lock().unwrap().interrupt.clone().unwrap();
    interrupt.used(0);
    let before = driver.read::<1>(0x15);
    interrupt.config_changed();
    assert_ne!(driver.read::<1>(0x15), before, "config_generation");
    assert_eq!(driver.read::<1>(ISR), [3]);
    assert_eq!(driver.read::<1>(ISR), [0]);
    interrupt.needs_reset();
    assert_eq!(driver.status(), 0x4f);
    assert_eq!(driver.read::<1>(ISR), [2]);
    driver.set_msix_control(ENABLE);
    interrupt.used(0);
    assert_eq!(driver.read::<1>(ISR), [0], "vrings tell by their vectors");
}
