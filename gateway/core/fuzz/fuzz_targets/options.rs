//! See `clonegate_fuzz::options`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clonegate_fuzz::options(data));
