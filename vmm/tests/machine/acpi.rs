//! The ACPI tables, checked by ACPICA's compiler, which distributions use.

use std::process::Command;

use volt_vmm::board::layout::mmio_slot;
use volt_vmm::boot::acpi::{Hardware, tables};

/// ACPICA's compiler disassembles every table without a complaint, and accepts its own output.
#[test]
fn iasl_accepts_the_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIP iasl_accepts_the_tables: iasl is not installed (Debian package acpica-tools)");
        return;
    }
    let hardware =
        Hardware { cpus: 4, serial: true, virtio_mmio: (0..4).filter_map(mmio_slot).collect(), pci: true };
    let dir = tempfile::tempdir().unwrap();
    let iasl = |args: &[&str]| {
        let output = Command::new("iasl").args(args).current_dir(&dir).output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "iasl {args:?}: {text}");
        text
    };
    for table in &tables(&hardware).unwrap()[1..] {
        let name = String::from_utf8_lossy(&table.bytes[..4]).to_lowercase();
        std::fs::write(dir.path().join(format!("{name}.aml")), &table.bytes).unwrap();
        let text = iasl(&["-d", &format!("{name}.aml")]);
        assert!(!text.contains("Error") && !text.contains("Warning"), "{name}: {text}");
        let text = iasl(&[&format!("{name}.dsl")]);
        assert!(text.contains("0 Errors, 0 Warnings"), "{name}: {text}");
    }
}
