//! Looks into the volumes and images of one datastore, with or without a gateway: every object of a volume is owned, every block and chunk is
//! what was written.

use std::collections::{HashMap, HashSet};

use clonegate_core::format::base::{BaseData, BaseRecord};
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::format::envelope;
use clonegate_core::format::index::Index;
use clonegate_core::ids::{BaseId, CloneId, IndexId, PackId};
use clonegate_core::{Error, ErrorKind, Result};

use super::views::{Finding, FsckReport};
use crate::base::verify::verify_index;
use crate::delta::check::{self, Standing, check};
use crate::store::{Store, keys};

/// Times that a volume is looked at again when its owner may have changed it meanwhile.
const LOOKS: u32 = 3;

/// How far a check is, for people who watch it.
pub trait Watch: Send + Sync {
    /// Something new is looked at.
    fn now(&self, what: &str);
    /// So many objects, blocks or chunks more are done.
    fn step(&self, count: u64);
}

/// Watches nothing.
#[derive(Debug)]
pub struct NoWatch;

impl Watch for NoWatch {
    fn now(&self, _: &str) {}
    fn step(&self, _: u64) {}
}

/// A check of one datastore.
pub(super) struct Verifier<'a> {
    pub(super) store: &'a Store,
    /// What findings begin with.
    pub(super) name: &'a str,
    /// Read every block and chunk, and check its checksum.
    pub(super) deep: bool,
    pub(super) repair: bool,
    pub(super) grace_ms: u64,
    pub(super) watch: &'a dyn Watch,
    pub(super) report: &'a mut FsckReport,
}

/// Checks a datastore by itself: nothing is changed, and no gateway is needed. Names are not looked at, for they are in the home.
///
/// # Errors
/// What the store gives; what is wrong is in the report.
pub async fn check_datastore(store: &Store, name: &str, deep: bool, watch: &dyn Watch) -> Result<FsckReport> {
    let mut report = FsckReport::default();
    let grace_ms = u64::MAX;
    Verifier { store, name, deep, repair: false, grace_ms, watch, report: &mut report }.alone().await?;
    Ok(report)
}

