//! What runs as a job of its own.

use clonegate::lifecycle::views::{CreateFullClone, Rebalance};
use clonegate_tests::lab::{image, read, write};

use super::super::{Scene, bytes};
use super::{G, clone, find, job, nothing, version, wrote};

pub(crate) const JOBS: &[Scene] = &[
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
