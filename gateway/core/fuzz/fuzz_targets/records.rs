//! See `clonegate_fuzz::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clonegate_fuzz::records(data));
