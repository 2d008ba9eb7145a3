//! Updates of clones to another version.

use clonegate::lifecycle::views::{PowerEvent, RolloutAction, UpdateClones};

use super::super::Scene;
use super::{G, nothing, version, wrote};

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

pub(crate) const UPDATES: &[Scene] = &[
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
