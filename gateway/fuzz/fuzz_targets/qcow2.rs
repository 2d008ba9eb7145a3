//! See `clonegate_gateway_fuzz::qcow2`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clonegate_gateway_fuzz::qcow2(data));
