//! The stored bytes of jobs, of the audit log, of tombstones and of the record that lets a base go are frozen.
//!
//! `CLONEGATE_UPDATE_GOLDEN=1` writes the files anew; that is right only for a new kind or version of a record.

mod golden;

use clonegate_core::ErrorKind;
use clonegate_core::format::audit::{AuditEntry, AuditRecord};
use clonegate_core::format::clone::DeletedRecord;
use clonegate_core::format::envelope::{self, Record};
use clonegate_core::format::job::{JobError, JobRecord, JobState, JobUnit, Runner};
use clonegate_core::format::log::{Change, CommitRecord, Position, encode_commit};
use clonegate_core::ids::{CloneId, GatewayId, JobId, Nonce, Sequence};

use golden::check;

fn check_record<T: Record + PartialEq + std::fmt::Debug>(name: &str, record: &T) {
    let golden = check(name, &envelope::encode(record).unwrap());
    assert_eq!(envelope::decode::<T>(&golden).unwrap(), *record);
}

#[test]
fn a_job() {
    check_record(
        "job-1",
        &JobRecord {
            id: JobId::from_bytes([1; 16]),
            nonce: Nonce([2; 16]),
            written_ms: 1_767_225_600_000,
            kind: "move".into(),
            subject: "desk-007".into(),
            by: "admin".into(),
            spec: "{}".into(),
            state: JobState::Failed,
            done: 3,
            total: Some(4),
            unit: JobUnit::Bytes,
            note: "copying".into(),
            cursor: "5".into(),
            runner: Some(Runner { gateway: GatewayId::from_bytes([6; 16]), run: Nonce([7; 16]), host: "h".into() }),
            attempts: 8,
            cancel: true,
            created_ms: 9,
            started_ms: Some(10),
            ended_ms: None,
            error: Some(JobError {
                kind: ErrorKind::Exhausted,
                code: "no-place".into(),
                message: "it is full".into(),
                object: Some("desk-007".into()),
                hint: None,
            }),
            result: "null".into(),
        },
    );
}

#[test]
fn the_audit_log() {
    check_record(
        "audit-1",
        &AuditRecord {
            gateway: GatewayId::from_bytes([1; 16]),
            nonce: Nonce([2; 16]),
            written_ms: 3,
            entries: vec![AuditEntry {
                at_ms: 4,
                by: "admin".into(),
                action: "clone reset".into(),
                object: "desk-007".into(),
                outcome: "ok".into(),
                reason: "power-off of an ephemeral clone".into(),
                policy: "default".into(),
            }],
        },
    );
}

#[test]
fn a_tombstone() {
    let moved_to = Some("big".parse().unwrap());
    let record = DeletedRecord { id: CloneId::from_bytes([1; 16]), nonce: Nonce([2; 16]), deleted_ms: 3, moved_to };
    check_record("clone-deleted-1-moved", &record);
}

#[test]
fn the_record_that_lets_a_base_go() {
    let record = CommitRecord {
        clone: CloneId::from_bytes([1; 16]),
        at: Position::new(2, 3),
        nonce: Nonce([4; 16]),
        base: None,
        change: 5,
        time_ms: 6,
        journal_mark: 7,
        settled: Sequence(3),
        what: Change::Promote,
        extents: 0,
        blocks: 0,
        table_crc: 0,
    };
    check("commit-1-promote", &encode_commit(record, &[]).unwrap().0);
}
