//! The built program with guests of a few hand-written instructions: its output, its end, and its log. Needs
//! /dev/kvm, though not one that can run a real kernel.

mod acpi;
mod console;
mod control;
mod disks;
mod exits;
mod guest;
mod interrupts;
mod log;
mod output;
mod signals;
mod terminal;
mod usage;
