//! Clones: making, deleting, resetting, identities.

use clonegate::lifecycle::views::CreateClones;
use clonegate_tests::lab::{read, write};

use super::super::Scene;
use super::{G, all_or_none, find, nothing, order, spec, wrote};

const NEW: [&str; 4] = ["n-001", "n-002", "n-003", "n-004"];

pub(crate) const CLONES: &[Scene] = &[
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
