//! volt-vmm with volt-netd: stock Debian kernels in every loadable form, sizes of guests, disks and queue
//! pairs. Every guest must have its processors and memory, log no error about the ACPI tables, and pass
//! checksummed TCP both ways.

use std::fs::File;

use protocol_tests::lab::guest::{Flavour, Image, Spec, Transport};
use protocol_tests::lab::netd::Netd;
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::{Traffic, every_queue_carried, iperf3, many_flows, value};
use protocol_tests::lab::{PATIENCE, in_lab, variants};

/// Returns the kernel that boots fastest, for tests of other properties.
fn quick(run: &str) -> Spec {
    Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, ..Spec::new(run) }
}

/// Runs a guest until it powers off, and returns its reports.
fn run(spec: &Spec, netd: &Netd, pairs: u16, more: &[&str]) -> Vec<String> {
    let mut guest = Process::start("volt-vmm", spec.vmm(&netd.socket, pairs).args(more));
    guest.wait_for("VOLT exit", PATIENCE);
    let status = guest.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0), "a power-off ends volt-vmm with 0");
    guest.reports()
}

/// Boots the guest, and checks the requirements of every guest. `more` is for `volt.run`. Returns the
/// reports.
fn stands(spec: &Spec, netd_pairs: u16, pairs: u16, more: &str) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let netd = Netd::start(directory.path(), &["--queues", &netd_pairs.to_string()]);
    let traffic = Traffic::of(8);
    let run_words = format!(
        "report cpus $(nproc); report memory $(sed -n 's/MemTotal: *//p' /proc/meminfo); \
         acpi_complaints; {}{more}",
        traffic.both_ways()
    );
    let spec = Spec { run: run_words, ..spec.clone() };
    let reports = run(&spec, &netd, pairs, &[]);
    assert_eq!(value(&reports, "cpus"), spec.cpus.to_string());
    let total: u32 = value(&reports, "memory").trim_end_matches(" kB").parse().expect("MemTotal");
    // The kernel keeps a few per cent for itself.
    assert!(total > spec.memory * 1024 / 100 * 85, "{total} kB of {} MiB", spec.memory);
    assert_eq!(value(&reports, "acpi_complaints"), "0", "{reports:?}");
    traffic.judge(&reports);
    reports
}

/// The kernel spreads flows over every attached TAP queue, of which there are four: only the queues of the
/// guest's one pair may be attached.
#[test]
fn generic_bzimage_one_cpu_loses_no_flow_on_four_queues() {
    in_lab("generic_bzimage_one_cpu_loses_no_flow_on_four_queues", || {
        let flows = Traffic::of(1).flows(40);
        let reports = stands(&Spec { cpus: 1, ..Spec::new("") }, 4, 1, &format!("; {flows}"));
        assert_eq!(value(&reports, "flows"), "40 of 40");
    });
}

#[test]
fn generic_vmlinux_two_cpus() {
    in_lab("generic_vmlinux_two_cpus", || {
        stands(&Spec { image: Image::Vmlinux, ..Spec::new("") }, 1, 1, "");
    });
}

/// Two queue pairs both carry frames, both ways.
#[test]
fn cloud_vmlinux_four_cpus_two_queue_pairs() {
    in_lab("cloud_vmlinux_four_cpus_two_queue_pairs", || {
        let _server = iperf3();
        let spec = Spec { cpus: 4, ..quick("") };
        every_queue_carried(&stands(&spec, 2, 2, &format!("; {}", many_flows())), 2);
    });
}

/// Half a GiB of the guest's memory lies above 4 GiB, and Linux allocates that first.
#[test]
fn cloud_bzimage_memory_across_the_hole() {
    in_lab("cloud_bzimage_memory_across_the_hole", || {
        stands(&Spec { flavour: Flavour::Cloud, memory: 3584, ..Spec::new("") }, 1, 1, "");
    });
}

