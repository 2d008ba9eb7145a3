//! Clones that move to another datastore: every byte comes along, and nothing is half done whenever it is cut.

use std::fs;
use std::thread;
use std::time::Duration;

use clonegate::exports::{Detach, Exports};
use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{ImportTemplate, JobStateView, JobView, KeptSnapshot, Rebalance, Started};
use clonegate_core::units::ByteRange;
use clonegate_tests::gateway::Gateway as Program;
use clonegate_tests::lab::{Lab, below, check_clean, import, machine, order, read, write};
use clonegate_tests::raw_http::RawHttp;

const MIB: usize = 1 << 20;

fn image(size: usize) -> Vec<u8> {
    (0..size).map(|at| if (at / 4096) % 3 == 2 { 0 } else { (at / 4096 * 7 + at % 251) as u8 }).collect()
}

async fn lab_with(clones: u32) -> (Lab, std::sync::Arc<Gateway>, Vec<u8>) {
    let lab = Lab::new(&["one", "two"]);
    let gateway = lab.gateway(1).await;
    let bytes = image(3 * MIB);
    let request =
        ImportTemplate { name: "t".to_owned(), datastore: Some("one".to_owned()), ..ImportTemplate::default() };
    import(&gateway, request, bytes.clone()).await.unwrap();
    // So that they are made on `one`.
    gateway.set_maintenance("two", true).await.unwrap();
    gateway.create_clones(order("c", "t", Some(clones)), false).await.unwrap();
    gateway.set_maintenance("two", false).await.unwrap();
    (lab, gateway, bytes)
}

