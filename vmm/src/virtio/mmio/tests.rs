use std::sync::{Arc, Mutex};

use virtio_queue::QueueT;
use vm_memory::GuestAddress;
use volt_virtio::features::Features;

use super::*;
use crate::board::layout::MMIO_SLOT_SIZE;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::testing::{Driver, HIGH, REGION};
use crate::virtio::{ActivateError, Activation, copy_config};

const EXTRA: Features = Features::from_bits_retain(1 << 40 | 1);

/// The calls that a device received.
#[derive(Default)]
struct Log {
    activations: Vec<(Features, Vec<(u16, u16)>)>,
    resets: usize,
    interrupt: Option<Arc<dyn Interrupt>>,
}

/// A device with two vrings that only records its calls.
struct Recorder {
    log: Arc<Mutex<Log>>,
    fails: bool,
}

impl VirtioDevice for Recorder {
    fn device_id(&self) -> u32 {
        42
    }

    fn label(&self) -> &str {
        "recorder"
    }

    fn features(&self) -> Features {
        Features::VERSION_1.union(EXTRA)
    }

    fn vring_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&[1, 2, 3, 4, 5, 6], offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.fails {
            return Err(ActivateError::NoVring(1));
        }
        let vrings = activation.vrings.iter().map(|vring| (vring.index, vring.queue.size())).collect();
        let mut log = self.log.lock().unwrap();
        log.activations.push((activation.features, vrings));
        log.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        self.log.lock().unwrap().resets += 1;
    }
}

fn recorder(fails: bool) -> (Driver, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(Log::default()));
    (Driver::new(Recorder { log: log.clone(), fails }), log)
}

#[test]
fn identity_and_offer() {
    let (mut driver, _) = recorder(false);
    assert_eq!(driver.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(driver.offered_features(), Features::VERSION_1.union(EXTRA));
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    let mut sizes = [0; 3];
    for (index, size) in sizes.iter_mut().enumerate() {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        *size = driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX);
    }
    assert_eq!(sizes, [256, 64, 0]);
    assert_eq!(driver.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.config(8), [1, 2, 3, 4, 5, 6, 0, 0]);
}

#[test]
fn a_driver_starts_and_resets_as_often_as_it_likes() {
    let (mut driver, log) = recorder(false);
    for _ in 0..3 {
        driver.run(Features::VERSION_1, &[0, 1]);
        driver.reset();
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    driver.run(Features::VERSION_1.union(EXTRA), &[1]);
    let log = log.lock().unwrap();
    assert_eq!(log.activations[0], (Features::VERSION_1, vec![(0, 16), (1, 16)]));
    assert_eq!(log.activations[3], (Features::VERSION_1.union(EXTRA), vec![(1, 16)]));
    assert_eq!(log.activations.len(), 4);
}

#[test]
fn features_not_offered_or_without_version_1_are_not_ok() {
    let (mut driver, _) = recorder(false);
    assert_eq!(driver.negotiate(Features::VERSION_1.union(Features::NET_MAC)), 3);
    assert_eq!(driver.negotiate(EXTRA), 3);
    assert_eq!(driver.start(), 3, "DRIVER_OK without FEATURES_OK");
    assert_eq!(driver.negotiate(Features::VERSION_1), 11);
}

#[test]
fn status_goes_forward_only() {
    let (mut driver, log) = recorder(false);
    for wrong in [2, 4, 8, 15, 0x10] {
        driver.write(VIRTIO_MMIO_STATUS, wrong);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0, "{wrong}");
    }
    driver.run(Features::VERSION_1, &[0]);
    driver.write(VIRTIO_MMIO_STATUS, 11);
    driver.write(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 15);
    assert_eq!(log.lock().unwrap().activations.len(), 1);
    driver.write(VIRTIO_MMIO_STATUS, 15 | 0x80);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0x8f);
}

#[test]
fn nothing_of_a_running_device_changes() {
    let (mut driver, log) = recorder(false);
    driver.run(Features::VERSION_1, &[0]);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES, 0);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 3);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    assert_eq!(log.lock().unwrap().activations, [(Features::VERSION_1, vec![(0, 16)])]);
}

/// Each of these would be a write outside of guest memory, or a division by zero, if it were not checked.
#[test]
fn bad_vrings_are_found_at_driver_ok() {
    for (size, table, available, used) in [
        (0, 0x1000, 0x2000, 0x3000),
        (3, 0x1000, 0x2000, 0x3000),
        (512, 0x1000, 0x2000, 0x3000),
        (0x1_0010, 0x1000, 0x2000, 0x3000),
        (16, 0x1008, 0x2000, 0x3000),
        (16, 0x1000, 0x2001, 0x3000),
        (16, 0x1000, 0x2000, 0x3002),
        (16, REGION - 16, 0x2000, 0x3000),
        (16, 0x1000, REGION - 36, 0x3000),
        (16, 0x1000, 0x2000, HIGH + REGION - 132),
        (16, u64::MAX - 15, 0x2000, 0x3000),
    ] {
        let (mut driver, log) = recorder(false);
        driver.negotiate(Features::VERSION_1);
        driver.write(VIRTIO_MMIO_QUEUE_NUM, size);
        for (low, value) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            driver.write(low, value as u32);
            driver.write(low + 4, (value >> 32) as u32);
        }
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.start(), 0x4f, "{size} {table:#x} {available:#x} {used:#x}");
        assert!(log.lock().unwrap().activations.is_empty());
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        assert_eq!(driver.negotiate(Features::VERSION_1), 11, "a reset makes it usable again");
    }
}

