//! Template versions: drafts, sealing checks, publishing, and which old ones stay.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clonegate::exports::Detach;
use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{CreatePool, ImportTemplate, ListQuery, RolloutAction, ToTemplate, UpdateClones};
use clonegate_tests::cases;
use clonegate_tests::lab::{Lab, SIZE, check_clean, image, import, machine, order, read, until, version, write};
use clonegate_tests::machine::run;

cases! {
    => a_draft_is_neither_published_nor_cloned_before_it_is_sealed;
    "mke2fs", "mkfs.vfat", "mcopy" => sealing_names_what_all_clones_would_share;
    => old_versions_go_when_newer_ones_are_published_and_none_that_is_needed;
    => a_template_made_of_a_clone_stores_only_what_changed;
    => a_base_that_is_retired_leaves_its_version_what_it_needs;
    => what_a_pool_needs_is_neither_deleted_nor_left_to_retention;
    => what_an_update_needs_or_waits_for_is_neither_deleted_nor_left_to_retention;
    => of_a_pool_and_a_deletion_at_once_at_most_one_succeeds;
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

/// A gateway with four versions of template `t`, and how long a reset can be undone, if otherwise than usual.
async fn four_versions(undo: Option<Duration>) -> (Lab, Arc<Gateway>) {
    let mut lab = Lab::new(&["a"]);
    lab.undo = undo.unwrap_or(lab.undo);
    let gateway = lab.gateway(1).await;
    for byte in 1..=4 {
        version(&gateway, "t", byte).await;
    }
    (lab, gateway)
}

async fn numbers(gateway: &Gateway) -> Vec<u32> {
    gateway.show_template("t").await.unwrap().versions.iter().map(|v| v.number).collect()
}

fn old_versions_go_when_newer_ones_are_published_and_none_that_is_needed() {
    block_on(async {
        let (_lab, gateway) = four_versions(Some(Duration::ZERO)).await;
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

/// That a deletion is refused, and lists this.
async fn refused(gateway: &Gateway, version: Option<u32>, words: &[&str]) {
    let before = gateway.show_template("t").await.unwrap();
    for dry_run in [true, false] {
        let error = gateway.delete_template("t", version, dry_run).await.unwrap_err();
        assert_eq!((error.code(), error.object()), ("referenced", Some("t")), "{error}");
        for word in words {
            assert!(error.message().contains(word), "{word:?} is not in {error}");
        }
        assert!(error.what_to_do().is_some(), "{error}");
    }
    let after = gateway.show_template("t").await.unwrap();
    let states = |t: &clonegate::lifecycle::views::TemplateView| {
        (t.published, t.versions.iter().map(|v| (v.number, v.state.clone())).collect::<Vec<_>>())
    };
    assert_eq!(states(&after), states(&before), "a refused deletion leaves it as it was");
}

/// A pool without clones, so that no slot speaks for it.
fn empty_pool(name: &str, version: Option<u32>) -> CreatePool {
    CreatePool { name: name.to_owned(), template: "t".to_owned(), version, max: Some(4), ..CreatePool::default() }
}

fn what_a_pool_needs_is_neither_deleted_nor_left_to_retention() {
    block_on(async {
        let (_lab, gateway) = four_versions(None).await;
        gateway.create_pool(empty_pool("pinned", Some(1)), false).await.unwrap();
        gateway.create_pool(empty_pool("latest", None), false).await.unwrap();
        refused(&gateway, Some(1), &["pools", "pinned"]).await;
        refused(&gateway, None, &["2 pools", "latest", "pinned"]).await;
        refused(&gateway, Some(4), &["1 pools", "latest"]).await;
        assert_eq!(gateway.retain_template("t", Some(1), true).await.unwrap().names, ["t:2"]);
        gateway.delete_template("t", Some(2), false).await.unwrap();
        gateway.publish_template("t", Some(3)).await.unwrap();
        gateway.delete_template("t", Some(4), false).await.unwrap();
        // What is refused does no harm: the pools get their clones.
        for pool in ["pinned", "latest"] {
            gateway.scale_pool(pool, 1_u32, false).await.unwrap();
            gateway.delete_pool(pool, false, false).await.unwrap();
        }
        for _ in 0..1200 {
            // Their slots go in the background.
            if gateway.delete_template("t", None, false).await.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(gateway.show_template("t").await.unwrap_err().code(), "unknown-template");
        check_clean(&gateway).await;
    });
}

fn what_an_update_needs_or_waits_for_is_neither_deleted_nor_left_to_retention() {
    block_on(async {
        let (_lab, gateway) = four_versions(Some(Duration::ZERO)).await;
        let first = clonegate::lifecycle::views::CreateClones { version: Some(1), ..order("c", "t", Some(2)) };
        gateway.create_clones(first, false).await.unwrap();
        let to = |number| UpdateClones { template: "t".to_owned(), version: Some(number), ..UpdateClones::default() };
        // One that waits for its first clones to be promoted; those are noted and not on it yet.
        let canary = UpdateClones { canary: Some(1), at_next_power_on: true, ..to(2) };
        assert_eq!(gateway.update_clones(canary, false).await.unwrap().state, "awaits-promotion");
        refused(&gateway, Some(2), &["1 clones move to it", "c-001", "an update of clones of t is awaits-promotion"])
            .await;
        refused(&gateway, None, &["2 clones need it: c-001, c-002", "awaits-promotion"]).await;
        assert_eq!(gateway.retain_template("t", Some(1), true).await.unwrap().names, [""; 0], "3 is kept");
        gateway.steer_update("t", RolloutAction::Rollback).await.unwrap();
        gateway.delete_template("t", Some(2), false).await.unwrap();

        // One that is through, but for a clone whose machine runs.
        let vm = machine(&gateway, "c-002", "10.0.0.1").await;
        clonegate_tests::lab::machine_writes(&*vm, 8192, b"mine").await;
        let later = gateway.update_clones(to(3), false).await.unwrap();
        assert_eq!((later.state.as_str(), &later.later[..]), ("done", &["c-002".to_owned()][..]));
        refused(&gateway, Some(3), &["1 clones need it: c-001", "1 clones move to it", "c-002"]).await;
        vm.detach(Detach::Clean);
        until(&gateway, "c-002", |clone| clone.version == 3).await;
        check_clean(&gateway).await;
    });
}

fn of_a_pool_and_a_deletion_at_once_at_most_one_succeeds() {
    block_on(async {
        let lab = Lab::new(&["a"]);
        let (one, two) = (lab.gateway(1).await, lab.gateway(2).await);
        let (mut pools, mut deletions) = (0, 0);
        for round in 0..24_u64 {
            if one.show_template("t").await.is_err() {
                version(&one, "t", 1).await;
            }
            let later = std::time::Duration::from_millis(round % 6);
            let pool = async {
                tokio::time::sleep(later).await;
                two.create_pool(empty_pool("lab", None), false).await
            };
            let (pool, deleted) = tokio::join!(pool, one.delete_template("t", None, false));
            assert!(pool.is_err() || deleted.is_err(), "round {round}: a pool of a template that is gone");
            if let Err(error) = &deleted {
                assert_eq!(error.code(), "referenced", "round {round}: {error}");
                assert_eq!(one.show_template("t").await.unwrap().published, Some(1), "it is as it was");
            }
            if pool.is_ok() {
                two.delete_pool("lab", false, false).await.unwrap();
            }
            assert_eq!(one.show_pool("lab").await.unwrap_err().code(), "unknown-pool", "none is left over");
            pools += u32::from(pool.is_ok());
            deletions += u32::from(deleted.is_ok());
        }
        println!("{pools} pools and {deletions} deletions of 24 succeeded");
    });
}
