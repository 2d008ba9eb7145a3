//! The `clonegate` program.

fn main() {}
