//! With KVM: what the unit tests take for granted of its eventfds and routes.

use std::fs::File;

use kvm_bindings::KVM_APIC_REG_SIZE;
use kvm_ioctls::{Kvm, VcpuFd};

use super::*;
use crate::virtio::testing::eventually;

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

/// Whether the local APIC was asked for interrupt `number`.
fn requested(vcpu: &VcpuFd, number: usize) -> bool {
    let lapic = vcpu.get_lapic().unwrap();
    assert!(lapic.regs.len() <= KVM_APIC_REG_SIZE as usize);
    // Eight registers of 32 bits, 16 bytes apart.
    lapic.regs[IRR + number / 32 * 16 + number % 32 / 8] as u8 & 1 << (number % 8) != 0
}

/// A vring's eventfd becomes the message of its vector; what is written while the vector is masked becomes one when it no
/// longer is; another message is what comes after the driver has changed it.
#[test]
fn interrupts_by_irqfd_and_route() {
    let Some((vm, vcpu)) = machine("interrupts_by_irqfd_and_route") else { return };
    let log = Arc::new(Mutex::new(Log::default()));
    let routes = Arc::new(MsiRoutes::new(Arc::clone(&vm)));
    let device = Box::new(Recorder(Arc::clone(&log)));
    let function = PciTransport::new(device, memory(), &vm, &routes, BASE).unwrap();
    let mut driver = Driver { function, log };
    driver.function.write_config(4, &[2, 0]);
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
