//! Data disks.

use clonegate::lifecycle::views::RenewIdentity;

use super::super::{Scene, bytes};
use super::{G, disk, nothing, spec};

async fn of_disk(g: &G) -> clonegate::lifecycle::views::DiskView {
    let disk = g.show_disk("d").await.unwrap();
    if disk.state != "archived" {
        assert_eq!(bytes(g, "disk/d").await[4096], b'd');
    }
    disk
}

pub(crate) const DISKS: &[Scene] = &[
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
