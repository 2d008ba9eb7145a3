//! Full clones, and linked clones that become full ones while machines use them.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{
    CreateClones, CreateFullClone, DurabilityView, ImportTemplate, JobStateView, JobView, Started,
};
use clonegate_tests::gateway::Gateway as Program;
use clonegate_tests::lab::{Lab, check_clean, import, machine, machine_writes, order, read, write};
use clonegate_tests::nbd_client::NbdClient;
use clonegate_tests::raw_http::RawHttp;

const MIB: usize = 1 << 20;

/// Bytes that differ everywhere, with holes and blocks of zeroes in between.
fn image(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut image = Vec::with_capacity(size);
    while image.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let block = image.len() / 4096;
        let word = if block % 64 < 16 || block % 5 == 0 { 0 } else { state };
        image.extend(word.to_le_bytes());
    }
    image
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

async fn done(gateway: &Gateway, started: Started) -> JobView {
    let job = ended(gateway, started).await;
    assert_eq!(job.state, JobStateView::Done, "{job:?}");
    job
}

fn full(name: &str) -> CreateFullClone {
    CreateFullClone { name: name.to_owned(), template: "t".to_owned(), ..CreateFullClone::default() }
}

async fn template(gateway: &Gateway, bytes: &[u8]) {
    let request = ImportTemplate { name: "t".to_owned(), ..ImportTemplate::default() };
    import(gateway, request, bytes.to_vec()).await.unwrap();
}

async fn all(gateway: &Gateway, export: &str) -> Vec<u8> {
    use clonegate::exports::Exports;
    let device = gateway.open(export.parse().unwrap()).await.unwrap();
    let size = device.info().size;
    device.read(clonegate_core::units::ByteRange::new(0, size)).await.unwrap().concat()
}

