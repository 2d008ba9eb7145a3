//! The verbs, each with what must be there before it and with how to tell whether it is done.

use std::sync::Arc;

use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{
    ChangePool, CloneView, CreateClones, CreateDisk, CreateFullClone, CreatePool, HostKeys, IdentitySpec,
    ImportTemplate, JobStateView, PowerEvent, Rebalance, RenewIdentity, RolloutAction, SetIdentity, Started,
    TemplateView, ToTemplate, UpdateClones,
};
use clonegate_core::{ErrorKind, Result};
use clonegate_tests::lab::{image, import, read, write};

use super::{Scene, bytes, mode, quiet};

type G = Arc<Gateway>;

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

const NEW: [&str; 4] = ["n-001", "n-002", "n-003", "n-004"];

pub(super) const CLONES: &[Scene] = &[
    scene!(
        "clone create",
        nothing,
        async |g: G| g.create_clones(order("n", None), false).await.map(drop),
        async |g: G| all_or_none(&g, &["n"]).await
    ),
    scene!(
        "clone create of four over two bases",
        nothing,
        async |g: G| g.create_clones(order("n", Some(4)), false).await.map(drop),
        async |g: G| all_or_none(&g, &NEW).await
    ),
    scene!(
        "clone create with identities",
        nothing,
        async |g: G| {
            let order = CreateClones { identity: Some(spec().spec), ..order("n", Some(4)) };
            g.create_clones(order, false).await.map(drop)
        },
        async |g: G| {
            let there = all_or_none(&g, &NEW).await;
            for name in NEW.iter().filter(|_| there) {
                assert_eq!(g.show_identity(*name).await.unwrap().kept, "plain");
            }
            there
        }
    ),
    scene!(
        "clone create on another datastore",
        async |g: G| drop(g.set_maintenance("fast", true).await.unwrap()),
        async |g: G| g.create_clones(order("n", None), false).await.map(drop),
        async |g: G| all_or_none(&g, &["n"]).await
    ),
    scene!("clone delete", nothing, async |g: G| g.delete_clone("c", false).await.map(drop), async |g: G| {
        let gone = find(&g, "c").await.is_none();
        if !gone {
            assert!(wrote(&g, "c").await);
            assert_eq!(g.show_identity("c").await.unwrap().kept, "plain");
        }
        let held = g.show_disk("d").await.unwrap().clone;
        assert_eq!(held.is_none(), gone, "its disk: {held:?}");
        gone
    }),
    scene!("reset", nothing, async |g: G| g.reset_clone("c", false).await.map(drop), async |g: G| !wrote(&g, "c")
        .await),
    scene!(
        "undo of a reset",
        async |g: G| drop(g.reset_clone("c", false).await.unwrap()),
        async |g: G| g.undo_clone("c", false).await.map(drop),
        async |g: G| wrote(&g, "c").await
    ),
    scene!("snapshot", nothing, async |g: G| g.snapshot_clone("c", "s").await.map(drop), async |g: G| {
        assert!(wrote(&g, "c").await);
        let kept = g.list_snapshots("c").await.unwrap().len() == 1;
        if kept {
            assert_eq!(read(&g, "c@s", 8192).await, *b"cccc");
        }
        kept
    }),
    scene!(
        "restore",
        async |g: G| {
            g.snapshot_clone("c", "s").await.unwrap();
            write(&g, "c", 8192, b"otherother").await;
        },
        async |g: G| g.restore_clone("c", "s", false).await.map(drop),
        async |g: G| {
            let found = read(&g, "c", 8192).await;
            assert!(found == *b"cccc" || found == *b"othe", "{found:?}");
            found == *b"cccc"
        }
    ),
    scene!(
        "drop of a snapshot",
        async |g: G| drop(g.snapshot_clone("c", "s").await.unwrap()),
        async |g: G| g.drop_snapshot("c", "s").await.map(drop),
        async |g: G| {
            assert!(wrote(&g, "c").await);
            g.list_snapshots("c").await.unwrap().is_empty()
        }
    ),
];

