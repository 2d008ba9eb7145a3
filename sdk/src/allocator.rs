//! The allocator of plugins: memory is given out and never taken back.
//!
//! An instance answers one question and is thrown away. A question over a hundred bases is a thousand small texts, each written into
//! the plugin's memory by a call of its allocator, so what one such call takes is a good part of what a decision takes. A policy
//! that needs to build and drop a lot turns the feature `allocator` of this crate off.

use lol_alloc::{LeakingAllocator, LockedAllocator};

#[global_allocator]
static ALLOCATOR: LockedAllocator<LeakingAllocator> = LockedAllocator::new(LeakingAllocator::new());
