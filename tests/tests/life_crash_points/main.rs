//! Every verb of the life of templates, clones, pools and disks, with the gateway dying before and after each of its store requests.
//!
//! After each death another gateway, or the same one started again, finds the stores as they are: what the verb did is done, or is
//! undone, or is done by the job that goes on; what nobody needs is found and removed; nobody else's bytes have changed.
//! `CLONEGATE_LONG=N` looks at every point of the long verbs too.

mod scenes;

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use clonegate::exports::Exports;
use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{DurabilityView, ListJobs, ListQuery, PowerEvent};
use clonegate_core::Result;
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::Faults;
use clonegate_tests::lab::{read, write};
use clonegate_tests::rehearsal::Stores;
use clonegate_tests::sim::runtime;
use futures::future::BoxFuture;

/// What a scene does with a gateway.
type Deed<T> = fn(Arc<Gateway>) -> BoxFuture<'static, T>;

/// One verb and how to tell what became of it.
#[derive(Clone, Copy)]
struct Scene {
    name: &'static str,
    /// What must be there before.
    prepare: Deed<()>,
    /// The verb.
    act: Deed<Result<()>>,
    /// Whether it is done. Panics when it is neither done nor undone.
    done: Deed<bool>,
    /// The disk `d` is what it is about.
    of_disk: bool,
}

/// Most crash points of one verb when nobody asks for more, and of one of `local` clones.
const POINTS_USUAL: u64 = 120;
const POINTS_LOCAL: u64 = 48;
/// Where a clone of durability `local` has a flushed write that only the journal holds when a verb begins.
const TAIL_AT: u64 = 64 << 10;

thread_local! {
    /// What the clones and disks of this thread's scenes promise; a world lives on one thread.
    static MODE: Cell<DurabilityView> = const { Cell::new(DurabilityView::Object) };
}

fn mode() -> DurabilityView {
    MODE.get()
}

fn is_local() -> bool {
    mode() == DurabilityView::Local
}

