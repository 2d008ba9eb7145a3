//! The stored bytes of slots and of the catalog are frozen: what one version wrote, every later one reads.
//!
//! `CLONEGATE_UPDATE_GOLDEN=1` writes the files anew; that is right only for a new kind or version of a record.

mod golden;

use clonegate_core::advice::{Label, Lifetime};
use clonegate_core::format::base::BaseData;
use clonegate_core::format::catalog::{
    Assignment, CatalogRecord, CloneEntry, DatastoreEntry, DiskEntry, Entry, IdentityDefaultEntry, IdentityEntry,
    MovedFrom, Noun as _, PoolEntry, ResetRules, RolloutEntry, RolloutState, TemplateEntry, TemplateVersion,
    VersionState,
};
use clonegate_core::format::clone::{CloneRecord, Durability, VolumeKind};
use clonegate_core::format::envelope;
use clonegate_core::format::identity::{IdentityRecord, Sealed};
use clonegate_core::ids::{BaseId, CloneId, GatewayId, IdentityId, IndexId, Nonce};

use golden::check;

fn volume(kind: VolumeKind, base: Option<BaseId>) -> CloneRecord {
    CloneRecord {
        id: CloneId::from_bytes([4; 16]),
        nonce: Nonce([5; 16]),
        name: "desk-007".parse().unwrap(),
        kind,
        size: 1 << 30,
        base,
        slot: 7,
        durability: Durability::Local,
        created_ms: 1_767_225_600_000,
    }
}

#[test]
fn a_slot() {
    let record = volume(VolumeKind::LinkedClone, Some(BaseId::from_bytes([1; 16])));
    let golden = check("clone-1", &envelope::encode(&record).unwrap());
    assert_eq!(envelope::decode::<CloneRecord>(&golden).unwrap(), record);
}

#[test]
fn catalog_entries() {
    let labels = vec![Label { key: "tier".into(), value: "nvme".into() }];
    let datastore = DatastoreEntry {
        url: "s3://vdi/fast".into(),
        endpoint: Some("http://127.0.0.1:9000".into()),
        region: None,
        path_style: true,
        exclusive: false,
        capacity: Some(2 << 40),
        thin: true,
        maintenance: false,
        reserve: 1 << 30,
        overcommit_percent: 400,
        labels: labels.clone(),
        created_ms: 1,
    };
    let template = TemplateEntry {
        description: "golden".into(),
        versions: vec![TemplateVersion {
            number: 1,
            state: VersionState::Sealed,
            size: 1 << 30,
            data: BaseData::Packed { index: IndexId::from_bytes([3; 16]) },
            slots: 128,
            datastore: "fast".parse().unwrap(),
            parent: None,
            origin: "win11.qcow2".into(),
            stored_bytes: 2,
            used_bytes: 3,
            created_ms: 4,
            findings: Vec::new(),
        }],
        published: Some(1),
        history: Vec::new(),
        next_version: 2,
        keep_versions: Some(3),
        created_ms: 4,
    };
    let clone = CloneEntry {
        record: volume(VolumeKind::LinkedClone, Some(BaseId::from_bytes([1; 16]))),
        datastore: "fast".parse().unwrap(),
        template: "win11".parse().unwrap(),
        version: 1,
        lifetime: Lifetime::Ephemeral,
        pool: None,
        labels,
        hold: Some("evidence".into()),
        hold_until_ms: Some(7),
        reset: ResetRules { every_ms: Some(86_400_000), at_bytes: None },
        last_reset_ms: Some(6),
        pending_version: Some(2),
        moved_from: Some(MovedFrom { template: "win11".parse().unwrap(), version: 3, at_ms: 8 }),
        left_running: true,
        assigned: None,
        identity: None,
    };
    let disk = DiskEntry {
        record: volume(VolumeKind::DataDisk, None),
        datastore: "fast".parse().unwrap(),
        attached_to: Some("desk-007".parse().unwrap()),
        delete_with_clone: false,
        archived_ms: None,
    };
    let pool = PoolEntry {
        template: "win11".parse().unwrap(),
        version: None,
        pattern: "desk-{nnn}".into(),
        size: 300,
        max: 400,
        spares: 5,
        assignment: Assignment::Floating,
        durability: Durability::Local,
        lifetime: Lifetime::Ephemeral,
        reset: ResetRules { every_ms: None, at_bytes: Some(1 << 30) },
        labels: Vec::new(),
        maintenance: false,
        created_ms: 10,
    };
    let rollout = RolloutEntry {
        run: Nonce([6; 16]),
        gateway: GatewayId::from_bytes([7; 16]),
        state: RolloutState::AwaitsPromotion,
        version: 2,
        clones: vec!["desk-007".parse().unwrap()],
        pool: Some("desks".parse().unwrap()),
        canary: 1,
        max_unavailable: 16,
        at_next_power_on: false,
        promoted: false,
        total: 2,
        moved: 1,
        later: 0,
        failed: Some("desk-008: it is held".into()),
        started_ms: 11,
        changed_ms: 12,
    };
    let identified = CloneEntry {
        identity: Some(IdentityEntry { generation: 2, record: IdentityId::from_bytes([6; 16]) }),
        ..clone.clone()
    };
    let default = IdentityDefaultEntry { record: IdentityId::from_bytes([6; 16]) };
    let archived = DiskEntry { attached_to: None, archived_ms: Some(8), ..disk.clone() }.into_entry();
    assert_eq!(DiskEntry::from_entry(archived.clone()).unwrap().archived_ms, Some(8));
    let Entry::ArchivedDisk(disk_of_archive, at) = archived else { panic!("{archived:?}") };
    // What is stored beside the disk is not in it.
    let archived = Entry::ArchivedDisk(DiskEntry { archived_ms: None, ..disk_of_archive }, at);
    for (name, entry) in [
        ("catalog-1-deleted", Entry::Deleted),
        ("catalog-1-datastore", Entry::Datastore(datastore)),
        ("catalog-1-template", Entry::Template(template)),
        ("catalog-1-clone", Entry::Clone(clone)),
        ("catalog-1-disk", Entry::Disk(disk)),
        ("catalog-1-pool", Entry::Pool(pool)),
        ("catalog-1-rollout", Entry::Rollout(rollout)),
        ("catalog-1-clone-identity", Entry::Clone(identified)),
        ("catalog-1-identity-default", Entry::IdentityDefault(default)),
        ("catalog-1-disk-archived", archived),
    ] {
        let record = CatalogRecord { nonce: Nonce([2; 16]), written_ms: 9, entry };
        let golden = check(name, &envelope::encode(&record).unwrap());
        assert_eq!(envelope::decode::<CatalogRecord>(&golden).unwrap(), record, "{name}");
    }
}

#[test]
fn identities() {
    let plain = IdentityRecord { owner: "clone c_x".into(), written_ms: 1, sealed: None, body: b"{}".to_vec() };
    let sealed = IdentityRecord { sealed: Some(Sealed { key: [1; 8], nonce: [2; 12] }), ..plain.clone() };
    for (name, record) in [("identity-1-plain", plain), ("identity-1-sealed", sealed)] {
        let golden = check(name, &envelope::encode(&record).unwrap());
        assert_eq!(envelope::decode::<IdentityRecord>(&golden).unwrap(), record, "{name}");
    }
}
