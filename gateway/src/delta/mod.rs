//! The log of one clone: what it wrote, where it lies, who owns it.

pub mod map;
