//! See `clonegate_fuzz::upload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clonegate_fuzz::upload(data));
