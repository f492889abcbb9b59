//! Builds a machine from a configuration, in the order of a boot.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use log::warn;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::board::bus::{Bus, RangeError};
use crate::board::exit::ExitEvent;
use crate::board::irq::LevelLine;
use crate::board::layout::{
    COM1, COM1_GSI, COM1_SIZE, CONFIG_PORTS, CONFIG_PORTS_SIZE, HOTPLUG_GSI, HOTPLUG_PORTS, KEYBOARD_COMMAND,
    KVM_IDENTITY_MAP, KVM_TSS, MMIO_SLOT_SIZE, MmioSlot, POWER_BUTTON_GSI, RESET_REG, mmio_slot, pci_bar,
};
use crate::board::memory::{self, MemoryError};
use crate::board::pause_gate::PauseGate;
use crate::board::vcpu_error::has_hardware_virtualisation;
use crate::board::{Board, Buses};
use crate::boot::acpi::{self, AcpiError, Hardware};
use crate::boot::kernel::KernelImage;
use crate::boot::kernel::error::KernelError;
use crate::boot::regs::{self, RegsError};
use crate::boot::{self, BootError, Entry, cpuid};
use crate::config::{SerialConfig, Transport, VmConfig};
use crate::console::Console;
use crate::machine::Machine;
use crate::machine::devices::{Device, Devices, PlugError};
use crate::machine::handle::MachineHandle;
use crate::machine::pause::Pause;
use crate::machine::power::{KeyboardReset, PowerButton, PowerRegisters};
use crate::pci::ConfigPorts;
use crate::pci::hotplug::{self, HotplugEvents, HotplugRegisters};
use crate::serial::{Output, Room, Uart};
use crate::vcpu::{self, Vcpu};
use crate::virtio::VirtioDevice;
use crate::virtio::blk::{Block, BlockError};
use crate::virtio::maker::{Made, Maker};
use crate::virtio::mmio::MmioTransport;
use crate::virtio::net::{self, NetError};
use crate::virtio::pci::slots::PciSlots;
use crate::virtio::registers::TransportError;
use crate::virtio::rng::Rng;

