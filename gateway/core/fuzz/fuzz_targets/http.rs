//! See `clonegate_fuzz::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clonegate_fuzz::http(data));
