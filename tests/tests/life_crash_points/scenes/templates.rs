//! Templates: versions and what is said of them.

use clonegate::lifecycle::views::{ImportTemplate, ToTemplate};
use clonegate_tests::lab::{image, import, read};

use super::super::{Scene, bytes};
use super::{G, nothing, spec, template, wrote};

pub(crate) const TEMPLATES: &[Scene] = &[
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
