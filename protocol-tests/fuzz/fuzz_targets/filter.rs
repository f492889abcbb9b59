#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| volt_fuzz::target("filter", bytes));