/// Why a machine cannot be built.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each text says what its variant and fields mean")]
pub enum BuildError {
    #[error(
        "there is no /dev/kvm: load kvm_intel or kvm_amd with modprobe, switch on virtualisation in the \
         firmware, or enable nested virtualisation if this is a virtual machine"
    )]
    NoKvm,
    #[error("no permission to use /dev/kvm: become a member of its group (kvm) or run as root")]
    KvmPermission,
    #[error("/dev/kvm cannot be used")]
    Kvm(#[source] kvm_ioctls::Error),
    #[error("this KVM has version {0} of its interface, and volt-vmm needs 12")]
    KvmVersion(i32),
    #[error("this host's KVM lacks {0}: use a newer kernel")]
    Capability(&'static str),
    #[error("{cpus} vCPUs are more than the {max} that this host's KVM allows: choose a smaller --cpus")]
    Cpus { cpus: u8, max: usize },
    #[error("KVM cannot create the machine's {0}")]
    Create(&'static str, #[source] kvm_ioctls::Error),
    #[error("too many CPUID leaves for KVM")]
    Cpuid(#[source] vmm_sys_util::fam::Error),
    #[error("vCPU {id}")]
    Vcpu {
        id: u8,
        #[source]
        source: RegsError,
    },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error("the serial port's output {target} cannot be opened")]
    Serial {
        target: String,
        #[source]
        source: io::Error,
    },
    #[error("too many open files: raise the limit (ulimit -n)")]
    Files(#[source] io::Error),
    #[error(
        "{count} virtio devices are too many for --transport {transport}: use fewer disks or networks{}",
        if *transport == "mmio" { ", or --transport pci" } else { "" }
    )]
    Devices { count: usize, transport: &'static str },
    #[error(transparent)]
    Disk(#[from] BlockError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("a virtio device cannot be connected")]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Slot(#[from] PlugError),
    #[error("two devices have the same addresses")]
    Range(#[from] RangeError),
    #[error("the process may have no more threads")]
    Thread(#[source] io::Error),
    #[error("the vCPUs' signal cannot be set up")]
    Signal(#[source] io::Error),
}

/// Builds the machine that `config` describes. Its end is requested through `exit`.
///
/// Waits for the back-ends of network devices.
///
/// # Errors
///
/// See [`BuildError`]. Errors of kernel, initramfs and disks are found before anything waits.
pub fn build(config: &VmConfig, exit: Arc<ExitEvent>) -> Result<Machine, BuildError> {
    let image = open_kernel(&config.kernel)?;
    let kvm = open_kvm(config.cpus)?;
    let memory = memory::allocate(config.memory, config.hugepages)?;
    let entry = boot::load(&memory, image, config.initramfs.as_deref(), &config.cmdline)?;
    let vm = Arc::new(create_vm(&kvm)?);
    memory::register(&vm, &memory)?;

    let buses = Buses::default();
    let power_button = connect_power(&buses.pio, &vm, &exit)?;
    let console = connect_serial(&config.serial, &buses.pio, &vm)?;
    let gate = Arc::<PauseGate>::default();
    let maker = Maker::start().map_err(BuildError::Thread)?;
    let devices = virtio_devices(config, &gate)?;
    let (devices, virtio_mmio) = match config.transport {
        Transport::Mmio => connect_mmio(devices, &maker, &buses.mmio, &vm, &memory)?,
        Transport::Pci => (connect_pci(devices, maker, &buses, &vm, &memory)?, Vec::new()),
    };
    let serial = config.serial != SerialConfig::None;
    acpi::write(
        &memory,
        &Hardware { cpus: config.cpus, serial, virtio_mmio, pci: config.transport == Transport::Pci },
    )?;

    let board = Board { buses: Arc::new(buses), exit: Arc::clone(&exit), gate };
    let vcpus = create_vcpus(&kvm, &vm, config.cpus, &board, &memory, entry)?;
    vcpu::register_kick_signal().map_err(BuildError::Signal)?;
    let gate = Arc::clone(&board.gate);
    let pause = Pause::new(gate.clone(), devices.clone());
    let handle = Arc::new(MachineHandle {
        cpus: config.cpus,
        memory: config.memory,
        started: Instant::now(),
        devices,
        gate,
        exit,
        pause,
        power_button,
    });
    Ok(Machine { vcpus, console, board, handle, vm, memory })
}

fn open_kernel(path: &Path) -> Result<KernelImage, BootError> {
    KernelImage::open(path).map_err(|source: KernelError| BootError::Kernel { path: path.to_owned(), source })
}

/// Opens KVM, and checks that it supports a machine with this number of vCPUs.
///
/// # Errors
///
/// See [`BuildError`].
pub fn open_kvm(cpus: u8) -> Result<Kvm, BuildError> {
    const VERSION: i32 = 12;
    const NEEDED: [(Cap, &str); 6] = [
        (Cap::UserMemory, "guest memory from user space (KVM_CAP_USER_MEMORY)"),
        (Cap::Irqchip, "interrupt controllers (KVM_CAP_IRQCHIP)"),
        (Cap::Pit2, "a timer (KVM_CAP_PIT2)"),
        (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
        (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
        (Cap::ImmediateExit, "immediate_exit (KVM_CAP_IMMEDIATE_EXIT)"),
    ];
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => BuildError::NoKvm,
        libc::EACCES | libc::EPERM => BuildError::KvmPermission,
        _ => BuildError::Kvm(error),
    })?;
    let version = kvm.get_api_version();
    if version != VERSION {
        return Err(BuildError::KvmVersion(version));
    }
    if let Some((_, name)) = NEEDED.into_iter().find(|&(cap, _)| !kvm.check_extension(cap)) {
        return Err(BuildError::Capability(name));
    }
    if !has_hardware_virtualisation() {
        warn!(
            event = "no_hardware_virtualisation";
            "no vmx or svm in /proc/cpuinfo: this host's KVM is too slow for a distribution's kernel, or \
             cannot run it"
        );
    }
    let max = kvm.get_max_vcpus();
    if usize::from(cpus) > max {
        return Err(BuildError::Cpus { cpus, max });
    }
    Ok(kvm)
}

/// Creates a VM with interrupt controllers and timer, without memory and processors.
fn create_vm(kvm: &Kvm) -> Result<VmFd, BuildError> {
    let create = |what| move |error| BuildError::Create(what, error);
    let vm = kvm.create_vm().map_err(create("VM"))?;
    vm.set_tss_address(KVM_TSS).map_err(create("TSS"))?;
    vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(create("identity map"))?;
    vm.create_irq_chip().map_err(create("interrupt controllers"))?;
    // After a reset the PIC passes everything on, as vectors of exceptions. Firmware masks it. A kernel that
    // uses the PIC sets it up first.
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(create("PIC"))?;
        chip.chip.pic.imr = 0xff;
        vm.set_irqchip(&chip).map_err(create("PIC"))?;
    }
    vm.create_pit2(kvm_pit_config::default()).map_err(create("timer"))?;
    Ok(vm)
}

fn connect_power(pio: &Bus, vm: &Arc<VmFd>, exit: &Arc<ExitEvent>) -> Result<Arc<PowerButton>, RangeError> {
    let button = Arc::new(PowerButton::new(LevelLine::of(vm.clone(), POWER_BUTTON_GSI)));
    let power = PowerRegisters::new(Arc::clone(exit), button.clone());
    pio.insert(RESET_REG.into(), PowerRegisters::SIZE.into(), Arc::new(Mutex::new(power)))?;
    pio.insert(KEYBOARD_COMMAND.into(), 1, Arc::new(Mutex::new(KeyboardReset::new(Arc::clone(exit)))))?;
    Ok(button)
}

/// Creates an eventfd that raises a pin of the IOAPIC.
fn irqfd(vm: &VmFd, gsi: u32, what: &'static str) -> Result<EventFd, BuildError> {
    let irqfd = EventFd::new(EFD_NONBLOCK).map_err(BuildError::Files)?;
    vm.register_irqfd(&irqfd, gsi).map_err(|error| BuildError::Create(what, error))?;
    Ok(irqfd)
}

/// Puts COM1 on the bus. The console is its host side.
fn connect_serial(config: &SerialConfig, pio: &Bus, vm: &VmFd) -> Result<Option<Console>, BuildError> {
    let failed = |target: &str| {
        let target = target.to_owned();
        move |source| BuildError::Serial { target, source }
    };
    let room = Arc::new(Room::new().map_err(BuildError::Files)?);
    let output = match config {
        SerialConfig::None => return Ok(None),
        SerialConfig::Stdio => Output::stdout(room.clone()).map_err(failed("standard output"))?,
        SerialConfig::File(path) => {
            Output::file(path, room.clone()).map_err(failed(&path.display().to_string()))?
        }
    };
    let irqfd = irqfd(vm, COM1_GSI, "serial interrupt")?;
    let uart = Arc::new(Mutex::new(Uart::new(irqfd, Arc::clone(&room), output.clone())));
    pio.insert(COM1.into(), COM1_SIZE.into(), Arc::clone(&uart) as _)?;
    let console = Console::new(uart, room, output);
    Ok(Some(match config {
        SerialConfig::Stdio => console.with_stdin().map_err(failed("standard input"))?,
        _ => console,
    }))
}

/// Opens disks and connects to back-ends, in the guest's order of the devices.
fn virtio_devices(
    config: &VmConfig,
    gate: &Arc<PauseGate>,
) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
    let count = config.disks.len() + config.nets.len() + 1;
    let (there_is, transport) = match config.transport {
        Transport::Mmio => (mmio_slot(count - 1).is_some(), "mmio"),
        Transport::Pci => (pci_bar(count).is_some(), "pci"),
    };
    if !there_is {
        return Err(BuildError::Devices { count, transport });
    }
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &config.disks {
        devices.push(Box::new(Block::open(disk, gate)?));
    }
    devices.push(Box::new(Rng::new(gate)));
    for config in &config.nets {
        devices.push(net::open(config, gate)?);
    }
    Ok(devices)
}

/// Gives each device a transport on the bus.
fn connect_mmio(
    devices: Vec<Box<dyn VirtioDevice>>,
    maker: &Arc<Maker>,
    mmio: &Bus,
    vm: &VmFd,
    memory: &GuestMemoryMmap,
) -> Result<(Arc<Devices>, Vec<MmioSlot>), BuildError> {
    let shown = devices.iter().map(|device| Device::of(&**device)).collect();
    let mut slots = Vec::new();
    // There are enough slots: see virtio_devices.
    for (slot, device) in (0..).map_while(mmio_slot).zip(devices) {
        let transport = MmioTransport::new(Made::wrap(maker, device), memory.clone(), vm, slot)?;
        mmio.insert(slot.base, MMIO_SLOT_SIZE, Arc::new(Mutex::new(transport)))?;
        slots.push(slot);
    }
    Ok((Arc::new(Devices::fixed(shown)), slots))
}

/// Makes each device a function of a PCI bus with hot-plug.
fn connect_pci(
    devices: Vec<Box<dyn VirtioDevice>>,
    maker: Arc<Maker>,
    buses: &Buses,
    vm: &Arc<VmFd>,
    memory: &GuestMemoryMmap,
) -> Result<Arc<Devices>, BuildError> {
    let slots = PciSlots::new(vm.clone(), memory.clone(), buses.mmio.clone());
    let ports = ConfigPorts::new(slots.bus());
    buses.pio.insert(CONFIG_PORTS.into(), CONFIG_PORTS_SIZE.into(), Arc::new(Mutex::new(ports)))?;
    let events = Arc::new(HotplugEvents::new(LevelLine::of(vm.clone(), HOTPLUG_GSI)));
    let list = Arc::new(Devices::on_pci(slots, events.clone(), maker));
    let ejecting = list.clone();
    let registers = HotplugRegisters::new(events, Box::new(move |slot| ejecting.ejected(slot)));
    buses.pio.insert(HOTPLUG_PORTS.into(), hotplug::SIZE.into(), Arc::new(Mutex::new(registers)))?;
    for device in devices {
        list.attach(device)?;
    }
    Ok(list)
}

/// Creates the processors. Number 0 starts at `entry`. The others wait for its start-up interrupt (SIPI).
fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    cpus: u8,
    board: &Board,
    memory: &GuestMemoryMmap,
    entry: Entry,
) -> Result<Vec<Vcpu>, BuildError> {
    let supported = cpuid::supported(kvm).map_err(|error| BuildError::Create("CPUID", error))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut vcpus = Vec::new();
    for id in 0..cpus {
        let fd = vm.create_vcpu(id.into()).map_err(|error| BuildError::Create("vCPU", error))?;
        let cpuid = cpuid::for_vcpu(&supported, id, cpus, tsc_deadline).map_err(BuildError::Cpuid)?;
        let regs = |source| BuildError::Vcpu { id, source };
        regs::setup_vcpu(&fd, &cpuid).map_err(regs)?;
        if id == 0 {
            regs::setup_boot_vcpu(&fd, memory, entry).map_err(regs)?;
        }
        vcpus.push(Vcpu::new(id, fd, board.clone()));
    }
    Ok(vcpus)
}
