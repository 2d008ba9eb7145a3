//! The plugins that are part of the program: `plugins/components`, made by `plugins/build.sh` from `plugins/`.

use clonegate_policy_host::Embedded;

macro_rules! embedded {
    ($($name:literal => $file:literal),* $(,)?) => {
        [$(Embedded { name: $name, component: include_bytes!(concat!("../../../plugins/components/", $file, ".wasm")) }),*]
    };
}

/// Name in chains, and component. They are loaded only when a chain names them.
pub const EMBEDDED: [Embedded; 8] = embedded! {
    "base-affinity" => "base-affinity",
    "default" => "defaults",
    "exam-room" => "exam-room",
    "headroom" => "defaults",
    "patch-waves" => "patch-waves",
    "reset-schedule" => "reset-schedule",
    "spread" => "spread",
    "tenant-tier" => "tenant-tier",
};
