//! Template versions: drafts, sealing checks, publishing, and which old ones stay.

use std::fs;
use std::path::Path;

use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{ImportTemplate, ListQuery, ToTemplate, UpdateClones};
use clonegate_tests::cases;
use clonegate_tests::lab::{Lab, SIZE, check_clean, image, import, order, read, version, write};
use clonegate_tests::machine::run;

cases! {
    => a_draft_is_neither_published_nor_cloned_before_it_is_sealed;
    "mke2fs", "mkfs.vfat", "mcopy" => sealing_names_what_all_clones_would_share;
    => old_versions_go_when_newer_ones_are_published_and_none_that_is_needed;
    => a_template_made_of_a_clone_stores_only_what_changed;
    => a_base_that_is_retired_leaves_its_version_what_it_needs;
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

fn a_base_that_is_retired_leaves_its_version_what_it_needs() {
    block_on(async {
        let lab = Lab::new(&["a", "b"]);
        let gateway = lab.gateway(1).await;
        let request =
            ImportTemplate { name: "t".to_owned(), datastore: Some("a".to_owned()), ..ImportTemplate::default() };
        import(&gateway, request, image(7)).await.unwrap();
        gateway.set_maintenance("a", true).await.unwrap();
        gateway.create_clones(order("c", "t", None), false).await.unwrap();
        gateway.delete_clone("c", false).await.unwrap();
        gateway.set_maintenance("a", false).await.unwrap();
        for _ in 0..1200 {
            let bases = gateway.list_bases(ListQuery::default()).await.unwrap().items;
            let free: Vec<_> = bases.iter().filter(|base| base.taken == 0).collect();
            if free.len() == 2 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let bases = gateway.list_bases(ListQuery::default()).await.unwrap().items;
        assert_eq!(bases.len(), 2);
        for base in bases {
            gateway.retire_base(&base.id, false).await.unwrap();
        }
        // The copy is gone, what the version is of is not.
        let packs = |name: &str| fs::read_dir(lab.path().join(name).join("packs")).map_or(0, Iterator::count);
        assert_eq!((packs("a"), packs("b")), (1, 0));
        check_clean(&gateway).await;
        gateway.create_clones(order("c", "t", None), false).await.unwrap();
        assert_eq!(read(&gateway, "c", 0).await, [7; 4]);
        check_clean(&gateway).await;
    });
}

fn draft(name: &str) -> ImportTemplate {
    ImportTemplate { name: name.to_owned(), draft: true, ..ImportTemplate::default() }
}

fn a_draft_is_neither_published_nor_cloned_before_it_is_sealed() {
    block_on(async {
        let lab = Lab::new(&["a"]);
        let gateway = lab.gateway(1).await;
        let made = import(&gateway, draft("t"), image(1)).await.unwrap();
        assert_eq!((made.published, made.versions[0].state.as_str()), (None, "draft"));
        assert_eq!(gateway.publish_template("t", Some(1)).await.unwrap_err().code(), "not-sealed");
        assert_eq!(gateway.create_clones(order("c", "t", None), false).await.unwrap_err().code(), "not-published");
        let direct = clonegate::lifecycle::views::CreateClones { version: Some(1), ..order("c", "t", None) };
        assert_eq!(gateway.create_clones(direct, false).await.unwrap_err().code(), "not-sealed");
        let sealed = gateway.seal_template("t", None, false).await.unwrap();
        assert_eq!((sealed.published, sealed.versions[0].state.as_str()), (None, "sealed"));
        assert_eq!(gateway.publish_template("t", None).await.unwrap().published, Some(1));
        gateway.create_clones(order("c", "t", None), false).await.unwrap();
        assert_eq!(gateway.seal_template("t", None, false).await.unwrap_err().code(), "no-draft");
        check_clean(&gateway).await;
    });
}

/// An ext4 image of this tree.
fn ext4(dir: &Path, files: &[(&str, &str)]) -> Vec<u8> {
    let tree = tempfile::tempdir_in(dir).unwrap();
    for (path, text) in files {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let file = dir.join("ext.img");
    fs::write(&file, vec![0; 8 << 20]).unwrap();
    let (tree, file) = (tree.path().display().to_string(), file.display().to_string());
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &tree, &file]);
    fs::read(file).unwrap()
}

fn sealing_names_what_all_clones_would_share() {
    let lab = Lab::new(&["a"]);
    let dir = lab.path();
    let clean = ext4(&dir, &[("etc/machine-id", ""), ("etc/hostname", "golden")]);
    let used = ext4(
        &dir,
        &[
            ("etc/machine-id", "4d8f5c8a2b6e4f9e8d3c1b0a99887766\n"),
            ("etc/ssh/ssh_host_ed25519_key", "-----BEGIN OPENSSH PRIVATE KEY-----"),
            ("var/lib/cloud/data/instance-id", "i-1"),
        ],
    );
    let stick = dir.join("esp.img");
    fs::write(&stick, vec![0; 8 << 20]).unwrap();
    let seed = dir.join("random-seed");
    fs::write(&seed, [7; 32]).unwrap();
    let (stick, seed) = (stick.display().to_string(), seed.display().to_string());
    run("mkfs.vfat", &[&stick]);
    run("mmd", &["-i", &stick, "::/loader"]);
    run("mcopy", &["-i", &stick, &seed, "::/loader/random-seed"]);
    let stick = fs::read(&stick).unwrap();
    block_on(async {
        let gateway = lab.gateway(1).await;
        let asked = |name: &str, force| ImportTemplate { name: name.to_owned(), force, ..ImportTemplate::default() };
        assert_eq!(import(&gateway, asked("clean", false), clean).await.unwrap().published, Some(1));
        let made = import(&gateway, asked("used", false), used.clone()).await.unwrap();
        let found = made.versions[0].findings.join("\n");
        for word in ["/etc/machine-id", "ssh_host_ed25519_key", "cloud-init"] {
            assert!(found.contains(word), "{word} is not in {found}");
        }
        assert_eq!((made.published, made.versions[0].state.as_str()), (None, "draft"), "it stays a draft");
        let refused = gateway.seal_template("used", Some(1), false).await.unwrap_err();
        assert_eq!((refused.code(), refused.object()), ("not-sealed", Some("used:1")));
        assert_eq!(gateway.seal_template("used", Some(1), true).await.unwrap().versions[0].state, "sealed");
        let forced = import(&gateway, asked("forced", true), used).await.unwrap();
        assert_eq!(
            (forced.published, forced.versions[0].findings.len()),
            (Some(1), 3),
            "what was found stays to be read"
        );
        let esp = import(&gateway, asked("esp", false), stick).await.unwrap();
        assert!(esp.versions[0].findings[0].contains("/loader/random-seed"), "{:?}", esp.versions[0].findings);

        // The same of a clone that becomes a template.
        gateway.create_clones(order("c", "forced", None), false).await.unwrap();
        let request = |force| ToTemplate { template: "again".to_owned(), publish: false, force };
        assert_eq!(gateway.clone_to_template("c", request(false)).await.unwrap_err().code(), "not-sealed");
        gateway.clone_to_template("c", request(true)).await.unwrap();
    });
}

async fn numbers(gateway: &Gateway) -> Vec<u32> {
    gateway.show_template("t").await.unwrap().versions.iter().map(|v| v.number).collect()
}

fn old_versions_go_when_newer_ones_are_published_and_none_that_is_needed() {
    block_on(async {
        let mut lab = Lab::new(&["a"]);
        lab.undo = std::time::Duration::ZERO;
        let gateway = lab.gateway(1).await;
        for byte in 1..=4 {
            version(&gateway, "t", byte).await;
        }
        let first = clonegate::lifecycle::views::CreateClones { version: Some(1), ..order("c", "t", None) };
        gateway.create_clones(first, false).await.unwrap();
        assert_eq!(gateway.retain_template("t", Some(0), false).await.unwrap_err().code(), "bad-count");
        assert_eq!(gateway.retain_template("t", Some(1), true).await.unwrap().names, ["t:2"]);
        assert_eq!(numbers(&gateway).await, [1, 2, 3, 4], "a dry run does nothing");
        gateway.retain_template("t", Some(1), false).await.unwrap();
        assert_eq!(numbers(&gateway).await, [1, 3, 4], "a clone needs 1, 3 is kept, 4 is published");
        let update = UpdateClones { template: "t".to_owned(), ..UpdateClones::default() };
        gateway.update_clones(update, false).await.unwrap();
        version(&gateway, "t", 5).await;
        gateway.publish_template("t", Some(5)).await.unwrap();
        gateway.retain_template("t", Some(1), false).await.unwrap();
        assert_eq!(numbers(&gateway).await, [3, 4, 5], "the clone needs 4, and 3 is kept to roll back to");
        check_clean(&gateway).await;
    });
}

fn a_template_made_of_a_clone_stores_only_what_changed() {
    block_on(async {
        let lab = Lab::new(&["a"]);
        let gateway = lab.gateway(1).await;
        let mut full: Vec<u8> = (0..SIZE).map(|at| (at / 65536) as u8 + 1).collect();
        full[100] = 77;
        let asked = ImportTemplate { name: "t".to_owned(), ..ImportTemplate::default() };
        let whole = import(&gateway, asked, full).await.unwrap().versions[0].stored_bytes;
        gateway.create_clones(order("c", "t", None), false).await.unwrap();
        let noise: Vec<u8> = (0..4096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        write(&gateway, "c", 300_000 / 4096 * 4096, &noise).await;
        let request = ToTemplate { template: "t".to_owned(), publish: true, force: false };
        let made = gateway.clone_to_template("c", request).await.unwrap();
        let new = &made.versions[1];
        assert_eq!((new.parent, made.published), (Some(1), Some(2)));
        assert!(new.stored_bytes < 16 << 10, "one chunk of sixteen changed: {} of {whole}", new.stored_bytes);
        gateway.create_clones(order("d", "t", None), false).await.unwrap();
        assert_eq!(read(&gateway, "d", 300_000 / 4096 * 4096).await, noise[..4]);
        assert_eq!(read(&gateway, "d", 0).await, [1; 4]);
    });
}