pub(super) const TEMPLATES: &[Scene] = &[
    scene!(
        "template import",
        nothing,
        async |g: G| {
            let request = ImportTemplate { name: "t".into(), publish: Some(true), ..ImportTemplate::default() };
            import(&g, request, image(3)).await.map(drop)
        },
        async |g: G| {
            let template = template(&g).await;
            let Some(version) = template.versions.iter().find(|v| v.number == 3) else { return false };
            assert_eq!((version.state.as_str(), template.published), ("published", Some(3)));
            assert_eq!(bytes(&g, "template/t").await[0], 3);
            true
        }
    ),
    scene!(
        "template import of a new one",
        nothing,
        async |g: G| {
            let request = ImportTemplate { name: "u".into(), ..ImportTemplate::default() };
            import(&g, request, image(3)).await.map(drop)
        },
        async |g: G| {
            let Ok(template) = g.show_template("u").await else { return false };
            assert_eq!(template.published, Some(1));
            assert_eq!(bytes(&g, "template/u").await[0], 3);
            true
        }
    ),
    scene!("publish", nothing, async |g: G| g.publish_template("t", 2).await.map(drop), async |g: G| {
        let published = template(&g).await.published.expect("one is");
        assert_eq!(u32::from(bytes(&g, "template/t").await[0]), published);
        published == 2
    }),
    scene!(
        "roll back of a template",
        async |g: G| drop(g.publish_template("t", 2).await.unwrap()),
        async |g: G| g.rollback_template("t").await.map(drop),
        async |g: G| template(&g).await.published == Some(1)
    ),
    scene!(
        "retention",
        async |g: G| {
            for byte in 3..6 {
                let request = ImportTemplate { name: "t".into(), ..ImportTemplate::default() };
                import(&g, request, image(byte)).await.unwrap();
            }
        },
        async |g: G| g.retain_template("t", 1, false).await.map(drop),
        async |g: G| {
            let left: Vec<u32> = template(&g).await.versions.iter().map(|v| v.number).collect();
            for number in &left {
                assert!(matches!(number, 1..=5));
            }
            left == [1, 5]
        }
    ),
    scene!(
        "template delete of a version",
        nothing,
        async |g: G| g.delete_template("t", Some(2), false).await.map(drop),
        async |g: G| template(&g).await.versions.iter().all(|v| v.number != 2)
    ),
    scene!(
        "template delete",
        async |g: G| {
            for byte in [4, 5] {
                let request = ImportTemplate { name: "u".into(), ..ImportTemplate::default() };
                import(&g, request, image(byte)).await.unwrap();
            }
            g.set_template_identity("u", spec().spec, false).await.unwrap();
        },
        async |g: G| g.delete_template("u", None, false).await.map(drop),
        async |g: G| g.show_template("u").await.is_err()
    ),
    scene!(
        "to-template",
        nothing,
        async |g: G| {
            let request = ToTemplate { template: "t".into(), publish: true, force: false };
            g.clone_to_template("c", request).await.map(drop)
        },
        async |g: G| {
            assert!(wrote(&g, "c").await);
            let template = template(&g).await;
            let Some(version) = template.versions.iter().find(|v| v.number == 3) else { return false };
            assert_eq!((version.state.as_str(), version.parent), ("published", Some(1)));
            assert_eq!(read(&g, "template/t", 8192).await, *b"cccc");
            true
        }
    ),
];

fn update(clones: &[&str]) -> UpdateClones {
    UpdateClones {
        template: "t".into(),
        version: Some(2),
        clones: clones.iter().map(ToString::to_string).collect(),
        ..UpdateClones::default()
    }
}

/// Both clones are on version 2, or none is.
async fn both_moved(g: &G) -> bool {
    let (c, e) = (version(g, "c").await, version(g, "e").await);
    assert_eq!(c, e, "one moved and one did not");
    for name in ["c", "e"] {
        assert_eq!(wrote(g, name).await, c == 1, "what {name} wrote");
    }
    c == 2
}

