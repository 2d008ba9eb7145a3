//! What happens to clones over their life: updates, templates made of them, power-offs, data disks, leftovers.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clonegate::clock::Clock;
use clonegate::delta::DeltaSettings;
use clonegate::exports::{Attach, Detach, Exports};
use clonegate::import::{Input, NoProgress};
use clonegate::lifecycle::advisor::BuiltIn;
use clonegate::lifecycle::views::{
    CapacityQuery, CloneView, CreateClones, CreateDisk, ImportTemplate, LifetimeView, PowerEvent, TemplateView,
    ToTemplate, UpdateClones,
};
use clonegate::lifecycle::{DatastoreSettings, Gateway, GatewaySettings};
use clonegate::store::{Store, StoreConfig, keys};
use clonegate_core::ids::Name;
use clonegate_core::units::ByteRange;

async fn gateway(dir: &Path, number: u8) -> Arc<Gateway> {
    gateway_with_grace(dir, number, Duration::from_millis(50)).await
}

/// A gateway for which a good-bye that nobody follows for so long is a power-off.
async fn gateway_with_grace(dir: &Path, number: u8, grace: Duration) -> Arc<Gateway> {
    let clock = Clock::system();
    let url = |part: &str| StoreConfig::new(format!("file://{}/{part}", dir.display()));
    let settings = GatewaySettings {
        home: url("home"),
        datastores: vec![DatastoreSettings::new(Name::new("local").unwrap(), url("store"))],
        sources: Vec::new(),
        gateway: clock.id(),
        host: format!("host-{number}"),
        icache_bytes: 16 << 20,
        delta: DeltaSettings { journal: Some(dir.join(format!("journal-{number}"))), ..DeltaSettings::default() },
        idle_close: Duration::from_secs(300),
        power_off_grace: grace,
        slots_per_base: 128,
    };
    Gateway::start(settings, Arc::new(BuiltIn), clock).await.unwrap()
}

fn image(byte: u8) -> Vec<u8> {
    let mut image = vec![0; 1 << 20];
    image[..512].fill(byte);
    image
}

async fn import(gateway: &Gateway, name: &str, byte: u8, slots: Option<u32>) -> TemplateView {
    let image = image(byte);
    let size = Some(image.len() as u64);
    let request = ImportTemplate { name: name.to_owned(), slots, ..ImportTemplate::default() };
    let input = Input::RawStream { reader: Box::new(Cursor::new(image)), size };
    gateway.import_template(request, input, Arc::new(NoProgress)).await.unwrap()
}

fn order(name: &str, template: &str, count: Option<u32>) -> CreateClones {
    CreateClones { name: name.to_owned(), template: template.to_owned(), count, ..CreateClones::default() }
}

async fn first_bytes(gateway: &Gateway, export: &str, at: u64) -> Vec<u8> {
    let device = gateway.open(export.parse().unwrap()).await.unwrap();
    device.read(ByteRange::new(at, at + 4)).await.unwrap().concat()
}

async fn write(gateway: &Gateway, export: &str, at: u64, bytes: &'static [u8]) {
    let device = gateway.open(export.parse().unwrap()).await.unwrap();
    device.write(at, bytes::Bytes::from_static(bytes), Default::default()).await.unwrap();
    device.flush().await.unwrap();
}

fn update(version: Option<u32>) -> UpdateClones {
    UpdateClones { template: "t".to_owned(), version, ..UpdateClones::default() }
}

