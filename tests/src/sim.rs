//! Volumes in a simulation: gateways in one process, each behind faults of its own, over one store in memory, in time that
//! stands still unless everybody waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::{DeltaSettings, Engine};
use clonegate::device::{Device, Extent, Segments, Source};
use clonegate::store::{Store, keys};
use clonegate::volume::{BaseProvider, BaseRead, Volume, VolumeSetup};
use clonegate_core::format::clone::{CloneRecord, Durability, VolumeKind};
use clonegate_core::format::envelope;
use clonegate_core::format::log::EpochRecord;
use clonegate_core::ids::{BaseId, CloneId, Epoch, GatewayId, Name};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::faults::{FaultStore, Faults};

/// A runtime of one thread whose time is simulated.
///
/// # Panics
/// When the system has no resources for it.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime of one thread")
}

/// The id of base `n` (from 1) of the simulation.
pub const fn base_id(n: u8) -> BaseId {
    BaseId::from_bytes([n; 16])
}

/// The byte of a base at an offset.
#[expect(clippy::cast_possible_truncation, reason = "any byte will do, as long as it follows from the offset")]
pub const fn base_byte(n: u8, at: u64) -> u8 {
    ((at / 512) as u8).wrapping_mul(31) ^ ((at / 4096) as u8) ^ n
}

/// A base whose bytes follow from their offsets; some reads of it have to wait.
#[derive(Debug)]
pub struct SimBase {
    n: u8,
    size: u64,
}

impl SimBase {
    fn bytes(&self, range: ByteRange) -> Segments {
        let bytes: Vec<u8> = range.as_range().map(|at| base_byte(self.n, at)).collect();
        Segments::from_iter([Bytes::from(bytes)])
    }
}

impl BaseRead for SimBase {
    fn id(&self) -> BaseId {
        base_id(self.n)
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        (range.start() / 4096).is_multiple_of(2).then(|| self.bytes(range))
    }
    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(range.start() / 4096 % 7)).await;
            Ok(self.bytes(range))
        })
    }
    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(async move { Ok(vec![Extent { range, source: Source::Base }]) })
    }
    fn prefetch(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[derive(Debug)]
struct SimBases {
    size: u64,
}

impl BaseProvider for SimBases {
    fn base(&self, id: BaseId) -> BoxFuture<'_, Result<Arc<dyn BaseRead>>> {
        let n = id.bytes()[0];
        let base: Arc<dyn BaseRead> = Arc::new(SimBase { n, size: self.size });
        Box::pin(async move { if n == 0 { Err(Error::not_found("unknown-base", "no such base")) } else { Ok(base) } })
    }
}

/// One clone on one store in memory.
#[derive(Debug)]
pub struct World {
    /// What is stored, without faults.
    pub objects: Arc<InMemory>,
    /// Time and randomness.
    pub clock: Clock,
    /// The clone.
    pub record: CloneRecord,
    /// What gateways are opened with.
    pub settings: DeltaSettings,
    /// Size of the bases.
    pub base_size: u64,
}

/// One gateway of the simulation.
#[derive(Debug)]
pub struct SimGateway {
    /// What goes wrong between it and the store.
    pub faults: Arc<Faults>,
    /// The store as it sees it.
    pub store: Store,
    /// What its volumes share.
    pub engine: Arc<Engine>,
}

impl World {
    /// A clone of `size` bytes. Checkpoints, folds and collections come early.
    ///
    /// # Panics
    /// Never: the name is valid.
    pub fn new(seed: u64, durability: Durability, size: u64) -> Self {
        let clock = Clock::simulated(seed);
        let record = CloneRecord {
            id: CloneId::from_bytes([3; 16]),
            nonce: clock.nonce(),
            name: Name::new("clone-1").expect("a valid name"),
            kind: VolumeKind::LinkedClone,
            size,
            base: Some(base_id(1)),
            slot: 0,
            durability,
            created_ms: 1,
        };
        let settings = DeltaSettings {
            checkpoint_records: 8,
            checkpoint_bytes: 256 * 1024,
            small_objects_per_volume: (4, 4),
            grace: Duration::ZERO,
            staleness: Duration::from_secs(1),
            dirty_bytes: 4 << 20,
            dirty_bytes_per_volume: 1 << 20,
            cache_bytes: 16 << 20,
            undo_window: Duration::from_secs(3600),
            ..DeltaSettings::default()
        };
        Self { objects: Arc::new(InMemory::new()), clock, record, settings, base_size: size / 3 * 2 / 512 * 512 }
    }