pub(super) const UPDATES: &[Scene] = &[
    scene!(
        "update now",
        nothing,
        async |g: G| g.update_clones(update(&["c", "e"]), false).await.map(drop),
        async |g: G| both_moved(&g).await
    ),
    scene!(
        "update at power-on",
        nothing,
        async |g: G| {
            let request = UpdateClones { at_next_power_on: true, ..update(&["c", "e"]) };
            g.update_clones(request, false).await?;
            for name in ["c", "e"] {
                g.power_clone(name, PowerEvent::On).await?;
            }
            Ok(())
        },
        async |g: G| {
            for name in ["c", "e"] {
                g.power_clone(name, PowerEvent::On).await.unwrap();
            }
            both_moved(&g).await
        }
    ),
    scene!(
        "update in waves",
        nothing,
        async |g: G| {
            let running = g.show_update("t").await.map_or_else(|_| String::new(), |update| update.state);
            if running != "awaits-promotion" {
                let request = UpdateClones { canary: Some(1), max_unavailable: Some(1), ..update(&["c", "e"]) };
                let view = g.update_clones(request, false).await?;
                assert_eq!(view.state, "awaits-promotion");
            }
            g.steer_update("t", RolloutAction::Promote).await.map(drop)
        },
        async |g: G| {
            // The one that goes first may have gone, and the others wait to be promoted: that is no half.
            let waits = g.show_update("t").await.is_ok_and(|update| update.state == "awaits-promotion");
            if waits {
                assert_eq!([version(&g, "c").await, version(&g, "e").await].iter().sum::<u32>(), 3);
            }
            !waits && both_moved(&g).await
        }
    ),
    scene!(
        "roll back of an update",
        async |g: G| drop(g.update_clones(update(&["c", "e"]), false).await.unwrap()),
        async |g: G| g.steer_update("t", RolloutAction::Rollback).await.map(drop),
        async |g: G| !both_moved(&g).await
    ),
];

fn pool() -> CreatePool {
    serde_json::from_value(serde_json::json!({ "name": "p", "template": "t", "size": 4, "durability": mode() }))
        .unwrap()
}

