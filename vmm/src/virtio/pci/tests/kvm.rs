//! With KVM: checks the assumptions of the unit tests about eventfds and routes.
#![expect(unsafe_code, reason = "memory slots of a virtual machine")]

use std::fs::File;

use kvm_bindings::{KVM_APIC_REG_SIZE, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::*;
use crate::virtio::testing::{eventually, load_code};

/// Interrupt request register of a local APIC, and its spurious-vector register with the software enable.
const IRR: usize = 0x200;
const SPURIOUS: usize = 0xf0;
const SOFTWARE_ENABLE: i8 = 1;

fn machine(test: &str) -> Option<(Arc<VmFd>, VcpuFd)> {
    let usable = File::options().read(true).write(true).open("/dev/kvm").and_then(|_| Ok(Kvm::new()?));
    let kvm = match usable {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("SKIP {test}: /dev/kvm: {error}");
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut lapic = vcpu.get_lapic().unwrap();
    lapic.regs[SPURIOUS + 1] |= SOFTWARE_ENABLE;
    vcpu.set_lapic(&lapic).unwrap();
    Some((Arc::new(vm), vcpu))
}

/// Returns whether interrupt `number` was requested from the local APIC.
fn requested(vcpu: &VcpuFd, number: usize) -> bool {
    let lapic = vcpu.get_lapic().unwrap();
    assert!(lapic.regs.len() <= KVM_APIC_REG_SIZE as usize);
    // Eight registers of 32 bits, 16 bytes apart.
    lapic.regs[IRR + number / 32 * 16 + number % 32 / 8] as u8 & 1 << (number % 8) != 0
}

/// A vring's eventfd becomes the message of its vector. A write during a mask becomes a message after it.
/// After the driver changes the message, the new one is sent.
#[test]
fn interrupts_by_irqfd_and_route() {
    let Some((vm, vcpu)) = machine("interrupts_by_irqfd_and_route") else { return };
    let log = Arc::new(Mutex::new(Log::default()));
    let routes = Arc::new(MsiRoutes::new(Arc::clone(&vm)));
    let device = Box::new(Recorder(Arc::clone(&log)));
    let function = PciTransport::new(device, memory(), &vm, &routes, BASE).unwrap();
    let mut driver = Driver { function, log };
    driver.function.write_config(4, &[6, 0]);
    driver.set_msix_control(ENABLE);
    driver.set_message(0, message(0x41), 0);
    driver.set_vector(Some(1), 0);

    let call = Arc::clone(&driver.function.registers.interrupt);
    call.used(1);
    eventually("the interrupt", || requested(&vcpu, 0x41));
    driver.set_message(0, message(0x52), 1);
    call.used(1);
    assert_eq!(driver.read::<1>(PENDING), [1]);
    assert!(!requested(&vcpu, 0x52), "masked");
    driver.set_message(0, message(0x52), 0);
    eventually("the interrupt that waited", || requested(&vcpu, 0x52));
    driver.set_message(0, message(0x63), 0);
    call.used(1);
    eventually("the interrupt elsewhere", || requested(&vcpu, 0x63));
    driver.set_vector(Some(1), NO_VECTOR);
    call.used(1);
    assert_eq!(driver.messages(), [None; 3]);
}

/// Any write of a guest to a vring's notification address reaches the vring's eventfd inside the kernel,
/// without an exit.
#[test]
fn notification_by_ioeventfd() {
    const LOW_BASE: u32 = 0xd_0000;
    let Some((vm, mut vcpu)) = machine("notification_by_ioeventfd") else { return };
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
    let routes = Arc::new(MsiRoutes::new(Arc::clone(&vm)));
    let device = Box::new(Recorder(Arc::default()));
    let function = PciTransport::new(device, memory.clone(), &vm, &routes, LOW_BASE).unwrap();

    // mov ax, 0xd300; mov ds, ax; mov word [4], 9; mov byte [4], 7; out 0x80, al
    let code =
        [0xb8, 0x00, 0xd3, 0x8e, 0xd8, 0xc7, 0x06, 0x04, 0x00, 9, 0, 0xc6, 0x06, 0x04, 0x00, 7, 0xe6, 0x80];
    load_code(&vcpu, &memory, &code);
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::IoOut(0x80, _)));
    assert_eq!(function.registers.kicks[1].read().unwrap(), 2);
    assert!(function.registers.kicks[0].read().is_err());
}

/// More functions are added and removed than KVM has interrupts. Each works, at the same addresses.
#[test]
fn what_a_function_had_is_the_nexts() {
    let Some((vm, vcpu)) = machine("what_a_function_had_is_the_nexts") else { return };
    let routes = Arc::new(MsiRoutes::new(Arc::clone(&vm)));
    let eventfd = Arc::new(EventFd::new(0).unwrap());
    for _ in 0..10_000 {
        assert!(MsiLine::new(Arc::clone(&eventfd), &routes).is_some());
    }
    for vector in [0x41, 0x52, 0x63] {
        let log = Arc::new(Mutex::new(Log::default()));
        let device = Box::new(Recorder(Arc::clone(&log)));
        let function = PciTransport::new(device, memory(), &vm, &routes, BASE).unwrap();
        let mut driver = Driver { function, log };
        driver.function.write_config(4, &[6, 0]);
        driver.set_msix_control(ENABLE);
        driver.set_message(0, message(vector), 0);
        driver.set_vector(Some(1), 0);
        let call = Arc::clone(&driver.function.registers.interrupt);
        call.used(1);
        eventually("the interrupt", || requested(&vcpu, vector as usize));
        drop(driver);
        // Nothing receives it any more.
        call.used(1);
        assert!(call.call(1).read().is_ok());
    }
}