impl Verifier<'_> {
    fn found(&mut self, object: impl ToString, what: impl Into<String>, repaired: bool) {
        let object = format!("{}/{}", self.name, object.to_string());
        self.report.findings.push(Finding { object, what: what.into(), repaired });
    }

    /// A damaged or missing object is a finding; a store that does not answer is an error.
    fn damaged(&mut self, object: impl ToString, error: &Error) -> Result<()> {
        match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NotFound | ErrorKind::Invalid => {
                self.found(object, format!("damaged: {}", error.message()), false);
                Ok(())
            }
            _ => Err(error.clone()),
        }
    }

    /// Looks into one volume; its owner may be at work.
    pub(super) async fn volume(&mut self, record: &CloneRecord) -> Result<()> {
        self.watch.now(&format!("volume {}", record.name));
        let mut looks = 0;
        let report = loop {
            looks += 1;
            match check(self.store, record, self.deep).await {
                // Something may have been collected while it was looked at; what is really wrong stays wrong.
                Ok(report) if report.is_sound() || looks >= LOOKS => break report,
                Err(error) if error.code() == "clone-deleted" => return Ok(()),
                Err(error) if looks >= LOOKS => return self.damaged(keys::clone_dir(record.id), &error),
                _ => {}
            }
        };
        self.report.objects += report.findings.len() as u64;
        self.report.grace += report.count(Standing::Grace) as u64;
        self.report.verified += report.blocks_verified;
        self.watch.step(report.findings.len() as u64 + report.blocks_verified);
        for finding in &report.findings {
            let what = match finding.standing {
                Standing::Owned | Standing::Grace => continue,
                Standing::Missing => "missing: ",
                Standing::Corrupt => "damaged: ",
                Standing::Orphan => "an orphan: ",
            };
            let what = format!("{what}{} (volume {})", finding.detail, record.name);
            let repaired = match finding.standing {
                Standing::Orphan => match self.orphan(&report, finding).await? {
                    Some(repaired) => repaired,
                    None => continue,
                },
                _ => false,
            };
            self.found(&finding.key, what, repaired);
        }
        Ok(())
    }

    /// Removes an orphan of a volume when that is safe; none when it is too young to be one.
    async fn orphan(&self, report: &check::Report, finding: &check::Finding) -> Result<Option<bool>> {
        let key = keys::foreign(&finding.key)?;
        let made_ms = match self.store.head(&key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            meta => meta?.modified_ms,
        };
        if self.grace_ms != u64::MAX && made_ms.saturating_add(self.grace_ms) > self.store.clock().now_ms() {
            return Ok(None);
        }
        if self.repair && report.may_go(finding) {
            self.store.delete(&key).await?;
            return Ok(Some(true));
        }
        Ok(Some(false))
    }

    /// Checks every chunk that these indexes name, each once.
    pub(super) async fn images(&mut self, indexes: &[Index]) -> Result<()> {
        let mut seen: HashSet<(PackId, u32)> = HashSet::new();
        for index in indexes {
            self.watch.now(&format!("image {}", index.record.id));
            let watch = self.watch;
            let verified = verify_index(self.store, index, &mut seen, &|count| watch.step(count)).await?;
            self.report.verified += verified.chunks;
            for bad in verified.bad {
                self.found(&bad.key, format!("damaged: {}", bad.what), false);
            }
        }
        Ok(())
    }

    /// Everything, from what the store says alone.
    async fn alone(&mut self) -> Result<()> {
        self.watch.now("bases");
        let (bases, mut records) = self.bases().await?;
        for id in self.store.list_dirs(&keys::clones()).await? {
            let Ok(id) = id.parse::<CloneId>() else {
                self.found(format!("clones/{id}"), "not a name of this program", false);
                continue;
            };
            self.report.clones += 1;
            let record = match records.remove(&id) {
                Some(record) => Some(record),
                None => self.record_of(id).await?,
            };
            match record {
                Some(record) => self.volume(&record).await?,
                None if self.store.head(&keys::deleted(id)).await.is_ok() => {}
                None => self.found(keys::clone_dir(id), "a volume that no slot and no record speaks of", false),
            }
        }
        // Clones that were never written have nothing but their slot.
        self.report.clones += records.len() as u64;
        let indexes = self.indexes(&bases).await?;
        if self.deep {
            self.images(&indexes).await?;
        }
        Ok(())
    }

    async fn record_of(&mut self, id: CloneId) -> Result<Option<CloneRecord>> {
        let key = keys::clone(id);
        match self.store.get(&key).await.and_then(|bytes| envelope::decode::<CloneRecord>(&bytes)) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => self.damaged(key, &error).map(|()| None),
        }
    }

    /// All bases, and the clones in their slots.
    async fn bases(&mut self) -> Result<(Vec<BaseRecord>, HashMap<CloneId, CloneRecord>)> {
        let (mut bases, mut clones) = (Vec::new(), HashMap::new());
        for id in self.store.list_dirs(&keys::bases()).await? {
            let Ok(id) = id.parse::<BaseId>() else {
                self.found(format!("bases/{id}"), "not a name of this program", false);
                continue;
            };
            self.report.objects += 1;
            let key = keys::base(id);
            match self.store.get(&key).await.and_then(|bytes| envelope::decode::<BaseRecord>(&bytes)) {
                Ok(record) if record.id == id => bases.push(record),
                Ok(_) => self.found(key, "damaged: the record of another base", false),
                Err(error) => self.damaged(key, &error)?,
            }
            let slots = keys::slots(id);
            for listed in self.store.list(&slots).await? {
                self.report.objects += 1;
                let key = slots.key(&listed.key)?;
                match self.store.get(&key).await.and_then(|bytes| envelope::decode::<CloneRecord>(&bytes)) {
                    Ok(record) => drop(clones.insert(record.id, record)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => self.damaged(key, &error)?,
                }
                self.watch.step(1);
            }
        }
        Ok((bases, clones))
    }

    /// All indexes that can be read. A pack or index that is named by nobody may be of an import under way, or of a template version
    /// without a base, so without the home it is no finding.
    async fn indexes(&mut self, bases: &[BaseRecord]) -> Result<Vec<Index>> {
        self.watch.now("images");
        let listed = self.store.list(&keys::packs()).await?;
        let packs: HashSet<PackId> = listed.iter().filter_map(|pack| pack.key.parse().ok()).collect();
        let (mut indexes, mut there) = (Vec::new(), HashSet::new());
        for listed in self.store.list(&keys::indexes()).await? {
            let Ok(id) = listed.key.parse::<IndexId>() else { continue };
            self.report.objects += 1;
            there.insert(id);
            match self.store.get(&keys::index(id)).await.and_then(|bytes| Index::decode(&bytes)) {
                Ok(index) => {
                    let missing = index.record.packs.iter().filter(|pack| !packs.contains(pack)).count();
                    if missing > 0 {
                        self.found(keys::index(id), format!("{missing} of its packs are missing"), false);
                    }
                    indexes.push(index);
                }
                Err(error) => self.damaged(keys::index(id), &error)?,
            }
        }
        self.report.objects += packs.len() as u64;
        for base in bases {
            if let BaseData::Packed { index } = &base.data
                && !there.contains(index)
            {
                self.found(keys::index(*index), format!("the index of base {} is missing", base.id), false);
            }
        }
        Ok(indexes)
    }
}
