//! The verbs of the control interface: what REST and tests call.

use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::advice::Lifetime;

use super::gateway::Gateway;
use super::views::{
    AddDatastore, AlertView, Allocated, AuditView, BaseView, CacheView, CapacityQuery, CapacityView, ChangeLabels,
    ChangePool, CloneView, CreateClones, CreateDisk, CreateFullClone, CreatePool, CreatedClones, DatastoreView,
    DiskView, FsckReport, IdentitySpec, IdentityView, ImportTemplate, JobView, KeptSnapshot, ListAudit, ListJobs,
    ListQuery, Page, PoolView, PowerEvent, PowerOutcome, Rebalance, ReferenceTemplate, RenewIdentity, ResetRulesView,
    RolloutAction, SetIdentity, SnapshotView, Started, TemplateIdentityView, TemplateView, ToTemplate, Touched,
    UpdateClones, UpdatedClones, WarmCache, Would,
};
use crate::identity::Identity;
use crate::import::{Input, Progress};

macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident => $body:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        impl Gateway {$(
            $(#[$doc])*
            pub async fn $name(&self, $($arg: impl Into<$type>),*) -> Result<$out> {
                $(let $arg: $type = $arg.into();)*
                self.run(move |gateway| gateway.$body($($arg),*)).await
            }
        )*}
    };
}

