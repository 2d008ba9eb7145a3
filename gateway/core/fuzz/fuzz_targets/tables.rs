//! See `clonegate_fuzz::tables`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clonegate_fuzz::tables(data));
