//! A volume is a byte array: over a fake base and a store in memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clonegate_core::format::clone::{CloneRecord, Durability, VolumeKind};
use clonegate_core::ids::{BaseId, CloneId, GatewayId, Name};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use object_store::memory::InMemory;
use tokio::runtime::Handle;

use super::{BaseProvider, BaseRead, Volume, VolumeSetup};
use crate::clock::Clock;
use crate::delta::{DeltaSettings, Engine};
use crate::device::{Device, Extent, Segments, Source, WriteOptions};
use crate::store::Store;

const SIZE: u64 = 300 * 4096 + 512;
const FUA: WriteOptions = WriteOptions { fua: true, expect: None };

/// A base whose bytes follow from their offset.
#[derive(Debug)]
struct FakeBase {
    id: BaseId,
    size: u64,
    /// Whether reads have to wait.
    slow: bool,
}

fn base_byte(id: BaseId, at: u64) -> u8 {
    (at / 512) as u8 ^ (at / 4096) as u8 ^ id.bytes()[0]
}

impl FakeBase {
    fn bytes(&self, range: ByteRange) -> Segments {
        let bytes: Vec<u8> = range.as_range().map(|at| base_byte(self.id, at)).collect();
        Segments::from_iter([Bytes::from(bytes)])
    }
}

impl BaseRead for FakeBase {
    fn id(&self) -> BaseId {
        self.id
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        (!self.slow).then(|| self.bytes(range))
    }
    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
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
struct Bases {
    slow: bool,
}

impl BaseProvider for Bases {
    fn base(&self, id: BaseId) -> BoxFuture<'_, Result<Arc<dyn BaseRead>>> {
        let base: Arc<dyn BaseRead> = Arc::new(FakeBase { id, size: 200 * 4096 + 512, slow: self.slow });
        Box::pin(async move { if id.bytes()[0] == 0 { Err(Error::not_found("no", "no")) } else { Ok(base) } })
    }
}

fn base_id(n: u8) -> BaseId {
    BaseId::from_bytes([n; 16])
}

fn original(base: Option<BaseId>) -> Vec<u8> {
    let of = |at| base.filter(|_| at < 200 * 4096 + 512).map_or(0, |id| base_byte(id, at));
    (0..SIZE).map(of).collect()
}

struct World {
    store: Store,
    clock: Clock,
    record: CloneRecord,
    settings: DeltaSettings,
}

impl World {
    fn new(durability: Durability) -> Self {
        let clock = Clock::simulated(7);
        let store = Store::new(Arc::new(InMemory::new()), "memory", &clock);
        let record = CloneRecord {
            id: CloneId::from_bytes([3; 16]),
            nonce: clock.nonce(),
            name: Name::new("clone-1").unwrap(),
            kind: VolumeKind::LinkedClone,
            size: SIZE,
            base: Some(base_id(1)),
            slot: 0,
            durability,
            created_ms: 1,
        };
        let settings = DeltaSettings { staleness: Duration::from_secs(1), ..DeltaSettings::default() };
        Self { store, clock, record, settings }
    }

    fn gateway(&self, n: u8) -> Arc<Engine> {
        let id = GatewayId::from_bytes([n; 16]);
        Engine::open(self.settings.clone(), id, self.clock.clone(), Handle::current()).unwrap()
    }

    async fn open(&self, engine: &Arc<Engine>) -> Arc<Volume> {
        let setup = VolumeSetup {
            store: self.store.clone(),
            record: self.record.clone(),
            bases: Arc::new(Bases { slow: true }),
            engine: Arc::clone(engine),
        };
        Volume::open(setup).await.unwrap()
    }
}

async fn all(volume: &Volume) -> Vec<u8> {
    volume.read(ByteRange::new(0, SIZE)).await.unwrap().concat()
}