    /// The store without faults.
    pub fn store(&self) -> Store {
        Store::new(Arc::<InMemory>::clone(&self.objects), "memory", &self.clock)
    }

    /// A gateway behind `faults`, with a journal in `journal` when there is one.
    ///
    /// # Errors
    /// What opening the journal gives.
    pub fn gateway(&self, n: u8, faults: &Arc<Faults>, journal: Option<&std::path::Path>) -> Result<SimGateway> {
        let objects: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&self.objects);
        let faulty = Arc::new(FaultStore::new(objects, Arc::clone(faults)));
        self.gateway_on(n, faulty, faults, journal)
    }

    /// A gateway on an object store that leads to that of the world.
    ///
    /// # Errors
    /// What opening the journal gives.
    pub fn gateway_on(
        &self,
        n: u8,
        objects: Arc<dyn ObjectStore>,
        faults: &Arc<Faults>,
        journal: Option<&std::path::Path>,
    ) -> Result<SimGateway> {
        let store = Store::new(objects, "faulty", &self.clock);
        let mut settings = self.settings.clone();
        settings.journal = journal.map(std::path::Path::to_owned);
        settings.journal_file_bytes = 256 * 1024;
        settings.journal_inline = true;
        let engine = Engine::open(settings, GatewayId::from_bytes([n; 16]), self.clock.clone(), Handle::current())?;
        Ok(SimGateway { faults: Arc::clone(faults), store, engine })
    }

    /// Opens the clone on a gateway.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub async fn open(&self, gateway: &SimGateway) -> Result<Arc<Volume>> {
        self.open_record(gateway, self.record.clone()).await
    }

    /// Opens clone number `n`, a sibling of the clone.
    ///
    /// # Errors
    /// As [`Volume::open`].
    ///
    /// # Panics
    /// Never: the name is valid.
    pub async fn open_sibling(&self, gateway: &SimGateway, n: u8) -> Result<Arc<Volume>> {
        let name = Name::new(format!("clone-{n}")).expect("a valid name");
        let record =
            CloneRecord { id: CloneId::from_bytes([100 + n; 16]), name, slot: n.into(), ..self.record.clone() };
        self.open_record(gateway, record).await
    }

    async fn open_record(&self, gateway: &SimGateway, record: CloneRecord) -> Result<Arc<Volume>> {
        Volume::open(VolumeSetup {
            store: gateway.store.clone(),
            record,
            bases: Arc::new(SimBases { size: self.base_size }),
            engine: Arc::clone(&gateway.engine),
        })
        .await
    }

    /// The bytes of a clone of base `n` that was never written.
    pub fn born(&self, n: u8) -> Vec<u8> {
        (0..self.record.size).map(|at| if at < self.base_size { base_byte(n, at) } else { 0 }).collect()
    }
}

/// As another gateway that claims the clone's epoch and dies before it opens it.
///
/// # Panics
/// Never: the store has no faults.
pub async fn claim_in_passing(world: &World, epoch: u64) {
    let record = EpochRecord {
        clone: world.record.id,
        epoch: Epoch(epoch),
        nonce: world.clock.nonce(),
        gateway: GatewayId::from_bytes([9; 16]),
        journal: None,
        claimed_ms: world.clock.now_ms(),
    };
    let body = envelope::encode(&record).expect("a record of a few bytes");
    world.store().put_new(&keys::epoch(world.record.id, record.epoch), body).await.expect("a store without faults");
}

/// All bytes of a volume.
///
/// # Errors
/// What reading gives.
pub async fn read_all(volume: &Volume) -> Result<Vec<u8>> {
    Ok(volume.read(ByteRange::new(0, volume.info().size)).await?.concat())
}