verbs! {
    /// What a change would touch that answers with what it made. Nothing is done.
    ///
    /// # Errors
    /// Those of the change.
    would => do_would(change: Would) -> Touched;
    /// Adds a datastore to the catalog and opens it.
    ///
    /// # Errors
    /// `Exists`; whatever the probe of its store finds.
    add_datastore => do_add_datastore(request: AddDatastore) -> DatastoreView;
    /// All datastores, by name.
    ///
    /// # Errors
    /// Those of the home.
    list_datastores => do_list_datastores(query: ListQuery) -> Page<DatastoreView>;
    /// One datastore.
    ///
    /// # Errors
    /// `NotFound`.
    show_datastore => do_show_datastore(name: String) -> DatastoreView;
    /// Forgets a datastore without bases and clones; its bytes stay.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `referenced`.
    remove_datastore => do_remove_datastore(name: String, dry_run: bool) -> Touched;
    /// Proves again that its store may be used.
    ///
    /// # Errors
    /// `NotFound`; what the probe finds.
    probe_datastore => do_probe_datastore(name: String) -> DatastoreView;
    /// Lets it take no new clones, or again.
    ///
    /// # Errors
    /// `NotFound`.
    set_maintenance => do_set_maintenance(name: String, on: bool) -> DatastoreView;
    /// Makes a version of a template of a raw image that lies in a store already.
    ///
    /// # Errors
    /// `Denied` when the configuration does not permit the place; `NotFound`; `Invalid` for what is no raw image.
    reference_template => do_reference_template(request: ReferenceTemplate) -> TemplateView;
    /// All templates, by name.
    ///
    /// # Errors
    /// Those of the home.
    list_templates => do_list_templates(query: ListQuery) -> Page<TemplateView>;
    /// One template.
    ///
    /// # Errors
    /// `NotFound`.
    show_template => do_show_template(name: String) -> TemplateView;
    /// Gives new clones this version, the newest when absent.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `not-sealed`.
    publish_template => do_publish_template(name: String, version: Option<u32>) -> TemplateView;
    /// Gives new clones the version that was published before.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `nothing-to-roll-back-to`.
    rollback_template => do_rollback_template(name: String) -> TemplateView;
    /// Looks into a draft, the newest when absent, and seals it.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `not-sealed` that says what was found, unless `force` is set.
    seal_template => do_seal_template(name: String, version: Option<u32>, force: bool) -> TemplateView;
    /// Keeps so many versions that no clone needs, besides the published one; none: all.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for none at all.
    retain_template => do_retain_template(name: String, keep: Option<u32>, dry_run: bool) -> Touched;
    /// Deletes a template, or one version of it.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `referenced`, listing the clones.
    delete_template => do_delete_template(name: String, version: Option<u32>, dry_run: bool) -> Touched;
    /// All bases, by id.
    ///
    /// # Errors
    /// Those of the datastores that are online.
    list_bases => do_list_bases(query: ListQuery) -> Page<BaseView>;
    /// One base.
    ///
    /// # Errors
    /// `NotFound`.
    show_base => do_show_base(id: String) -> BaseView;
    /// Lets a base take no more clones; it goes at once when it has none.
    ///
    /// # Errors
    /// `NotFound`.
    retire_base => do_retire_base(id: String, dry_run: bool) -> Touched;
    /// Makes clones: all of them or none.
    ///
    /// # Errors
    /// `NotFound` for the template; `Exists` with code `name-taken`; `Exhausted` with code `no-place`; `Denied` by policy.
    create_clones => do_create_clones(request: CreateClones, dry_run: bool) -> CreatedClones;
    /// All clones, by name.
    ///
    /// # Errors
    /// Those of the home.
    list_clones => do_list_clones(query: ListQuery) -> Page<CloneView>;
    /// One clone, by name or id.
    ///
    /// # Errors
    /// `NotFound`.
    show_clone => do_show_clone(clone: String) -> CloneView;
    /// Sets and removes labels of a clone; the others stay.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` with code `bad-label`.
    change_labels => do_change_labels(clone: String, change: ChangeLabels, dry_run: bool) -> Touched;
    /// Deletes a clone with all that it has written.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is attached or held.
    delete_clone => do_delete_clone(clone: String, dry_run: bool) -> Touched;
    /// Drops what a clone has written: it is its base again. One commit, whatever the size.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is attached or held.
    reset_clone => do_reset_clone(clone: String, dry_run: bool) -> Touched;
    /// Looks whether everything is owned and there; with `repair`, removes what has been orphaned for longer than the grace time (an hour
    /// when absent, milliseconds). With `deep`, every block and chunk is read and its checksum verified.
    ///
    /// # Errors
    /// Those of the stores.
    fsck => do_fsck(repair: bool, grace_ms: Option<u64>, deep: bool) -> FsckReport;
    /// Moves clones to another version of their template. The old deltas are kept for the undo window.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `image-smaller`. What fails on the way is told in the answer.
    update_clones => do_update_clones(request: UpdateClones, dry_run: bool) -> UpdatedClones;
    /// The newest update of a template's clones.
    ///
    /// # Errors
    /// `NotFound`.
    show_update => do_show_update(template: String) -> UpdatedClones;
    /// Pauses, resumes, promotes, rolls back or ends an update.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `update-state` when it is not in a state for that.
    steer_update => do_steer_update(template: String, action: RolloutAction) -> UpdatedClones;
    /// Takes the last reset, restore or update of a clone back, with what it held then.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `nothing-to-undo`, or when it is attached or held.
    undo_clone => do_undo_clone(clone: String, dry_run: bool) -> Touched;
    /// Makes a template version of what a clone reads as now.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when a machine has it open, or the sealing checks find something and `force` is not set.
    clone_to_template => do_to_template(clone: String, request: ToTemplate) -> TemplateView;
    /// Tells that a machine was switched on or off; policies decide what follows.
    ///
    /// # Errors
    /// `NotFound`; those of the stores.
    power_clone => do_power_clone(clone: String, event: PowerEvent) -> PowerOutcome;
    /// Holds a clone for this reason, so that nothing discards what it has written; none lets it go.
    ///
    /// # Errors
    /// `NotFound`.
    hold_clone => do_hold_clone(clone: String, why: Option<String>) -> Touched;
    /// Says whether a clone's delta is meant to last, and when it is discarded besides.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for rules that would discard at once.
    set_lifetime => do_set_lifetime(clone: String, lifetime: Option<Lifetime>, rules: Option<ResetRulesView>) -> Touched;
    /// Gives a snapshot up.
    ///
    /// # Errors
    /// `NotFound`.
    drop_snapshot => do_drop_snapshot(clone: String, snapshot: String) -> SnapshotView;
    /// Makes a pool with its clones.
    ///
    /// # Errors
    /// `Exists`; `Conflict` with code `pattern-collides`; those of creating clones. Nothing is made then.
    create_pool => do_create_pool(request: CreatePool, dry_run: bool) -> PoolView;
    /// All pools, by name.
    ///
    /// # Errors
    /// Those of the home.
    list_pools => do_list_pools(query: ListQuery) -> Page<PoolView>;
    /// One pool with its clones.
    ///
    /// # Errors
    /// `NotFound`.
    show_pool => do_show_pool(name: String) -> PoolView;
    /// Makes clones of a pool, or deletes free ones.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `pool-in-use` when too few are free.
    scale_pool => do_scale_pool(name: String, size: u32, dry_run: bool) -> Touched;
    /// Changes a pool; its clones follow.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`.
    change_pool => do_change_pool(name: String, change: ChangePool) -> PoolView;
    /// Deletes a pool with its clones.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `referenced` while machines or users have any.
    delete_pool => do_delete_pool(name: String, force: bool, dry_run: bool) -> Touched;
    /// Gives a user, or a machine, a clone of a pool: the one that he has, or a free one.
    ///
    /// # Errors
    /// `NotFound`; `Exhausted` with code `pool-empty`; `Unavailable` with code `pool-maintenance`.
    allocate => do_allocate(pool: String, user: String) -> Allocated;
    /// Takes a clone back from its user; what was written on it goes.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is attached or held.
    release_clone => do_release_clone(pool: String, user: String, dry_run: bool) -> Touched;
    /// Makes a data disk.
    ///
    /// # Errors
    /// `Exists`; `Invalid` for its size; `NotFound` for its clone.
    create_disk => do_create_disk(request: CreateDisk, dry_run: bool) -> DiskView;
    /// All data disks, by name.
    ///
    /// # Errors
    /// Those of the home.
    list_disks => do_list_disks(query: ListQuery) -> Page<DiskView>;
    /// One data disk.
    ///
    /// # Errors
    /// `NotFound`.
    show_disk => do_show_disk(name: String) -> DiskView;
    /// Gives a disk to a clone.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `disk-attached`.
    attach_disk => do_attach_disk(name: String, clone: String, dry_run: bool) -> DiskView;
    /// Takes a disk from its clone.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while a machine has it open.
    detach_disk => do_detach_disk(name: String, dry_run: bool) -> DiskView;
    /// Puts a disk away until it is attached again.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while a machine has it open.
    archive_disk => do_archive_disk(name: String, dry_run: bool) -> DiskView;
    /// Deletes a data disk that no clone has.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `referenced`.
    delete_disk => do_delete_disk(name: String, dry_run: bool) -> Touched;
    /// The facts of a clone's machine, private keys and hashes with them: for those who render them.
    ///
    /// # Errors
    /// `NotFound`; `Denied` with code `no-identity-key`.
    identity => do_identity(clone: String) -> Identity;
    /// The identity of a clone, for people.
    ///
    /// # Errors
    /// `NotFound`; `Denied` with code `no-identity-key`.
    show_identity => do_show_identity(clone: String) -> IdentityView;
    /// Says all about the identity of a clone.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` with code `bad-identity`; `Conflict` with code `identity-changed`.
    set_identity => do_set_identity(clone: String, request: SetIdentity, dry_run: bool) -> IdentityView;
    /// Lets a clone's guest take itself for a new machine.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `identity-changed`.
    renew_identity => do_renew_identity(clone: String, request: RenewIdentity, dry_run: bool) -> IdentityView;
    /// Forgets what was said: the identity follows from the clone's id and name again.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `identity-changed`.
    clear_identity => do_clear_identity(clone: String, dry_run: bool) -> Touched;
    /// The identity that new clones of a template get.
    ///
    /// # Errors
    /// `NotFound`; `Denied` with code `no-identity-key`.
    show_template_identity => do_show_template_identity(template: String) -> TemplateIdentityView;
    /// Says which identity new clones of a template get.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` with code `bad-identity`.
    set_template_identity => do_set_template_identity(template: String, spec: IdentitySpec, dry_run: bool) -> TemplateIdentityView;
    /// New clones get what follows from their id and name again.
    ///
    /// # Errors
    /// Those of the home.
    clear_template_identity => do_clear_template_identity(template: String, dry_run: bool) -> Touched;
    /// How much space clones of a template need.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`.
    capacity => do_capacity(query: CapacityQuery) -> CapacityView;
    /// Makes a clone that needs no base, by copying a template version, as a job.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Unsupported` for an ephemeral one; `Exhausted` with code `no-place`; `Conflict` with code `job-running`.
    create_full_clone => do_create_full_clone(request: CreateFullClone, dry_run: bool) -> Started;
    /// Full clones, by name.
    ///
    /// # Errors
    /// Those of the home.
    list_full_clones => do_list_full_clones(query: ListQuery) -> Page<CloneView>;
    /// Makes a full clone of a linked one while it is in use, as a job.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with codes `full-clone`, `has-snapshots`, `job-running`; `Unsupported` for an ephemeral one.
    promote_clone => do_promote_clone(clone: String, dry_run: bool) -> Started;
    /// Moves a clone to another datastore, as a job.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with codes `there-already`, `attached`, `held`, `has-snapshots`, `maintenance`, `not-thin`, `job-running`.
    move_clone => do_move_clone(clone: String, to: String, dry_run: bool) -> Started;
    /// Fetches bases into memory before machines ask, as a job.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with codes `no-boot-set`, `job-running`.
    warm_cache => do_warm(request: WarmCache, dry_run: bool) -> Started;
    /// Moves clones that nobody has open from one datastore to another, as a job.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`.
    rebalance_datastore => do_rebalance(name: String, request: Rebalance, dry_run: bool) -> Started;
    /// Who did what, the newest first.
    ///
    /// # Errors
    /// Those of the home; `Corrupt`.
    list_audit => do_list_audit(query: ListAudit) -> Page<AuditView>;
    /// Jobs, the newest first.
    ///
    /// # Errors
    /// Those of the home.
    list_jobs => do_list_jobs(query: ListJobs) -> Page<JobView>;
    /// One job.
    ///
    /// # Errors
    /// `NotFound`.
    show_job => do_show_job(id: String) -> JobView;
    /// Wants a job to end.
    ///
    /// # Errors
    /// `NotFound`; those of the home.
    cancel_job => do_cancel_job(id: String, dry_run: bool) -> Touched;
    /// What is about to be full.
    ///
    /// # Errors
    /// Those of the stores.
    alerts => do_alerts() -> Vec<AlertView>;
    /// Keeps the present state of a clone under a name.
    ///
    /// # Errors
    /// `NotFound`; `Exists`.
    snapshot_clone => do_snapshot_clone(clone: String, snapshot: String) -> SnapshotView;
    /// The snapshots of a clone, oldest first.
    ///
    /// # Errors
    /// `NotFound`; those of the store.
    list_snapshots => do_list_snapshots(clone: String) -> Vec<KeptSnapshot>;
    /// Gives flushed writes up that only the journal of a lost gateway held. The clone is marked until its next reset.
    ///
    /// # Errors
    /// `NotFound`; those of the store.
    accept_loss => do_accept_loss(clone: String, dry_run: bool) -> Touched;
    /// Takes a clone over from a gateway that is gone, or does nothing with it.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `lost-tail` when only the journal of that gateway has the last writes; those of the store.
    take_clone_over => do_take_over(clone: String, dry_run: bool) -> Touched;
    /// Brings a clone back to a snapshot.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is attached or held.
    restore_clone => do_restore_clone(clone: String, snapshot: String, dry_run: bool) -> Touched;
}

impl Gateway {
    /// Imports an image as a new version of a template.
    ///
    /// # Errors
    /// `Invalid` for an image that is refused; those of the stores. Nothing is visible then.
    pub async fn import_template(
        &self,
        request: ImportTemplate,
        input: Input,
        progress: Arc<dyn Progress>,
    ) -> Result<TemplateView> {
        self.run(move |gateway| gateway.do_import_template(request, input, progress)).await
    }

    /// Counters of the iCache.
    pub fn cache(&self) -> CacheView {
        let stats = self.icache.stats();
        CacheView {
            capacity: stats.capacity_bytes,
            used: stats.resident_bytes,
            lines: stats.entries,
            hits: stats.hits,
            misses: stats.misses,
            joins: stats.joins,
            store_bytes: stats.store_bytes,
            spared_bytes: stats.spared_bytes,
        }
    }

    /// Forgets everything cached; costs time only.
    pub fn drop_cache(&self) {
        self.icache.clear();
    }
}