fn fill(n: u8, length: usize) -> Bytes {
    Bytes::from(vec![n; length])
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_never_written_is_its_base_and_writes_nothing_to_the_store() {
    let world = World::new(Durability::Object);
    let volume = world.open(&world.gateway(1)).await;
    assert_eq!(all(&volume).await, original(Some(base_id(1))));
    volume.close().await.unwrap();
    assert!(world.store.list(&crate::store::keys::all()).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_flushed_write_is_there_after_the_gateway_is_gone() {
    for durability in [Durability::Object, Durability::Local] {
        let world = World::new(durability);
        let mut model = original(Some(base_id(1)));
        {
            let volume = world.open(&world.gateway(1)).await;
            for (n, (at, length)) in
                [(0, 4096), (5000, 100), (8190, 4), (100 * 4096, 65536), (SIZE - 512, 512), (SIZE - 5000, 4500)]
                    .into_iter()
                    .enumerate()
            {
                let n = n as u8 + 100;
                volume.write(at, fill(n, length), WriteOptions::default()).await.unwrap();
                model[at as usize..at as usize + length].fill(n);
                assert_eq!(all(&volume).await, model);
            }
            volume.write_zeroes(ByteRange::new(3000, 300_000), true, false).await.unwrap();
            model[3000..300_000].fill(0);
            assert_eq!(all(&volume).await, model);
            volume.flush().await.unwrap();
            assert_eq!(all(&volume).await, model);
        }
        let volume = world.open(&world.gateway(2)).await;
        assert_eq!(all(&volume).await, model);
        volume.write(0, fill(1, 512), FUA).await.unwrap();
        model[..512].fill(1);
        assert_eq!(all(&volume).await, model);
        assert_eq!(volume.status().epoch.map(|e| e.0), Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_taken_over_is_fenced_and_a_reader_follows() {
    let world = World::new(Durability::Object);
    let (a, b, c) = (world.gateway(1), world.gateway(2), world.gateway(3));
    let (first, second, reader) = (world.open(&a).await, world.open(&b).await, world.open(&c).await);
    first.write(0, fill(1, 4096), FUA).await.unwrap();
    second.write(4096, fill(2, 4096), FUA).await.unwrap();
    first.write(8192, fill(9, 4096), WriteOptions::default()).await.unwrap();
    assert_eq!(first.flush().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(first.write(0, fill(9, 512), FUA).await.unwrap_err().kind(), ErrorKind::Fenced);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut model = original(Some(base_id(1)));
    model[..4096].fill(1);
    model[4096..8192].fill(2);
    assert_eq!(all(&reader).await, model);
    assert_eq!(reader.version(), second.version());
    assert_eq!(all(&second).await, model);
}

#[tokio::test(start_paused = true)]
async fn reset_snapshot_restore_and_undo_do_what_they_say_also_after_a_restart() {
    let world = World::new(Durability::Object);
    let mut volume = world.open(&world.gateway(1)).await;
    let born = original(Some(base_id(1)));
    volume.write(100, fill(7, 9000), WriteOptions::default()).await.unwrap();
    let mut written = born.clone();
    written[100..9100].fill(7);
    volume.snapshot(Name::new("one").unwrap()).await.unwrap();
    let before = volume.version();
    volume.reset(None).await.unwrap();
    assert_ne!(volume.version().0, before.0);
    assert_eq!(all(&volume).await, born);
    volume.undo().await.unwrap();
    assert_eq!(all(&volume).await, written);
    assert_eq!(volume.undo().await.unwrap_err().code(), "nothing-to-undo");
    volume.reset(Some(base_id(2))).await.unwrap();
    assert_eq!(all(&volume).await, original(Some(base_id(2))));
    for restart in [false, true] {
        if restart {
            volume = world.open(&world.gateway(2)).await;
        }
        volume.restore(Name::new("one").unwrap()).await.unwrap();
        assert_eq!(all(&volume).await, written, "restart {restart}");
        volume.undo().await.unwrap();
        assert_eq!(all(&volume).await, original(Some(base_id(2))), "restart {restart}");
    }
    assert_eq!(volume.restore(Name::new("two").unwrap()).await.unwrap_err().code(), "unknown-snapshot");
    assert_eq!(volume.status().snapshots.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_expects_another_version_changes_nothing() {
    let world = World::new(Durability::Object);
    let volume = world.open(&world.gateway(1)).await;
    let (version, _) = volume.version();
    let expect = WriteOptions { fua: false, expect: Some(version) };
    volume.write(0, fill(1, 512), expect).await.unwrap();
    assert_eq!(volume.write(0, fill(2, 512), expect).await.unwrap_err().code(), "version-changed");
    assert_eq!(all(&volume).await[0], 1);
    assert_eq!(volume.write(SIZE, fill(2, 512), expect).await.unwrap_err().code(), "beyond-end");
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_volume_forgets() {
    let world = World::new(Durability::Ephemeral);
    {
        let volume = world.open(&world.gateway(1)).await;
        volume.write(0, fill(1, 512), FUA).await.unwrap();
        assert_eq!(all(&volume).await[0], 1);
        volume.close().await.unwrap();
    }
    let volume = world.open(&world.gateway(2)).await;
    volume.write(4096, fill(1, 512), FUA).await.unwrap();
    assert_eq!(all(&volume).await[..4096], original(Some(base_id(1)))[..4096]);
}