#[test]
fn a_failed_activation_asks_for_a_reset() {
    let (mut driver, _) = recorder(true);
    driver.negotiate(Features::VERSION_1);
    assert_eq!(driver.start(), 0x4f);
    driver.reset();
}

#[test]
fn config_generation_follows_changes() {
    let (mut driver, log) = recorder(false);
    driver.run(Features::VERSION_1, &[0]);
    let before = driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    log.lock().unwrap().interrupt.as_ref().unwrap().config_changed();
    assert_ne!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), before);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

/// Any write of a guest, of any width and in any state, causes no panic.
#[test]
fn any_access_is_survived() {
    let (mut driver, _) = recorder(false);
    for start in [false, true] {
        if start {
            driver.run(Features::VERSION_1, &[0, 1]);
        }
        for offset in (0..0x120).chain([MMIO_SLOT_SIZE - 1, MMIO_SLOT_SIZE, u64::MAX]) {
            for width in [1, 2, 3, 4, 8, 16] {
                for fill in [0x00, 0x01, 0x0f, 0x80, 0xff] {
                    let mut data = vec![fill; width];
                    driver.transport.write(offset, &data);
                    driver.transport.read(offset, &mut data);
                }
            }
        }
        driver.reset();
    }
}

mod kvm {
    #![expect(unsafe_code, reason = "memory slots and interrupt controller state of a virtual machine")]

    use std::fs::File;

    use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit};
    use vm_memory::GuestMemoryBackend;

    use super::*;
    use crate::virtio::testing::{eventually, load_code, memory};

    const SLOT: MmioSlot = MmioSlot { base: 0xd_0000, gsi: 5 };

    fn kvm(test: &str) -> Option<Kvm> {
        let usable = File::options().read(true).write(true).open("/dev/kvm").and_then(|_| Ok(Kvm::new()?));
        match usable {
            Ok(kvm) => Some(kvm),
            Err(error) => {
                eprintln!("SKIP {test}: /dev/kvm: {error}");
                None
            }
        }
    }

    /// A guest's write to QueueNotify reaches the vring's eventfd inside the kernel, without an exit.
    #[test]
    fn notification_by_ioeventfd() {
        let Some(kvm) = kvm("notification_by_ioeventfd") else { return };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let memory = memory();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: 0x1_0000,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        };
        // SAFETY: the memory stays mapped until `memory` is dropped, after the virtual machine.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        let log = Arc::new(Mutex::new(Log::default()));
        let recorder = Recorder { log, fails: false };
        let transport = MmioTransport::new(Box::new(recorder), memory.clone(), &vm, SLOT).unwrap();

        // mov ax, 0xd000; mov ds, ax; mov dword [0x50], 1; mov dword [0x50], 7; out 0x80, al
        let code = [
            0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0x66, 0xc7, 0x06, 0x50, 0x00, 1, 0, 0, 0, 0x66, 0xc7, 0x06, 0x50,
            0x00, 7, 0, 0, 0, 0xe6, 0x80,
        ];
        let mut vcpu = vm.create_vcpu(0).unwrap();
        load_code(&vcpu, &memory, &code);

        // The first write matches vring 1. There is no vring 7, so that write reaches the transport.
        match vcpu.run().unwrap() {
            VcpuExit::MmioWrite(address, data) => {
                assert_eq!((address, data), (SLOT.base + 0x50, &[7, 0, 0, 0][..]));
            }
            exit => panic!("{exit:?}"),
        }
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::IoOut(0x80, _)));
        assert_eq!(transport.registers.kicks[1].read().unwrap(), 1);
        assert!(transport.registers.kicks[0].read().is_err());
    }

    /// A write of a device or a back-end to the call eventfd arrives at the interrupt controller.
    #[test]
    fn interrupt_by_irqfd() {
        let Some(kvm) = kvm("interrupt_by_irqfd") else { return };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let recorder = Recorder { log: Arc::default(), fails: false };
        let transport = MmioTransport::new(Box::new(recorder), memory(), &vm, SLOT).unwrap();
        let pending = || {
            let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, ..Default::default() };
            vm.get_irqchip(&mut chip).unwrap();
            // SAFETY: the kernel fills in the member of the requested chip.
            unsafe { chip.chip.pic }.irr & 1 << SLOT.gsi != 0
        };
        assert!(!pending());
        transport.registers.interrupt.call(0).write(1).unwrap();
        eventually("the interrupt", pending);
    }
}