fn long() -> u64 {
    std::env::var("CLONEGATE_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1).max(1)
}

/// All bytes of an export.
async fn bytes(gateway: &Gateway, export: &str) -> Vec<u8> {
    let device = gateway.open(export.parse().expect("a good name")).await.unwrap_or_else(|e| panic!("{export}: {e:?}"));
    let size = device.info().size;
    device.read(ByteRange::new(0, size)).await.unwrap_or_else(|e| panic!("{export}: {e:?}")).concat()
}

/// What nobody but its own verbs may change.
#[derive(Debug, PartialEq, Eq)]
struct Bystanders {
    clone: Vec<u8>,
    its_disk: Vec<u8>,
    disk: Vec<u8>,
    identity: String,
}

async fn bystanders(gateway: &Gateway, scene: &Scene) -> Bystanders {
    let identity = gateway.show_identity("keep").await.expect("an identity");
    Bystanders {
        clone: bytes(gateway, "keep").await,
        its_disk: bytes(gateway, "disk/keep-data").await,
        disk: if scene.of_disk { Vec::new() } else { bytes(gateway, "disk/d").await },
        identity: serde_json::to_string(&identity).expect("it encodes"),
    }
}

/// Waits until no job is at work.
async fn quiet(gateway: &Gateway) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..6000 {
        let jobs = gateway.list_jobs(ListJobs { under_way: true, ..ListJobs::default() }).await.expect("jobs");
        if jobs.items.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("jobs never end: {:?}", gateway.list_jobs(ListJobs::default()).await);
}

/// What the lost gateway had open is taken over and said to be off, as an operator does after the loss of a gateway.
async fn all_off(gateway: &Gateway) {
    for clone in gateway.list_clones(ListQuery::default()).await.expect("clones").items {
        if is_local() {
            gateway.accept_loss(clone.name.as_str(), false).await.unwrap_or_else(|e| panic!("{}: {e:?}", clone.name));
        }
        gateway.take_clone_over(clone.name.as_str(), false).await.unwrap_or_else(|e| panic!("{}: {e:?}", clone.name));
        gateway
            .power_clone(clone.name.as_str(), PowerEvent::Off)
            .await
            .unwrap_or_else(|e| panic!("{}: {e:?}", clone.name));
    }
}

/// Plays a scene with a death at request `dies_at`; then looks from another gateway. Says how many requests there were.
fn play(scene: &Scene, world: &Stores, before: &Bystanders, dies_at: Option<(u64, bool)>) -> u64 {
    let stores = world.fork();
    let first = runtime();
    let faults = Faults::none();
    let (calls, acknowledged) = first.block_on(async {
        let gateway = stores.gateway(1, &faults).await.expect("a gateway starts");
        if is_local() {
            write(&gateway, "c", TAIL_AT, b"tail").await;
        }
        let begin = faults.calls();
        if let Some((call, applied)) = dies_at {
            faults.die_at(begin + call, applied);
        }
        let acted = tokio::select! {
            acted = (scene.act)(Arc::clone(&gateway)) => Some(acted),
            () = faults.died() => None,
        };
        // What the verb left to be done behind the caller's back.
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            () = faults.died() => {}
        }
        let acknowledged = match acted {
            Some(Ok(())) => true,
            Some(Err(error)) if dies_at.is_none() => panic!("{} without a death: {error:?}", scene.name),
            _ => false,
        };
        (faults.calls() - begin, acknowledged)
    });
    // As with a process that dies, nothing of it is waited for.
    first.shutdown_background();
    let second = runtime();
    second.block_on(async {
        let at = format!("{}, dead at {dies_at:?}", scene.name);
        // The same host comes back, or another takes over.
        let number = if dies_at.is_some_and(|(call, _)| call % 2 == 1) { 2 } else { 1 };
        let gateway = stores.gateway(number, &Faults::none()).await.expect("a gateway starts");
        // What another gateway left is gone on with once it has stood still for a while.
        tokio::time::sleep(Duration::from_secs(if number == 1 { 1 } else { 90 })).await;
        quiet(&gateway).await;
        all_off(&gateway).await;
        if number == 1 {
            images_gone(&gateway, &at).await;
        }
        clean(&gateway, &at).await;
        let done = (scene.done)(Arc::clone(&gateway)).await;
        assert!(done || !acknowledged, "{at}: it was acknowledged and is not done");
        if is_local() && !done && number == 1 {
            assert_eq!(read(&gateway, "c", TAIL_AT).await, b"tail", "{at}: a flushed write is lost");
        }
        if !done {
            (scene.act)(Arc::clone(&gateway)).await.unwrap_or_else(|e| panic!("{at}: not again: {e:?}"));
            quiet(&gateway).await;
            assert!((scene.done)(Arc::clone(&gateway)).await, "{at}: done again, and not done");
            clean(&gateway, &at).await;
        }
        assert!(bystanders(&gateway, scene).await == *before, "{at}: somebody else's bytes or identity changed");
    });
    drop(second);
    calls
}

