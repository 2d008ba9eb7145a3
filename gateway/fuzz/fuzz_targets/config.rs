//! See `clonegate_gateway_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clonegate_gateway_fuzz::config(data));