/// Clones of the pool, after what a gateway does for pools by itself.
async fn members(g: &G) -> Option<usize> {
    if g.show_pool("p").await.is_err() {
        let all = g.list_clones(clonegate::lifecycle::views::ListQuery::default()).await.unwrap();
        let left: Vec<String> = all.items.into_iter().filter(|c| c.pool.is_some()).map(|c| c.name).collect();
        assert!(left.is_empty(), "clones of a pool that there is not: {left:?}");
        return None;
    }
    // A minute after it was made every gateway fills it up; this asks for it now.
    g.change_pool("p", ChangePool::default()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let pool = g.show_pool("p").await.unwrap();
    for member in &pool.members {
        assert_eq!(bytes(g, &member.name).await.len(), 1 << 20);
    }
    Some(pool.members.len())
}

async fn has_pool(g: G) {
    g.create_pool(pool(), false).await.unwrap();
}

pub(super) const POOLS: &[Scene] = &[
    scene!("pool create", nothing, async |g: G| g.create_pool(pool(), false).await.map(drop), async |g: G| {
        let members = members(&g).await;
        assert!(matches!(members, None | Some(4)), "{members:?}");
        members.is_some()
    }),
    scene!("pool scale up", has_pool, async |g: G| g.scale_pool("p", 6_u32, false).await.map(drop), async |g: G| {
        members(&g).await == Some(6)
    }),
    scene!("pool scale down", has_pool, async |g: G| g.scale_pool("p", 2_u32, false).await.map(drop), async |g: G| {
        members(&g).await == Some(2)
    }),
    scene!("pool delete", has_pool, async |g: G| g.delete_pool("p", false, false).await.map(drop), async |g: G| {
        let members = members(&g).await;
        assert!(matches!(members, None | Some(4)), "{members:?}");
        members.is_none()
    }),
    scene!(
        "allocate and release",
        has_pool,
        async |g: G| {
            let given = g.allocate("p", "ada").await?;
            write(&g, &given.clone, 4096, b"mine").await;
            g.release_clone("p", "ada", false).await.map(drop)
        },
        async |g: G| {
            let pool = g.show_pool("p").await.unwrap();
            for member in pool.members.iter().filter(|m| m.assigned.is_none()) {
                assert_eq!(read(&g, &member.name, 4096).await, [0; 4], "another user's bytes");
            }
            pool.members.iter().all(|m| m.assigned.is_none())
        }
    ),
];

pub(super) const JOBS: &[Scene] = &[
    scene!(
        "promote",
        nothing,
        async |g: G| {
            let started = g.promote_clone("c", false).await?;
            job(&g, started).await
        },
        async |g: G| {
            assert!(wrote(&g, "c").await);
            assert_eq!(version(&g, "c").await, 1);
            clone(&g, "c").await.kind == "full"
        }
    ),
    scene!(
        "move",
        nothing,
        async |g: G| {
            let started = g.move_clone("c", "slow", false).await?;
            job(&g, started).await
        },
        async |g: G| {
            assert!(wrote(&g, "c").await);
            clone(&g, "c").await.datastore == "slow"
        }
    ),
    scene!(
        "move with snapshots",
        async |g: G| {
            g.snapshot_clone("c", "one").await.unwrap();
            write(&g, "c", 16384, &[7; 70_000]).await;
            g.snapshot_clone("c", "two").await.unwrap();
            write(&g, "c", 20480, &[8; 10_000]).await;
        },
        async |g: G| {
            let started = g.move_clone("c", "slow", false).await?;
            job(&g, started).await
        },
        async |g: G| {
            assert!(wrote(&g, "c").await);
            let names: Vec<String> = g.list_snapshots("c").await.unwrap().into_iter().map(|kept| kept.name).collect();
            assert_eq!(names, ["one", "two"]);
            for (export, byte) in [("c@one", 0), ("c@two", 7), ("c", 8)] {
                assert_eq!(read(&g, export, 20480).await, [byte; 4], "{export}");
                assert_eq!(read(&g, export, 8192).await, b"cccc", "{export}");
            }
            clone(&g, "c").await.datastore == "slow"
        }
    ),
    scene!(
        "rebalance",
        async |g: G| drop(g.hold_clone("keep", Some("stays".to_owned())).await.unwrap()),
        async |g: G| {
            let started = g.rebalance_datastore("fast", Rebalance { to: "slow".into(), clones: None }, false).await?;
            job(&g, started).await
        },
        async |g: G| {
            let mut there = 0;
            for name in ["c", "e"] {
                assert!(wrote(&g, name).await);
                there += u32::from(clone(&g, name).await.datastore == "slow");
            }
            there == 2
        }
    ),
    scene!(
        "full clone",
        nothing,
        async |g: G| {
            let request = CreateFullClone { name: "f".into(), template: "t".into(), ..CreateFullClone::default() };
            let started = g.create_full_clone(request, false).await?;
            job(&g, started).await
        },
        async |g: G| {
            if find(&g, "f").await.is_none() {
                return false;
            }
            assert_eq!(bytes(&g, "f").await, image(1));
            true
        }
    ),
];

async fn of_disk(g: &G) -> clonegate::lifecycle::views::DiskView {
    let disk = g.show_disk("d").await.unwrap();
    if disk.state != "archived" {
        assert_eq!(bytes(g, "disk/d").await[4096], b'd');
    }
    disk
}

pub(super) const DISKS: &[Scene] = &[
    scene!(
        "disk create",
        nothing,
        async |g: G| g.create_disk(disk("new", Some("c")), false).await.map(drop),
        async |g: G| {
            let there = g.show_disk("new").await.is_ok();
            if there {
                assert_eq!(bytes(&g, "disk/new").await, vec![0; 1 << 20]);
            }
            there
        }
    ),
    scene!("disk detach", nothing, async |g: G| g.detach_disk("d", false).await.map(drop), async |g: G| of_disk(&g)
        .await
        .clone
        .is_none()),
    scene!(
        "disk attach",
        async |g: G| drop(g.detach_disk("d", false).await.unwrap()),
        async |g: G| g.attach_disk("d", "e", false).await.map(drop),
        async |g: G| of_disk(&g).await.clone.as_deref() == Some("e")
    ),
    scene!(
        "disk archive",
        nothing,
        async |g: G| g.archive_disk("d", false).await.map(drop),
        async |g: G| of_disk(&g).await.state == "archived",
        true
    ),
    scene!(
        "disk delete",
        async |g: G| drop(g.detach_disk("d", false).await.unwrap()),
        async |g: G| g.delete_disk("d", false).await.map(drop),
        async |g: G| {
            let gone = g.show_disk("d").await.is_err();
            if !gone {
                of_disk(&g).await;
            }
            gone
        },
        true
    ),
    scene!("identity set", nothing, async |g: G| g.set_identity("e", spec(), false).await.map(drop), async |g: G| {
        let kept = g.show_identity("e").await.unwrap();
        bytes(&g, "e@identity").await;
        kept.kept != "derived"
    }),
    scene!(
        "identity renew",
        nothing,
        async |g: G| g.renew_identity("c", RenewIdentity::default(), false).await.map(drop),
        async |g: G| {
            let identity = g.show_identity("c").await.unwrap();
            assert!(identity.ssh_host_key.is_some());
            identity.generation == 2
        }
    ),
    scene!("identity clear", nothing, async |g: G| g.clear_identity("c", false).await.map(drop), async |g: G| g
        .show_identity("c")
        .await
        .unwrap()
        .kept
        == "derived"),
    scene!(
        "template identity set",
        nothing,
        async |g: G| g.set_template_identity("t", spec().spec, false).await.map(drop),
        async |g: G| g.show_template_identity("t").await.unwrap().kept != "none"
    ),
];
