//! The allocator of plugins: memory is given out and never taken back.
//!
//! An instance answers one question and is thrown away, so what allocating and giving back takes is all for nothing. This one begins with what is
//! left of the plugin's first memory: to ask for more is a call into the host. A policy that needs to build and drop a lot turns the
//! feature `allocator` of this crate off.

use mini_alloc::MiniAlloc;

#[global_allocator]
static ALLOCATOR: MiniAlloc = MiniAlloc::INIT;