async fn ended(gateway: &Gateway, started: Started) -> JobView {
    let Started::Job(job) = started else { panic!("it was a dry run") };
    for _ in 0..2400 {
        let job = gateway.show_job(&job.id).await.unwrap();
        if job.state.is_over() {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it does not end: {:?}", gateway.show_job(&job.id).await);
}

async fn moved(gateway: &Gateway, clone: &str, to: &str) {
    let job = ended(gateway, gateway.move_clone(clone, to, false).await.unwrap()).await;
    assert_eq!(job.state, JobStateView::Done, "{job:?}");
    assert_eq!(gateway.show_clone(clone).await.unwrap().datastore, to);
}

async fn all(gateway: &Gateway, export: &str) -> Vec<u8> {
    let device = gateway.open(export.parse().unwrap()).await.unwrap();
    device.read(ByteRange::new(0, device.info().size)).await.unwrap().concat()
}

async fn zero(gateway: &Gateway, export: &str, range: ByteRange) {
    let device = gateway.open(export.parse().unwrap()).await.unwrap();
    device.write_zeroes(range, false, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_moves_with_its_bytes_its_base_and_its_id_and_back_again() {
    let (lab, gateway, mut bytes) = lab_with(2).await;
    let before = gateway.show_clone("c-001").await.unwrap();
    let mut change = async |gateway: &Gateway, at: usize, data: &[u8]| {
        write(gateway, "c-001", at as u64, data).await;
        bytes[at..at + data.len()].copy_from_slice(data);
        bytes.clone()
    };
    change(&gateway, 5000, b"written before").await;
    change(&gateway, MIB, &[0; 9000]).await;
    zero(&gateway, "c-001", ByteRange::new(2 << 20, (2 << 20) + 70_000)).await;
    bytes[2 * MIB..2 * MIB + 70_000].fill(0);
    let Started::Would(touched) = gateway.move_clone("c-001", "two", true).await.unwrap() else { panic!() };
    assert!(touched.notes.iter().any(|note| note.contains("gets its base")), "{touched:?}");
    assert_eq!(gateway.show_clone("c-001").await.unwrap().datastore, "one", "a dry run does nothing");
    moved(&gateway, "c-001", "two").await;
    let after = gateway.show_clone("c-001").await.unwrap();
    assert_eq!(after.id, before.id);
    assert_ne!(after.base, before.base);
    assert_eq!(all(&gateway, "c-001").await, bytes);
    check_clean(&gateway).await;
    let left = fs::read_dir(below(&lab, "one").join("clones").join(&before.id)).map_or(0, Iterator::count);
    assert!(left <= 1, "only the tombstone may be left in the old place");
    write(&gateway, "c-001", 77, b"written there").await;
    bytes[77..90].copy_from_slice(b"written there");
    gateway.stop().await;
    drop(gateway);
    let gateway = lab.gateway(1).await;
    assert_eq!(all(&gateway, "c-001").await, bytes);
    moved(&gateway, "c-001", "one").await;
    assert_eq!(all(&gateway, "c-001").await, bytes);
    assert_eq!(read(&gateway, "c-002", 77).await, image(3 * MIB)[77..81], "its sibling is as it was");
    check_clean(&gateway).await;
    gateway.delete_clone("c-001", false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_is_refused_with_the_reason() {
    let (_lab, gateway, _) = lab_with(1).await;
    let check = async |to: &str, code: &str| {
        assert_eq!(gateway.move_clone("c-001", to, false).await.unwrap_err().code(), code);
    };
    check("one", "there-already").await;
    check("nowhere", "unknown-datastore").await;
    gateway.set_maintenance("two", true).await.unwrap();
    check("two", "maintenance").await;
    gateway.set_maintenance("two", false).await.unwrap();
    let attached = machine(&gateway, "c-001", "10.0.0.1").await;
    check("two", "attached").await;
    attached.detach(Detach::Clean);
    gateway.hold_clone("c-001", Some("evidence".to_owned())).await.unwrap();
    check("two", "held").await;
    gateway.hold_clone("c-001", None).await.unwrap();
    moved(&gateway, "c-001", "two").await;
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_move_along_with_their_bytes_their_times_and_what_they_share() {
    let (lab, gateway, mut bytes) = lab_with(1).await;
    let mut states: Vec<(&str, Vec<u8>)> = Vec::new();
    let put = async |bytes: &mut Vec<u8>, at: usize, data: &[u8]| {
        write(&gateway, "c-001", at as u64, data).await;
        bytes[at..at + data.len()].copy_from_slice(data);
    };
    states.push(("untouched", bytes.clone()));
    gateway.snapshot_clone("c-001", "untouched").await.unwrap();
    put(&mut bytes, 5000, &[7; 600_000]).await;
    zero(&gateway, "c-001", ByteRange::new(2 << 20, (2 << 20) + 70_000)).await;
    bytes[2 * MIB..2 * MIB + 70_000].fill(0);
    states.push(("first", bytes.clone()));
    gateway.snapshot_clone("c-001", "first").await.unwrap();
    // Over the first, over its zeroes, zeroes over its data, and partly the same again.
    put(&mut bytes, 9000, &[8; 5000]).await;
    put(&mut bytes, 2 * MIB + 100, b"not zero any more").await;
    put(&mut bytes, 100_000, &[7; 50_000]).await;
    zero(&gateway, "c-001", ByteRange::new(200_000, 300_000)).await;
    bytes[200_000..300_000].fill(0);
    states.push(("second", bytes.clone()));
    gateway.snapshot_clone("c-001", "second").await.unwrap();
    // Where the present has its base again, and the snapshots have not.
    gateway.reset_clone("c-001", false).await.unwrap();
    bytes = states[0].1.clone();
    write(&gateway, "c-001", 3_000_000, b"now").await;
    bytes[3_000_000..3_000_003].copy_from_slice(b"now");
    let before = gateway.list_snapshots("c-001").await.unwrap();
    let Started::Would(touched) = gateway.move_clone("c-001", "two", true).await.unwrap() else { panic!() };
    assert!(touched.notes.iter().any(|note| note.contains("3 snapshots come along")), "{touched:?}");
    let check = async |gateway: &Gateway, bytes: &[u8]| {
        let after = gateway.list_snapshots("c-001").await.unwrap();
        let told = |kept: &[KeptSnapshot]| kept.iter().map(|k| (k.name.clone(), k.made_ms)).collect::<Vec<_>>();
        assert_eq!(told(&after), told(&before));
        for (name, state) in &states {
            assert!(all(gateway, &format!("c-001@{name}")).await == *state, "snapshot {name} differs");
        }
        assert!(all(gateway, "c-001").await == bytes);
        check_clean(gateway).await;
    };
    check(&gateway, &bytes).await;
    for to in ["two", "one", "two"] {
        moved(&gateway, "c-001", to).await;
        check(&gateway, &bytes).await;
    }
    gateway.stop().await;
    drop(gateway);
    let gateway = lab.gateway(1).await;
    check(&gateway, &bytes).await;
    gateway.restore_clone("c-001", "second", false).await.unwrap();
    assert!(all(&gateway, "c-001").await == states[2].1);
    for name in ["first", "untouched"] {
        gateway.drop_snapshot("c-001", name).await.unwrap();
    }
    assert!(all(&gateway, "c-001@second").await == states[2].1);
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_gateway_that_reads_the_clone_goes_along_to_the_new_place() {
    let (lab, gateway, mut bytes) = lab_with(1).await;
    let other = lab.gateway(2).await;
    assert_eq!(read(&other, "c-001", 0).await, bytes[..4]);
    moved(&gateway, "c-001", "two").await;
    write(&gateway, "c-001", 0, b"new!").await;
    gateway.stop().await;
    bytes[..4].copy_from_slice(b"new!");
    for _ in 0..600 {
        // While the old place goes, a read may fail; it never gives other bytes than those of some moment.
        let device = other.open("c-001".parse().unwrap()).await;
        let read = match device {
            Ok(device) => device.read(ByteRange::new(0, 4)).await.map(|read| read.concat()),
            Err(error) => Err(error),
        };
        if read.is_ok_and(|read| read == b"new!") {
            assert_eq!(all(&other, "c-001").await, bytes);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the other gateway still reads the old place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datastore_is_emptied_onto_another_but_for_what_is_in_use() {
    let (_lab, gateway, bytes) = lab_with(4).await;
    let attached = machine(&gateway, "c-002", "10.0.0.1").await;
    gateway.snapshot_clone("c-003", "s").await.unwrap();
    write(&gateway, "c-004", 0, b"four").await;
    let request = Rebalance { to: "two".to_owned(), clones: None };
    let Started::Would(touched) = gateway.rebalance_datastore("one", request.clone(), true).await.unwrap() else {
        panic!()
    };
    assert_eq!(touched.names, ["c-001", "c-003", "c-004"]);
    let job = ended(&gateway, gateway.rebalance_datastore("one", request, false).await.unwrap()).await;
    assert_eq!(job.state, JobStateView::Done, "{job:?}");
    let result = job.result.unwrap();
    assert_eq!(result["moved"], serde_json::json!(["c-001", "c-003", "c-004"]));
    for (clone, datastore) in [("c-001", "two"), ("c-002", "one"), ("c-003", "two"), ("c-004", "two")] {
        assert_eq!(gateway.show_clone(clone).await.unwrap().datastore, datastore, "{clone}");
    }
    assert_eq!(read(&gateway, "c-004", 0).await, b"four");
    assert_eq!(all(&gateway, "c-001").await, bytes);
    assert_eq!(all(&gateway, "c-003@s").await, bytes);
    attached.detach(Detach::Clean);
    check_clean(&gateway).await;
}

/// What a kill left is removed by the gateway itself: a while after its start `fsck` finds nothing, however young, and without a repair.
fn becomes_clean(program: &Program) {
    let mut found = String::new();
    for _ in 0..600 {
        let checked = program.cli(&["fsck", "--grace", "0s"]);
        if checked.status.success() {
            return;
        }
        found = String::from_utf8_lossy(&checked.stdout).into_owned();
        thread::sleep(Duration::from_millis(200));
    }
    panic!("it stays: {found}");
}

/// Bytes that do not compress.
fn noise(size: usize) -> Vec<u8> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.to_le_bytes()
    };
    (0..size / 8).flat_map(|_| next()).collect()
}

/// Files of the program's datastore below a part of the path.
fn stored(program: &Program, part: &str) -> usize {
    let (mut found, mut folders) = (0, vec![program.data()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                // One that is still being written, or was, has another name, and goes in an hour.
                found += usize::from(path.to_string_lossy().contains(part) && !path.to_string_lossy().contains('#'));
            }
        }
    }
    found
}

#[test]
fn an_import_that_is_killed_leaves_nothing_once_the_gateway_has_started_again() {
    let mut program = Program::up(&["--clones", "0"]);
    let file = program.dir().join("t.raw");
    let kept = image(3 * MIB);
    fs::write(&file, &kept).unwrap();
    program.cli_ok(&["template", "import", "kept", file.to_str().unwrap()]);
    let packs = stored(&program, "/packs/");
    // Nothing of it is shared, and it fills several packs.
    let noise = noise(96 * MIB);
    fs::write(&file, &noise).unwrap();
    let mut left = 0;
    for name in ["a", "b", "c"] {
        let (server, path) = (program.url(""), file.to_str().unwrap().to_owned());
        let begun = stored(&program, "/packs/");
        let importing = thread::spawn(move || {
            let arguments = ["template", "import", name, &path, "--server", &server];
            clonegate_tests::gateway::command(arguments).output().unwrap()
        });
        // In the middle: some of its packs are there.
        while stored(&program, "/packs/") < begun + 2 && !importing.is_finished() {
            thread::sleep(Duration::from_millis(2));
        }
        program.kill();
        importing.join().unwrap();
        left += stored(&program, "/packs/") - begun;
        program.start();
    }
    assert!(left > 0, "no kill met an import");
    becomes_clean(&program);
    assert_eq!((stored(&program, "/packs/"), stored(&program, "/making/")), (packs, 0));
    program.cli_ok(&["clone", "create", "c", "--template", "kept"]);
    assert!(read_all(&program, "c") == kept);
    program.cli_ok(&["template", "import", "t", file.to_str().unwrap()]);
    program.cli_ok(&["clone", "create", "d", "--template", "t"]);
    assert!(read_all(&program, "d") == noise);
    becomes_clean(&program);
}

fn read_all(program: &Program, clone: &str) -> Vec<u8> {
    let reply = RawHttp::connect(program.http()).request("GET", &format!("/v1/clones/{clone}/disk"), &[]);
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    reply.body
}

#[test]
fn a_move_that_is_killed_at_any_moment_is_finished_or_never_was() {
    let mut program = Program::up(&["--clones", "0"]);
    let file = program.dir().join("t.raw");
    let mut bytes = noise(12 * MIB);
    fs::write(&file, &bytes).unwrap();
    program.cli_ok(&["template", "import", "t", file.to_str().unwrap()]);
    program.cli_ok(&["clone", "create", "c", "--template", "t"]);
    let url = format!("file://{}", program.dir().join("second").display());
    program.cli_ok(&["datastore", "add", "second", &url]);
    let shown = |program: &Program| -> serde_json::Value {
        serde_json::from_str(&program.cli_ok(&["clone", "show", "c", "--output", "json"])).unwrap()
    };
    let first = shown(&program)["datastore"].as_str().unwrap().to_owned();
    let data: Vec<u8> = (0..6 * MIB).map(|n| (n % 241) as u8).collect();
    let range = format!("bytes 4096-{}/*", 4096 + data.len() - 1);
    let put =
        RawHttp::connect(program.http()).request_with("PUT", "/v1/clones/c/disk", &[("Content-Range", &range)], &data);
    assert_eq!(put.status, 204);
    bytes[4096..4096 + data.len()].copy_from_slice(&data);
    program.cli_ok(&["clone", "snapshot", "c", "before"]);
    let before = bytes.clone();
    let put = RawHttp::connect(program.http()).request_with(
        "PUT",
        "/v1/clones/c/disk",
        &[("Content-Range", &range)],
        &bytes[4097..4097 + data.len()],
    );
    assert_eq!(put.status, 204);
    bytes.copy_within(4097..4097 + data.len(), 4096);
    let second = program.dir().join("second");
    for round in 0..6_u64 {
        let here = shown(&program)["datastore"].as_str().unwrap().to_owned();
        let to = if here == first { "second".to_owned() } else { first.clone() };
        let started = program.cli_ok(&["clone", "move", "c", "--to", &to, "--detach", "--output", "json"]);
        let job: serde_json::Value = serde_json::from_str(&started).unwrap();
        if round == 0 {
            // While its base is copied, which is done once.
            while !second.join("making").exists() && !second.join("indexes").exists() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        thread::sleep(Duration::from_millis(60 * round * round));
        program.kill();
        program.start();
        program.cli_ok(&["jobs", "watch", job["id"].as_str().unwrap()]);
        assert_eq!(shown(&program)["datastore"], to.as_str(), "round {round}");
        assert!(read_all(&program, "c") == bytes, "bytes were lost in round {round}");
        assert!(read_all(&program, "c@before") == before, "bytes of the snapshot were lost in round {round}");
        becomes_clean(&program);
    }
}
