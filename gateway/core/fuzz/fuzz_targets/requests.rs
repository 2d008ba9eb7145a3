//! See `clonegate_fuzz::requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clonegate_fuzz::requests(data));
