//! The verbs, each with what must be there before it and with how to tell whether it is done.

/// A scene of closures: what is there before, the verb, and whether it is done.
macro_rules! scene {
    ($name:literal, $prepare:expr, $act:expr, $done:expr) => {
        scene!($name, $prepare, $act, $done, false)
    };
    ($name:literal, $prepare:expr, $act:expr, $done:expr, $of_disk:literal) => {
        Scene {
            name: $name,
            prepare: |g| Box::pin($prepare(g)),
            act: |g| Box::pin($act(g)),
            done: |g| Box::pin($done(g)),
            of_disk: $of_disk,
        }
    };
}

mod clones;
mod disks;
mod jobs;
mod pools;
mod templates;
mod updates;

use std::sync::Arc;

use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{
    CloneView, CreateClones, CreateDisk, HostKeys, IdentitySpec, ImportTemplate, JobStateView, SetIdentity, Started,
    TemplateView,
};
use clonegate_core::{ErrorKind, Result};
use clonegate_tests::lab::{image, import, read, write};

use super::{bytes, mode, quiet};

pub(super) use clones::CLONES;
pub(super) use disks::DISKS;
pub(super) use jobs::JOBS;
pub(super) use pools::POOLS;
pub(super) use templates::TEMPLATES;
pub(super) use updates::UPDATES;

type G = Arc<Gateway>;

fn order(name: &str, count: Option<u32>) -> CreateClones {
    CreateClones {
        name: name.to_owned(),
        template: "t".to_owned(),
        count,
        durability: Some(mode()),
        ..CreateClones::default()
    }
}

fn spec() -> SetIdentity {
    let spec = IdentitySpec { ssh_host_keys: HostKeys::Generate, ..IdentitySpec::default() };
    SetIdentity { spec, renew: false }
}

fn disk(name: &str, clone: Option<&str>) -> CreateDisk {
    CreateDisk {
        name: name.to_owned(),
        size: 1 << 20,
        datastore: Some("fast".to_owned()),
        clone: clone.map(str::to_owned),
        durability: Some(mode()),
        ..CreateDisk::default()
    }
}

/// A template of two versions, three clones that were written, disks and identities.
pub(super) async fn furnish(g: &G) {
    let request = ImportTemplate { name: "t".into(), datastore: Some("fast".into()), ..ImportTemplate::default() };
    import(g, request.clone(), image(1)).await.expect("an import");
    import(g, request, image(2)).await.expect("an import");
    for name in ["keep", "c", "e"] {
        g.create_clones(order(name, None), false).await.expect("a clone");
        write(g, name, 8192, name.repeat(100).as_bytes()).await;
    }
    for (name, clone) in [("keep-data", "keep"), ("d", "c")] {
        g.create_disk(disk(name, Some(clone)), false).await.expect("a disk");
        write(g, &format!("disk/{name}"), 4096, name.as_bytes()).await;
    }
    for name in ["keep", "c"] {
        g.set_identity(name, spec(), false).await.expect("an identity");
    }
}

async fn nothing(_: G) {}

async fn find(g: &G, name: &str) -> Option<CloneView> {
    match g.show_clone(name).await {
        Ok(clone) => Some(clone),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{name}: {error:?}"),
    }
}

async fn clone(g: &G, name: &str) -> CloneView {
    find(g, name).await.unwrap_or_else(|| panic!("{name} is gone"))
}

async fn template(g: &G) -> TemplateView {
    g.show_template("t").await.expect("it is there")
}

/// What `name` wrote is there.
async fn wrote(g: &G, name: &str) -> bool {
    let found = read(g, name, 8192).await;
    if found == name.repeat(4).as_bytes()[..4] {
        return true;
    }
    assert_eq!(found, [0; 4], "{name} has other bytes");
    false
}

/// The version that a clone reads as; its record says the same.
async fn version(g: &G, name: &str) -> u32 {
    let said = clone(g, name).await.version;
    assert_eq!(u32::from(bytes(g, name).await[0]), said, "{name} reads as another version than it says");
    said
}

/// All of these are there, or none.
async fn all_or_none(g: &G, names: &[&str]) -> bool {
    let mut there = Vec::new();
    for name in names {
        if find(g, name).await.is_some() {
            assert_eq!(bytes(g, name).await.len(), 1 << 20);
            there.push(*name);
        }
    }
    assert!(there.is_empty() || there.len() == names.len(), "of {names:?} only {there:?} are there");
    !there.is_empty()
}

/// Waits for a job and takes how it ended for what the verb answered.
async fn job(g: &G, started: Started) -> Result<()> {
    let Started::Job(job) = started else { panic!("a dry run") };
    quiet(g).await;
    let job = g.show_job(job.id.as_str()).await?;
    match job.state {
        JobStateView::Done => Ok(()),
        state => Err(clonegate_core::Error::internal("job-ended", format!("{state:?}: {:?}", job.error))),
    }
}
