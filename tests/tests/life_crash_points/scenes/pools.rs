//! Pools and who is given a clone of them.

use clonegate::lifecycle::views::{ChangePool, CreatePool};
use clonegate_tests::lab::{read, write};

use super::super::{Scene, bytes, mode};
use super::{G, nothing};

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

pub(crate) const POOLS: &[Scene] = &[
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