/// Waits until a clone is as it should become.
async fn until(gateway: &Gateway, clone: &str, is: impl Fn(&CloneView) -> bool) {
    for _ in 0..2400 {
        if is(&gateway.show_clone(clone).await.unwrap()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it did not become so: {:?}", gateway.show_clone(clone).await.unwrap());
}

fn by(client: &str) -> Attach {
    Attach { client: client.to_owned(), write: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_maintenance_round_reaches_every_clone_and_can_be_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    gateway.create_clones(order("desk", "t", Some(3)), false).await.unwrap();
    gateway.create_clones(order("patched", "t", None), false).await.unwrap();
    gateway
        .create_disk(
            CreateDisk {
                name: "home".to_owned(),
                size: 1 << 20,
                clone: Some("desk-001".to_owned()),
                ..CreateDisk::default()
            },
            false,
        )
        .await
        .unwrap();
    write(&gateway, "disk/home", 0, b"data").await;
    write(&gateway, "patched", 4096, b"news").await;
    write(&gateway, "desk-001", 8192, b"mess").await;
    let request = ToTemplate { template: "t".to_owned(), publish: true, force: false };
    let made = gateway.clone_to_template("patched", request).await.unwrap();
    assert_eq!((made.published, made.versions[1].parent), (Some(2), Some(1)));

    let plan = gateway.update_clones(update(None), true).await.unwrap();
    assert_eq!((plan.updated.len(), plan.delta_bytes > 0), (4, true));
    assert_eq!(gateway.show_clone("desk-001").await.unwrap().version, 1, "a dry run does nothing");
    // One machine is running: it moves when it is next switched on.
    let running = gateway.attach("desk-002".parse().unwrap(), by("10.0.0.2")).await.unwrap();
    let request = UpdateClones { canary: Some(1), promote: true, ..update(None) };
    let done = gateway.update_clones(request, false).await.unwrap();
    assert_eq!((done.state.as_str(), done.total), ("done", 4));
    assert_eq!((done.failed, done.later), (None, vec!["desk-002".to_owned()]));
    assert_eq!(done.updated, ["desk-001", "desk-003", "patched"]);
    for clone in ["desk-001", "desk-003"] {
        assert_eq!(first_bytes(&gateway, clone, 4096).await, b"news", "{clone}");
        assert_eq!(first_bytes(&gateway, clone, 8192).await, [0; 4], "{clone}: the old delta is gone");
    }
    assert_eq!(first_bytes(&gateway, "disk/home", 0).await, b"data", "data disks are not touched");
    running.detach(Detach::Lost);
    let again = gateway.attach("desk-002".parse().unwrap(), by("10.0.0.2")).await.unwrap();
    let kept = again.device().read(ByteRange::new(4096, 4100)).await.unwrap().concat();
    assert_eq!(kept, [0; 4], "who comes back after a lost connection finds its own disk");
    again.begin_write().unwrap();
    again.device().write(0, bytes::Bytes::from_static(b"mine"), Default::default()).await.unwrap();
    again.detach(Detach::Clean);
    until(&gateway, "desk-002", |clone| clone.version == 2).await;
    assert_eq!(first_bytes(&gateway, "desk-002", 4096).await, b"news", "switched off, it moves");
    let again = gateway.update_clones(update(None), false).await.unwrap();
    assert!(again.updated.is_empty() && again.later.is_empty(), "run again, there is nothing left to do");

    gateway.rollback_template("t").await.unwrap();
    gateway.update_clones(update(None), false).await.unwrap();
    assert_eq!(first_bytes(&gateway, "desk-003", 4096).await, [0; 4], "back on version 1");
    let report = gateway.fsck(false, Some(0), false).await.unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_never_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    gateway.create_clones(order("c", "t", None), false).await.unwrap();
    let small = vec![2; 4096];
    let input = Input::RawStream { reader: Box::new(Cursor::new(small)), size: Some(4096) };
    let request = ImportTemplate { name: "t".to_owned(), ..ImportTemplate::default() };
    gateway.import_template(request, input, Arc::new(NoProgress)).await.unwrap();
    let refused = gateway.update_clones(update(Some(2)), false).await.unwrap_err();
    assert_eq!((refused.code(), refused.object()), ("image-smaller", Some("c")));
    assert_eq!(gateway.show_clone("c").await.unwrap().version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_clean_goodbye_resets_and_only_what_is_ephemeral() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    let ephemeral = CreateClones { lifetime: Some(LifetimeView::Ephemeral), ..order("pool", "t", None) };
    gateway.create_clones(ephemeral, false).await.unwrap();
    gateway.create_clones(order("own", "t", None), false).await.unwrap();
    for clone in ["pool", "own"] {
        let machine = gateway.attach(clone.parse().unwrap(), by("10.0.0.1")).await.unwrap();
        machine.begin_write().unwrap();
        let written = bytes::Bytes::from_static(b"mine");
        machine.device().write(0, written, Default::default()).await.unwrap();
        machine.detach(Detach::Lost);
    }
    // Longer than the grace time: a lost connection is no power-off, however long it lasts.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(first_bytes(&gateway, "pool", 0).await, b"mine");
    gateway.hold_clone("pool", Some("evidence".to_owned())).await.unwrap();
    assert_eq!(gateway.power_clone("pool", PowerEvent::Off).await.unwrap().action, "kept");
    assert_eq!(gateway.reset_clone("pool", false).await.unwrap_err().code(), "held");
    assert_eq!(gateway.delete_clone("pool", false).await.unwrap_err().code(), "held");
    gateway.hold_clone("pool", None).await.unwrap();
    // A tool that has a look and says good-bye is no machine.
    gateway.attach("pool".parse().unwrap(), by("10.0.0.9")).await.unwrap().detach(Detach::Clean);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(first_bytes(&gateway, "pool", 0).await, b"mine");
    let machine = gateway.attach("pool".parse().unwrap(), by("10.0.0.1")).await.unwrap();
    machine.begin_write().unwrap();
    machine.device().write(512, bytes::Bytes::from_static(b"more"), Default::default()).await.unwrap();
    machine.detach(Detach::Clean);
    until(&gateway, "pool", |clone| clone.last_reset_ms.is_some()).await;
    assert_eq!(first_bytes(&gateway, "pool", 0).await, [1; 4], "switched off, it is its base again");
    assert_eq!(gateway.power_clone("own", PowerEvent::Off).await.unwrap().action, "kept");
    assert_eq!(first_bytes(&gateway, "own", 0).await, b"mine", "what is persistent stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_a_migration_and_a_look_are_no_power_off() {
    let dir = tempfile::tempdir().unwrap();
    // So long that a slow machine comes back within it.
    let within = Duration::from_secs(2);
    let gateway = gateway_with_grace(dir.path(), 1, within).await;
    import(&gateway, "t", 1, None).await;
    let ephemeral = CreateClones { lifetime: Some(LifetimeView::Ephemeral), ..order("pool", "t", None) };
    gateway.create_clones(ephemeral, false).await.unwrap();
    let attach = async |client: &str| gateway.attach("pool".parse().unwrap(), by(client)).await.unwrap();
    let grace = async || tokio::time::sleep(within * 3 / 2).await;
    let machine = attach("10.0.0.1").await;
    machine.begin_write().unwrap();
    machine.device().write(0, bytes::Bytes::from_static(b"mine"), Default::default()).await.unwrap();
    // A good-bye that the same machine follows within the grace time: iPXE hands over to the system.
    machine.detach(Detach::Clean);
    let machine = attach("10.0.0.1").await;
    grace().await;
    assert_eq!(first_bytes(&gateway, "pool", 0).await, b"mine", "it came back");
    // One of two connections of a machine ends.
    machine.begin_write().unwrap();
    attach("10.0.0.1").await.detach(Detach::Clean);
    grace().await;
    assert_eq!(first_bytes(&gateway, "pool", 0).await, b"mine", "it has another connection");
    // A migration: the target is there before the source says good-bye.
    let target = attach("10.0.0.2").await;
    machine.detach(Detach::Clean);
    target.begin_write().unwrap();
    grace().await;
    assert_eq!(first_bytes(&gateway, "pool", 0).await, b"mine", "it runs elsewhere");
    // A loss, and then somebody who looks at what is left, as nbdinfo and nbdcopy do.
    target.detach(Detach::Lost);
    attach("10.0.0.9").await.detach(Detach::Clean);
    grace().await;
    assert_eq!(first_bytes(&gateway, "pool", 0).await, b"mine", "who never wrote switches nothing off");
    assert_eq!(gateway.show_clone("pool").await.unwrap().last_reset_ms, None);
    // The machine itself comes back and ends.
    let machine = attach("10.0.0.2").await;
    machine.begin_write().unwrap();
    machine.device().write(512, bytes::Bytes::from_static(b"more"), Default::default()).await.unwrap();
    machine.detach(Detach::Clean);
    until(&gateway, "pool", |clone| clone.last_reset_ms.is_some()).await;
    assert_eq!(first_bytes(&gateway, "pool", 0).await, [1; 4], "switched off, it is its base again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_disk_belongs_to_one_clone_and_outlives_it() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    gateway.create_clones(order("c", "t", Some(2)), false).await.unwrap();
    let disk = |name: &str, delete_with_clone| CreateDisk {
        name: name.to_owned(),
        size: 1 << 20,
        clone: Some("c-001".to_owned()),
        delete_with_clone,
        ..CreateDisk::default()
    };
    gateway.create_disk(disk("kept", false), false).await.unwrap();
    gateway.create_disk(disk("gone", true), false).await.unwrap();
    assert_eq!(gateway.create_disk(disk("kept", false), false).await.unwrap_err().code(), "name-taken");
    let odd = CreateDisk { size: 1000, ..disk("odd", false) };
    assert_eq!(gateway.create_disk(odd, false).await.unwrap_err().code(), "bad-size");
    write(&gateway, "disk/kept", 0, b"mine").await;
    assert_eq!(gateway.attach_disk("kept", "c-002", false).await.unwrap_err().code(), "disk-attached");
    assert_eq!(gateway.delete_disk("kept", false).await.unwrap_err().code(), "referenced");
    gateway.reset_clone("c-001", false).await.unwrap();
    gateway.delete_clone("c-001", false).await.unwrap();
    assert_eq!(gateway.show_disk("gone").await.unwrap_err().code(), "unknown-disk");
    assert_eq!(gateway.show_disk("kept").await.unwrap().clone, None);
    gateway.attach_disk("kept", "c-002", false).await.unwrap();
    assert_eq!(first_bytes(&gateway, "disk/kept", 0).await, b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_finds_what_a_crash_has_left_and_repair_removes_it() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    gateway.create_clones(order("c", "t", None), false).await.unwrap();
    assert!(gateway.fsck(true, Some(0), false).await.unwrap().findings.is_empty());
    // A slot without a name, as a crash between the two puts of a create leaves it, and a pack that no index names.
    let store =
        Store::open(&StoreConfig::new(format!("file://{}/store", dir.path().display())), &Clock::system()).unwrap();
    let base = store.list_dirs(&keys::bases()).await.unwrap()[0].parse().unwrap();
    let slot = store.get(&keys::slot(base, 0)).await.unwrap();
    let mut record: clonegate_core::format::clone::CloneRecord =
        clonegate_core::format::envelope::decode(&slot).unwrap();
    record.id = Clock::system().id();
    record.slot = 5;
    store.put_new(&keys::slot(base, 5), clonegate_core::format::envelope::encode(&record).unwrap()).await.unwrap();
    store.put_new(&keys::pack(Clock::system().id()), bytes::Bytes::from_static(b"lost")).await.unwrap();
    assert!(gateway.fsck(true, None, false).await.unwrap().findings.is_empty(), "what is young is left alone");
    assert_eq!(gateway.fsck(false, Some(0), false).await.unwrap().findings.len(), 2);
    let repaired = gateway.fsck(true, Some(0), false).await.unwrap();
    assert!(repaired.findings.iter().all(|finding| finding.repaired), "{:?}", repaired.findings);
    assert!(gateway.fsck(false, Some(0), false).await.unwrap().findings.is_empty());
    assert_eq!(first_bytes(&gateway, "c", 0).await, [1; 4], "what is owned is untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn capacity_is_told_before_and_savings_after() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    gateway.create_clones(order("c", "t", Some(20)), false).await.unwrap();
    let query = CapacityQuery { template: "t".to_owned(), clones: 300, average: Some(1 << 19), staged_update: false };
    let view = gateway.capacity(query).await.unwrap();
    assert_eq!((view.bases, view.full_clones_bytes), (3, 300 << 20));
    assert_eq!(
        view.lines.iter().map(|l| l.case.as_str()).collect::<Vec<_>>(),
        ["minimum", "average (given)", "maximum"]
    );
    assert!(view.now.saved_percent > 90, "{:?}", view.now);
}