/// The template and its bases go, which nothing may need any more.
async fn take_the_source_away(gateway: &Gateway) {
    for _ in 0..3000 {
        if gateway.delete_template("t", None, false).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(gateway.show_template("t").await.unwrap_err().code(), "unknown-template");
    assert!(gateway.list_bases(clonegate::lifecycle::views::ListQuery::default()).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_clone_outlives_its_template_its_bases_and_its_gateway() {
    let lab = Lab::new(&["local"]);
    let gateway = lab.gateway(1).await;
    let mut bytes = image(5 * MIB);
    template(&gateway, &bytes).await;
    let Started::Would(touched) = gateway.create_full_clone(full("f"), true).await.unwrap() else { panic!() };
    assert!(touched.dry_run && touched.bytes > 0, "{touched:?}");
    assert!(
        gateway.list_jobs(clonegate::lifecycle::views::ListJobs::default()).await.unwrap().items.is_empty(),
        "a dry run does nothing"
    );
    let job = done(&gateway, gateway.create_full_clone(full("f"), false).await.unwrap()).await;
    let alerts = gateway.alerts().await.unwrap();
    assert!(
        alerts.iter().all(|alert| alert.name != "f"),
        "it holds all that it is, and nothing is about to be full: {alerts:?}"
    );
    assert_eq!((job.kind.as_str(), job.subject.as_str(), job.done), ("full-clone", "f", 10 * MIB as u64));
    take_the_source_away(&gateway).await;
    assert_eq!(all(&gateway, "f").await, bytes);
    write(&gateway, "f", 4096 * 3 + 5, b"mine").await;
    bytes[4096 * 3 + 5..][..4].copy_from_slice(b"mine");
    let shown = gateway.show_clone("f").await.unwrap();
    assert_eq!((shown.kind.as_str(), shown.base), ("full", None));
    assert_eq!(gateway.reset_clone("f", false).await.unwrap_err().code(), "full-clone", "nothing would be left of it");
    check_clean(&gateway).await;
    gateway.stop().await;
    drop(gateway);
    let next = lab.gateway(1).await;
    assert_eq!(all(&next, "f").await, bytes);
    next.delete_clone("f", false).await.unwrap();
    for _ in 0..3000 {
        if next.fsck(false, Some(0), false).await.unwrap().findings.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    check_clean(&next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_full_clone_is_refused_before_anything_is_done() {
    let lab = Lab::new(&["local"]);
    let gateway = lab.gateway(1).await;
    template(&gateway, &image(MIB)).await;
    gateway.create_clones(order("c", "t", None), false).await.unwrap();
    let ephemeral = CreateFullClone { durability: Some(DurabilityView::Ephemeral), ..full("f") };
    let nowhere = CreateFullClone { datastore: Some("nowhere".to_owned()), ..full("f") };
    let unknown = CreateFullClone { template: "u".to_owned(), ..full("f") };
    for (request, code) in [
        (ephemeral, "ephemeral"),
        (full("c"), "name-taken"),
        (nowhere, "unknown-datastore"),
        (unknown, "unknown-template"),
    ] {
        for dry_run in [true, false] {
            assert_eq!(gateway.create_full_clone(request.clone(), dry_run).await.unwrap_err().code(), code);
        }
    }
    done(&gateway, gateway.promote_clone("c", false).await.unwrap()).await;
    assert_eq!(gateway.promote_clone("c", false).await.unwrap_err().code(), "full-clone");
    gateway.create_clones(order("s", "t", None), false).await.unwrap();
    gateway.snapshot_clone("s", "before").await.unwrap();
    assert_eq!(gateway.promote_clone("s", false).await.unwrap_err().code(), "has-snapshots");
    let ephemeral = CreateClones { durability: Some(DurabilityView::Ephemeral), ..order("e", "t", None) };
    gateway.create_clones(ephemeral, false).await.unwrap();
    assert_eq!(gateway.promote_clone("e", false).await.unwrap_err().code(), "ephemeral");
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_copy_leaves_nothing_behind() {
    let lab = Lab::new(&["local"]);
    let gateway = lab.gateway(1).await;
    template(&gateway, &image(24 * MIB)).await;
    let Started::Job(job) = gateway.create_full_clone(full("f"), false).await.unwrap() else { panic!() };
    gateway.cancel_job(&job.id, false).await.unwrap();
    let job = ended(&gateway, Started::Job(job)).await;
    assert_eq!(job.state, JobStateView::Cancelled);
    assert_eq!(gateway.show_clone("f").await.unwrap_err().code(), "unknown-clone");
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_clone_keeps_its_bytes_over_a_crash_right_after_its_base_was_let_go() {
    use clonegate::exports::{CloneRef, Exports};
    let lab = Lab::new(&["local"]);
    let gateway = lab.gateway(1).await;
    let mut bytes = image(3 * MIB);
    template(&gateway, &bytes).await;
    gateway.create_clones(order("c", "t", None), false).await.unwrap();
    let machine = machine(&gateway, "c", "10.0.0.1").await;
    machine_writes(&*machine, 8192, b"mine").await;
    bytes[8192..8196].copy_from_slice(b"mine");
    let Started::Would(touched) = gateway.promote_clone("c", true).await.unwrap() else { panic!() };
    assert_eq!(touched.sessions, 1);
    done(&gateway, gateway.promote_clone("c", false).await.unwrap()).await;
    machine_writes(&*machine, 16384, b"still here").await;
    bytes[16384..16394].copy_from_slice(b"still here");
    take_the_source_away(&gateway).await;
    drop(machine);
    drop(gateway);
    let next = lab.gateway(1).await;
    assert_eq!(all(&next, "c").await, bytes);
    let id: CloneRef = next.show_clone("c").await.unwrap().id.parse().unwrap();
    assert_eq!(next.open(clonegate::exports::ExportName::Clone(id)).await.unwrap().info().size, bytes.len() as u64);
    assert_eq!(read(&next, "c", 8192).await, b"mine");
    check_clean(&next).await;
}

fn read_all(program: &Program, clone: &str) -> Vec<u8> {
    let reply = RawHttp::connect(program.http()).request("GET", &format!("/v1/clones/{clone}/disk"), &[]);
    assert_eq!(reply.status, 200);
    reply.body
}

/// A machine that writes blocks here and there, as fast as it may, until it is told to stop. What it wrote is the model.
fn machine_at_work(
    program: &Program,
    export: &str,
    mut model: Vec<u8>,
    stop: &Arc<AtomicBool>,
) -> thread::JoinHandle<Vec<u8>> {
    let (address, export, stop) = (program.nbd(), export.to_owned(), Arc::clone(stop));
    thread::spawn(move || {
        let mut disk = NbdClient::connect(address, &export, Duration::from_secs(60)).unwrap();
        let mut state = 12345_u64;
        let mut turn = 0_u64;
        while !stop.load(Ordering::Relaxed) || turn < 50 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            turn += 1;
            let length = [512, 4096, 5000, 20_000][(state >> 20) as usize % 4];
            let at = (state >> 24) as usize % (model.len() - length);
            if turn.is_multiple_of(16) {
                disk.zero(at as u64, length as u32, false).unwrap();
                model[at..at + length].fill(0);
            } else {
                let data: Vec<u8> = (0..length).map(|n| (n as u64 ^ turn) as u8).collect();
                disk.write(at as u64, &data, turn.is_multiple_of(32)).unwrap();
                model[at..at + length].copy_from_slice(&data);
            }
        }
        disk.flush().unwrap();
        disk.disconnect();
        model
    })
}

fn program_with(image: &[u8]) -> Program {
    let program = Program::up(&["--clones", "0"]);
    let file = program.dir().join("t.raw");
    fs::write(&file, image).unwrap();
    program.cli_ok(&["template", "import", "t", file.to_str().unwrap()]);
    program
}

#[test]
fn a_machine_that_writes_while_its_clone_is_promoted_loses_no_byte() {
    let bytes = image(24 * MIB);
    let mut program = program_with(&bytes);
    program.cli_ok(&["clone", "create", "c", "--template", "t"]);
    let stop = Arc::new(AtomicBool::new(false));
    let machine = machine_at_work(&program, "c", bytes, &stop);
    program.cli_ok(&["clone", "promote", "c"]);
    stop.store(true, Ordering::Relaxed);
    let model = machine.join().unwrap();
    assert!(read_all(&program, "c") == model, "bytes were lost");
    program.cli_ok(&["template", "delete", "t"]);
    program.kill();
    program.start();
    assert!(read_all(&program, "c") == model, "bytes were lost with the source");
    program.cli_ok(&["fsck", "--grace", "0s"]);
}

#[test]
fn a_promotion_that_is_killed_again_and_again_is_finished_and_leaves_nothing_half_done() {
    let bytes = image(24 * MIB);
    let mut program = program_with(&bytes);
    program.cli_ok(&["clone", "create", "c", "--template", "t"]);
    let started = program.cli_ok(&["clone", "promote", "c", "--detach", "--output", "json"]);
    let job: serde_json::Value = serde_json::from_str(&started).unwrap();
    let id = job["id"].as_str().unwrap().to_owned();
    for round in 0..4 {
        thread::sleep(Duration::from_millis(80 + 120 * round));
        program.kill();
        program.start();
    }
    program.cli_ok(&["jobs", "watch", &id]);
    assert!(read_all(&program, "c") == bytes, "bytes were lost");
    let shown: serde_json::Value =
        serde_json::from_str(&program.cli_ok(&["clone", "show", "c", "--output", "json"])).unwrap();
    assert_eq!(shown["kind"], "full");
    program.cli_ok(&["fsck", "--grace", "0s"]);
    program.cli_ok(&["template", "delete", "t"]);
    assert!(read_all(&program, "c") == bytes, "it needed its base");
}