/// What a gateway left of images that it was making goes by itself once it has started again.
async fn images_gone(gateway: &Gateway, at: &str) {
    let of_images =
        ["an image whose making was cut short", "bytes that no index names", "that no template and no base names"];
    let mut left = Vec::new();
    for _ in 0..100 {
        left = gateway.fsck(false, Some(0), false).await.expect("no faults").findings;
        left.retain(|finding| of_images.iter().any(|what| finding.what.contains(what)));
        if left.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{at}: it stays: {left:?}");
}

/// What a crash left is found and removed, and then there is nothing more to be found.
async fn clean(gateway: &Gateway, at: &str) {
    let found = gateway.fsck(true, Some(0), false).await.expect("no faults").findings;
    let left: Vec<_> = found.iter().filter(|finding| !finding.repaired).collect();
    assert!(left.is_empty(), "{at}: {left:?}");
    let again = gateway.fsck(false, Some(0), false).await.expect("no faults").findings;
    assert!(again.is_empty(), "{at}, after a repair: {again:?}");
}

/// The world as it is before a scene.
fn begin(scene: &Scene) -> (Stores, Bystanders) {
    let stores = Stores::new(&["fast", "slow"]);
    let stores = if is_local() { stores.with_journals() } else { stores };
    let before = runtime().block_on(async {
        let gateway = stores.gateway(1, &Faults::none()).await.expect("a gateway starts");
        scenes::furnish(&gateway).await;
        (scene.prepare)(Arc::clone(&gateway)).await;
        let before = bystanders(&gateway, scene).await;
        gateway.stop().await;
        before
    });
    (stores, before)
}

fn die_everywhere(all: &[Scene]) {
    let only = std::env::var("CLONEGATE_SCENE").ok();
    let (mut points, mut wrong) = (0, 0);
    for scene in all.iter().filter(|scene| only.as_ref().is_none_or(|only| scene.name.contains(only.as_str()))) {
        let begun = std::time::Instant::now();
        let (world, before) = begin(scene);
        let calls = play(scene, &world, &before, None);
        let most = if is_local() { POINTS_LOCAL } else { POINTS_USUAL };
        // An odd step, so that deaths before and after a request take turns.
        let step = (calls * 2).div_ceil(most * long()).max(1) | 1;
        let mut here = 0;
        for point in (0..calls * 2).step_by(usize::try_from(step).expect("a small step")) {
            let death = Some((point / 2, point % 2 == 1));
            // One that goes wrong does not hide what goes wrong in others.
            let played = std::panic::catch_unwind(AssertUnwindSafe(|| play(scene, &world, &before, death)));
            wrong += u64::from(played.is_err());
            here += 1;
        }
        println!("{}: {calls} requests, {here} crash points, {:?}", scene.name, begun.elapsed());
        points += here;
    }
    assert!(wrong == 0, "{wrong} of {points} crash points went wrong");
    println!("crash points: {points}; nothing half done, nothing of others changed");
    assert!(only.is_some() || points >= 100, "{points} crash points test little");
}

/// Lets gateway 1 die at a request of an import.
fn import_cut(stores: &Stores, scene: &Scene, dies_at: (u64, bool)) {
    let first = runtime();
    let faults = Faults::none();
    first.block_on(async {
        let gateway = stores.gateway(1, &faults).await.expect("a gateway starts");
        faults.die_at(faults.calls() + dies_at.0, dies_at.1);
        tokio::select! {
            _ = (scene.act)(Arc::clone(&gateway)) => {}
            () = faults.died() => {}
        }
    });
    first.shutdown_background();
}

#[test]
fn a_death_at_any_request_of_the_removal_of_what_an_import_left_leaves_nothing_in_the_end() {
    let scene = scenes::TEMPLATES.iter().find(|scene| scene.name == "template import").expect("it is there");
    let (world, before) = begin(scene);
    let calls = play(scene, &world, &before, None);
    let mut points = 0;
    for cut in (0..calls).step_by(2) {
        let stores = world.fork();
        import_cut(&stores, scene, (cut, true));
        // Where it is dead from some request on, counted from when it begins to remove; says how many there are.
        let removal = |stores: &Stores, dies_at: Option<(u64, bool)>| {
            let second = runtime();
            let faults = Faults::none();
            let calls = second.block_on(async {
                let _gateway = stores.gateway(1, &faults).await.expect("a gateway starts");
                tokio::time::sleep(Duration::from_millis(29_900)).await;
                let begin = faults.calls();
                if let Some((call, applied)) = dies_at {
                    faults.die_at(begin + call, applied);
                }
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(3)) => {}
                    () = faults.died() => {}
                }
                faults.calls() - begin
            });
            second.shutdown_background();
            calls
        };
        // An odd step, so that deaths before and after a request take turns.
        let step = if long() > 1 { 1 } else { 3 };
        for point in (0..2 * removal(&stores.fork(), None)).step_by(step) {
            let stores = stores.fork();
            removal(&stores, Some((point / 2, point % 2 == 1)));
            let third = runtime();
            third.block_on(async {
                let at = format!("cut at {cut}, its removal at {point}");
                let gateway = stores.gateway(1, &Faults::none()).await.expect("a gateway starts");
                images_gone(&gateway, &at).await;
                all_off(&gateway).await;
                if !(scene.done)(Arc::clone(&gateway)).await {
                    (scene.act)(Arc::clone(&gateway)).await.unwrap_or_else(|e| panic!("{at}: not again: {e:?}"));
                }
                images_gone(&gateway, &at).await;
                assert!(bystanders(&gateway, scene).await == before, "{at}: somebody else's bytes changed");
            });
            points += 1;
        }
    }
    println!("deaths in a removal: {points}");
    assert!(points >= 100, "{points} deaths test little");
}

