//! One running gateway: the home, its datastores, what is open, and the verbs of the control interface.

use clonegate_core::{Error, Result};

use super::views::{
    AddDatastore, BaseView, CacheView, CloneView, CreateClones, CreatedClones, DatastoreView, ListQuery, Page,
    ReferenceTemplate, SnapshotView, TemplateView, Touched,
};

/// One running gateway.
#[derive(Debug)]
pub struct Gateway {}

fn not_yet<T>() -> Result<T> {
    Err(Error::unsupported("not-in-this-version", "this version does not do it"))
}

#[expect(clippy::unused_async, missing_docs, reason = "signatures first; bodies follow")]
impl Gateway {
    pub async fn add_datastore(&self, _request: AddDatastore) -> Result<DatastoreView> {
        not_yet()
    }
    pub async fn list_datastores(&self, _query: ListQuery) -> Result<Page<DatastoreView>> {
        not_yet()
    }
    pub async fn show_datastore(&self, _name: &str) -> Result<DatastoreView> {
        not_yet()
    }
    pub async fn remove_datastore(&self, _name: &str, _dry_run: bool) -> Result<Touched> {
        not_yet()
    }
    pub async fn probe_datastore(&self, _name: &str) -> Result<DatastoreView> {
        not_yet()
    }
    pub async fn set_maintenance(&self, _name: &str, _on: bool) -> Result<DatastoreView> {
        not_yet()
    }
    pub async fn reference_template(&self, _request: ReferenceTemplate) -> Result<TemplateView> {
        not_yet()
    }
    pub async fn list_templates(&self, _query: ListQuery) -> Result<Page<TemplateView>> {
        not_yet()
    }
    pub async fn show_template(&self, _name: &str) -> Result<TemplateView> {
        not_yet()
    }
    /// The newest version when `version` is absent.
    pub async fn publish_template(&self, _name: &str, _version: Option<u32>) -> Result<TemplateView> {
        not_yet()
    }
    pub async fn rollback_template(&self, _name: &str) -> Result<TemplateView> {
        not_yet()
    }
    /// All of it, or one version.
    pub async fn delete_template(&self, _name: &str, _version: Option<u32>, _dry_run: bool) -> Result<Touched> {
        not_yet()
    }
    pub async fn list_bases(&self, _query: ListQuery) -> Result<Page<BaseView>> {
        not_yet()
    }
    pub async fn show_base(&self, _id: &str) -> Result<BaseView> {
        not_yet()
    }
    pub async fn retire_base(&self, _id: &str, _dry_run: bool) -> Result<Touched> {
        not_yet()
    }
    pub async fn create_clones(&self, _request: CreateClones, _dry_run: bool) -> Result<CreatedClones> {
        not_yet()
    }
    pub async fn list_clones(&self, _query: ListQuery) -> Result<Page<CloneView>> {
        not_yet()
    }
    /// By name or id.
    pub async fn show_clone(&self, _clone: &str) -> Result<CloneView> {
        not_yet()
    }
    pub async fn delete_clone(&self, _clone: &str, _dry_run: bool) -> Result<Touched> {
        not_yet()
    }
    pub async fn reset_clone(&self, _clone: &str, _dry_run: bool) -> Result<Touched> {
        not_yet()
    }
    pub async fn snapshot_clone(&self, _clone: &str, _snapshot: &str) -> Result<SnapshotView> {
        not_yet()
    }
    pub async fn restore_clone(&self, _clone: &str, _snapshot: &str, _dry_run: bool) -> Result<Touched> {
        not_yet()
    }
    /// Counters of the iCache.
    pub fn cache(&self) -> CacheView {
        CacheView::default()
    }
    /// Forgets everything cached.
    pub fn drop_cache(&self) {}
}
