//! Shared by the tests that cross crates: external programs, the running gateway, machines, the source tree.

pub mod ceph;
pub mod certificates;
pub mod cloud;
pub mod curl;
pub mod faults;
pub mod gates;
pub mod gateway;
pub mod harness;
pub mod images;
pub mod lab;
pub mod late;
pub mod machine;
pub mod memory;
pub mod memory_disk;
pub mod nbd;
pub mod nbd_client;
pub mod programs;
pub mod qmp;
pub mod raw_http;
pub mod rehearsal;
pub mod serve;
pub mod sim;
pub mod small_disk;
pub mod stamped;
pub mod tree;
pub mod uefi;

pub use gateway::Gateway;
pub use machine::Machine;
pub use programs::need;
