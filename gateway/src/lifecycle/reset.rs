//! Reset, snapshot and restore: what a clone has written, dropped or kept.

use std::sync::Arc;

use clonegate_core::{Error, Result};

use super::gateway::Gateway;
use super::views::{SnapshotView, Touched};

fn not_yet<T>() -> Result<T> {
    Err(Error::unsupported("not-in-this-version", "this version does not do it"))
}

impl Gateway {
    pub(super) async fn do_reset_clone(self: Arc<Self>, _clone: String, _dry_run: bool) -> Result<Touched> {
        not_yet()
    }

    pub(super) async fn do_snapshot_clone(self: Arc<Self>, _clone: String, _snapshot: String) -> Result<SnapshotView> {
        not_yet()
    }

    pub(super) async fn do_restore_clone(
        self: Arc<Self>,
        _clone: String,
        _snapshot: String,
        _dry_run: bool,
    ) -> Result<Touched> {
        not_yet()
    }
}
