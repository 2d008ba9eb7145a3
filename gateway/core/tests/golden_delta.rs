//! The stored bytes of claims, commit records, segments, checkpoints and journal entries are frozen: what one version wrote,
//! every later one reads.
//!
//! `CLONEGATE_UPDATE_GOLDEN=1` writes the files anew; that is right only for a new kind or version of a record.

mod golden;

use bytes::Bytes;
use clonegate_core::format::checkpoint::{
    BlockObject, CheckpointRecord, Kept, MapRun, decode_checkpoint, encode_checkpoint,
};
use clonegate_core::format::clone::DeletedRecord;
use clonegate_core::format::envelope;
use clonegate_core::format::frame::{self, BLOCK};
use clonegate_core::format::journal::{
    JournalEntryRecord, JournalOwnerRecord, JournalSegmentRecord, decode_entry, encode_entry,
};
use clonegate_core::format::log::{
    Change, CommitRecord, EpochRecord, Head, ObjectName, Position, Run, decode_head, encode_commit,
};
use clonegate_core::format::segment::{SegmentRecord, begin_segment, decode_segment};
use clonegate_core::ids::{BaseId, CloneId, Epoch, GatewayId, Nonce, Sequence};
use clonegate_core::units::BlockIndex;

use golden::check;

const CLONE: CloneId = CloneId::from_bytes([1; 16]);
const NONCE: Nonce = Nonce([2; 16]);

fn commit(what: Change) -> CommitRecord {
    CommitRecord {
        clone: CLONE,
        at: Position::new(3, 4),
        nonce: NONCE,
        base: Some(BaseId::from_bytes([5; 16])),
        change: 6,
        time_ms: 1_767_225_600_000,
        journal_mark: 7,
        settled: Sequence(2),
        what,
        extents: 0,
        blocks: 0,
        table_crc: 0,
    }
}

fn runs() -> Vec<Run> {
    vec![
        Run { start: BlockIndex(9), blocks: 1, data: Some(Bytes::from_static(&[0xab; BLOCK])) },
        Run { start: BlockIndex(1 << 20), blocks: 1 << 29, data: None },
    ]
}

#[test]
fn claims_and_commit_records() {
    let claim = EpochRecord {
        clone: CLONE,
        epoch: Epoch(3),
        nonce: NONCE,
        gateway: GatewayId::from_bytes([4; 16]),
        journal: Some(Nonce([5; 16])),
        claimed_ms: 6,
    };
    let golden = check("epoch-1", &envelope::encode(&claim).unwrap());
    assert_eq!(envelope::decode::<EpochRecord>(&golden).unwrap(), claim);

    let (object, extents, frames_at) = encode_commit(commit(Change::Data), &runs()).unwrap();
    let golden = check("commit-1-data", &object);
    let Head::Whole(head) = decode_head(&golden, golden.len() as u64).unwrap() else { panic!("it is whole") };
    assert_eq!((head.extents, head.frames_at), (extents, frames_at));
    assert_eq!(frame::take(&NONCE, 0, &golden[frames_at as usize..]).unwrap(), [0xab; BLOCK][..]);

    let name = "before".parse().unwrap();
    let every = [
        ("open", Change::Open { gateway: GatewayId::from_bytes([4; 16]), lost_tail: true, fresh: false }),
        ("snapshot", Change::Snapshot { name }),
        ("drop", Change::DropSnapshot { name: "before".parse().unwrap() }),
        ("restore", Change::Restore { name: "before".parse().unwrap(), undo_until_ms: 8 }),
        ("reset", Change::Reset { undo_until_ms: 8 }),
        ("undo", Change::Undo),
        ("unlink", Change::Unlink { objects: vec![ObjectName::Segment(Epoch(1), 2)] }),
        ("close", Change::Close),
        ("poison", Change::Poison { by: Epoch(9) }),
    ];
    for (name, what) in every {
        let (object, ..) = encode_commit(commit(what.clone()), &[]).unwrap();
        let golden = check(&format!("commit-1-{name}"), &object);
        let Head::Whole(head) = decode_head(&golden, golden.len() as u64).unwrap() else { panic!("it is whole") };
        assert_eq!(head.record.what, what);
    }
}

#[test]
fn segments_and_checkpoints() {
    let record = SegmentRecord { clone: CLONE, epoch: Epoch(3), number: 4, nonce: NONCE, blocks: 1 };
    let (mut object, at) = begin_segment(&record).unwrap();
    frame::put(&mut object, &NONCE, 0, &[7; BLOCK]);
    let golden = check("segment-1", &object);
    assert_eq!(decode_segment(&golden, golden.len() as u64).unwrap(), (record, at));

    let record = CheckpointRecord {
        clone: CLONE,
        at: Position::new(3, 4),
        nonce: NONCE,
        base: None,
        change: 5,
        changed_in: Epoch(3),
        modified_ms: 6,
        journal_mark: 7,
        lost_tail: true,
        kept: vec![Kept { name: None, at: Position::new(2, 1), base: None, time_ms: 8, until_ms: 9 }],
        objects: 0,
        objects_crc: 0,
        runs: 0,
        runs_crc: 0,
    };
    let objects = [
        BlockObject { name: ObjectName::Log(Position::new(3, 2)), nonce: NONCE, frames_at: 300, frames: 2 },
        BlockObject { name: ObjectName::Segment(Epoch(3), 4), nonce: NONCE, frames_at: 80, frames: 1 },
    ];
    let runs = [
        MapRun { start: BlockIndex(1), blocks: 1, place: Some((0, 1)) },
        MapRun { start: BlockIndex(5), blocks: 1000, place: None },
        MapRun { start: BlockIndex(1 << 33), blocks: 1, place: Some((1, 0)) },
    ];
    let golden = check("checkpoint-1", &encode_checkpoint(record.clone(), &objects, runs.iter().copied()).unwrap());
    let (got, got_objects, got_runs) = decode_checkpoint(&golden).unwrap();
    assert_eq!((got.kept, got_objects.as_slice(), got_runs.as_slice()), (record.kept, &objects[..], &runs[..]));
}

#[test]
fn tombstones() {
    let record = DeletedRecord { id: CLONE, nonce: NONCE, deleted_ms: 5, moved_to: None };
    let golden = check("clone-deleted-1", &envelope::encode(&record).unwrap());
    assert_eq!(envelope::decode::<DeletedRecord>(&golden).unwrap(), record);
}

#[test]
fn journal_records() {
    let owner = JournalOwnerRecord { journal: NONCE, owner: "file:///var/lib/clonegate".into() };
    let golden = check("journal-owner-1", &envelope::encode(&owner).unwrap());
    assert_eq!(envelope::decode::<JournalOwnerRecord>(&golden).unwrap(), owner);
    let head = JournalSegmentRecord { journal: NONCE, generation: 3 };
    let golden = check("journal-segment-1", &envelope::encode(&head).unwrap());
    assert_eq!(envelope::decode::<JournalSegmentRecord>(&golden).unwrap(), head);
    let record = JournalEntryRecord {
        generation: 3,
        synced: 4096,
        clone: CLONE,
        epoch: Epoch(3),
        number: 4,
        change: 5,
        time_ms: 6,
        extents: 0,
        blocks: 0,
        body_crc: 0,
    };
    let golden = check("journal-entry-1", &encode_entry(record, &runs()).unwrap());
    let entry = decode_entry(&Bytes::from(golden)).unwrap();
    assert_eq!((entry.record.number, entry.record.extents, entry.record.blocks), (4, 2, 1));
    assert_eq!(entry.runs[0].data.as_deref(), Some(&[0xab; BLOCK][..]));
}