#[test]
fn what_a_cut_import_left_goes_while_other_gateways_make_images_and_lose_nothing() {
    let scene = scenes::TEMPLATES.iter().find(|scene| scene.name == "template import").expect("it is there");
    let (world, before) = begin(scene);
    let calls = play(scene, &world, &before, None);
    // Some chunks fill a pack before all of it is there.
    let image: Vec<u8> = (0..6 << 20).flat_map(|n: u32| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for cut in (0..calls).step_by(5) {
        let stores = world.fork();
        import_cut(&stores, scene, (cut, true));
        let later = runtime();
        later.block_on(async {
            let at = format!("cut at {cut}");
            let others = [2, 3].map(|number| {
                let (stores, image) = (&stores, image.clone());
                async move {
                    let gateway = stores.gateway(number, &Faults::none()).await.expect("a gateway starts");
                    let (mut writer, reader) = tokio::io::duplex(1 << 20);
                    let size = Some(image.len() as u64);
                    let input = clonegate::import::Input::RawStream { reader: Box::new(reader), size };
                    let request = clonegate::lifecycle::views::ImportTemplate {
                        name: format!("of-{number}"),
                        datastore: Some("fast".to_owned()),
                        ..Default::default()
                    };
                    let progress = Arc::new(clonegate::import::NoProgress);
                    let fed = image.clone();
                    let feed = async move {
                        use tokio::io::AsyncWriteExt;
                        writer.write_all(&fed[..20 << 20]).await.expect("it reads");
                        tokio::time::sleep(Duration::from_secs(90)).await;
                        writer.write_all(&fed[20 << 20..]).await.expect("it reads");
                    };
                    let (imported, ()) = tokio::join!(gateway.import_template(request, input, progress), feed);
                    imported.unwrap_or_else(|e| panic!("{number}: {e:?}"));
                    assert!(bytes(&gateway, &format!("template/of-{number}")).await == image);
                    gateway.stop().await;
                }
            });
            let again = async {
                let gateway = stores.gateway(1, &Faults::none()).await.expect("a gateway starts");
                tokio::time::sleep(Duration::from_secs(60)).await;
                gateway
            };
            let (gateway, _) = tokio::join!(again, futures::future::join_all(others));
            images_gone(&gateway, &at).await;
            let found = gateway.fsck(false, Some(0), true).await.expect("no faults").findings;
            assert!(found.is_empty(), "{at}: {found:?}");
            all_off(&gateway).await;
            assert!(bystanders(&gateway, scene).await == before, "{at}: somebody else's bytes changed");
        });
    }
}

#[test]
fn a_death_at_any_request_of_a_verb_of_clones_leaves_nothing_half_done() {
    die_everywhere(scenes::CLONES);
}

#[test]
fn a_death_at_any_request_of_a_verb_of_templates_leaves_nothing_half_done() {
    die_everywhere(scenes::TEMPLATES);
}

#[test]
fn a_death_at_any_request_of_an_update_leaves_nothing_half_done() {
    die_everywhere(scenes::UPDATES);
}

#[test]
fn a_death_at_any_request_of_a_verb_of_pools_leaves_nothing_half_done() {
    die_everywhere(scenes::POOLS);
}

#[test]
fn a_death_at_any_request_of_a_job_leaves_nothing_half_done() {
    die_everywhere(scenes::JOBS);
}

#[test]
fn a_death_at_any_request_of_a_verb_of_disks_and_identities_leaves_nothing_half_done() {
    die_everywhere(scenes::DISKS);
}

#[test]
fn a_death_at_any_request_of_a_verb_of_local_clones_loses_nothing_that_the_journal_has() {
    MODE.set(DurabilityView::Local);
    let of_one_clone =
        ["clone delete", "reset", "undo of a reset", "snapshot", "restore", "drop of a snapshot", "update now"];
    let all: Vec<Scene> =
        scenes::CLONES.iter().chain(scenes::UPDATES).filter(|s| of_one_clone.contains(&s.name)).copied().collect();
    assert_eq!(all.len(), of_one_clone.len());
    die_everywhere(&all);
}