/// A disk keeps the guest's data when the machine is started again, with Debian's user space on another disk
/// instead of the initramfs.
#[test]
fn a_disk_reads_back_after_a_reboot_with_a_disk_as_root() {
    in_lab("a_disk_reads_back_after_a_reboot_with_a_disk_as_root", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &[]);
        let image = directory.path().join("disk.img");
        let file = File::create(&image).and_then(|file| file.set_len(64 << 20));
        file.expect("a disk image");
        let made = std::process::Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).status();
        assert!(made.is_ok_and(|status| status.success()), "mke2fs");
        let disk = ["--disk", image.to_str().expect("a path")];

        // A reboot ends volt-vmm with a separate status; its supervisor starts it again.
        let spec = quick("step write disk_write /dev/vda && reboot -f");
        let mut guest = Process::start("volt-vmm", spec.vmm(&netd.socket, 1).args(disk));
        guest.wait_for("VOLT write ok", PATIENCE);
        assert_eq!(guest.wait_exit(PATIENCE).code(), Some(3), "a reboot ends volt-vmm with 3");
        let written = value(&guest.reports(), "disk sha256").to_owned();

        let root = directory.path().join("rootfs.img");
        std::fs::copy(protocol_tests::lab::guest_file("rootfs.img"), &root).expect("a copy of the image");
        let words = "report root $(sed -n 's/\\(.*\\) \\/ ext4 .*/\\1/p' /proc/mounts); \
                     step ping ping -c 1 10.77.0.1; \
                     step read disk_read /dev/vdb";
        let disks = ["--rootfs", root.to_str().expect("a path"), disk[0], disk[1]];
        let reports = run(&quick(words), &netd, 1, &disks);
        assert_eq!(value(&reports, "root"), "/dev/vda");
        assert_eq!(value(&reports, "ping"), "ok");
        assert_eq!(value(&reports, "disk sha256"), written);
    });
}

/// In `scripts/soak` both flavours, otherwise the larger one, find every kind of device behind PCI: the root
/// file system's disk, the network and the random number source. Each vring has a separate vector, and the
/// kernel logs no error about the tables or PCI.
#[test]
fn every_device_by_pci_with_a_disk_as_root() {
    /// Linux logs this for every conventional PCI bus, whose functions have only 256 bytes of configuration.
    const NO_ECAM: &str = "MMCONFIG";
    in_lab("every_device_by_pci_with_a_disk_as_root", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &["--queues", "2"]);
        let traffic = Traffic::of(4);
        // The patterns must not match the command line, which the kernel prints.
        let words = format!(
            "report root $(sed -n 's/\\(.*\\) \\/ ext4 .*/\\1/p' /proc/mounts); acpi_complaints; \
             report pci_complaints $(dmesg | grep -v {NO_ECAM} | \
             grep -ciE 'pci.*(e[r]ror|f[a]il|can.t|c[o]nflict)'); \
             report functions $(ls /sys/bus/pci/devices | wc -l); \
             report msi $(grep -c 'MSI.*virtio' /proc/interrupts); \
             report other $(grep virtio /proc/interrupts | grep -vc MSI); \
             report rng $(cat /sys/class/misc/hw_random/rng_current); {}",
            traffic.both_ways()
        );
        let (generic, cloud) = ((Flavour::Generic, Image::BzImage), (Flavour::Cloud, Image::Vmlinux));
        for (flavour, form) in variants(&[generic, cloud], generic) {
            let image = directory.path().join("rootfs.img");
            std::fs::copy(protocol_tests::lab::guest_file("rootfs.img"), &image)
                .expect("a copy of the image");
            let spec = Spec { flavour, image: form, transport: Transport::Pci, ..Spec::new(&words) };
            let reports = run(&spec, &netd, 2, &["--rootfs", image.to_str().expect("a path")]);
            assert_eq!(value(&reports, "root"), "/dev/vda");
            let no_ecam =
                |report: &&String| report.starts_with("acpi_complaint ") && report.contains(NO_ECAM);
            let known = reports.iter().filter(no_ecam).count();
            assert_eq!(value(&reports, "acpi_complaints"), known.to_string(), "{reports:?}");
            for nothing in ["pci_complaints", "other"] {
                assert_eq!(value(&reports, nothing), "0", "{nothing}: {reports:?}");
            }
            assert_eq!(value(&reports, "functions"), "4", "the host bridge, and three devices");
            // The disk has a vector for its configuration and one for the vring of each processor; the
            // network has one for its configuration and four for its vrings (the control queue is polled);
            // the random number source has two.
            let vectors: usize = value(&reports, "msi").parse().expect("a number");
            assert!(vectors >= 8, "{reports:?}");
            assert!(value(&reports, "rng").starts_with("virtio_rng"), "{reports:?}");
            traffic.judge(&reports);
        }
    });
}
