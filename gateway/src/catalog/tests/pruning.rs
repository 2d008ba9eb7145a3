//! States that were superseded long ago go, and nobody loses anything by it: not who remembers old numbers, not who stood still.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;

use super::*;
use crate::store::Operation;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is stored, stamped by a clock of its own.
#[derive(Debug)]
struct World {
    objects: InMemory,
    clock: Clock,
    written: Mutex<HashMap<Path, u64>>,
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { objects: InMemory::new(), clock: Clock::simulated(seed), written: Mutex::default() })
    }

    fn stamped(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let ms = self.written.lock().get(&meta.location).copied().unwrap_or(0);
        meta.last_modified = Default::default();
        meta.last_modified += Duration::from_millis(ms);
        meta
    }

    /// A gateway's catalog, and the door through which it goes.
    fn gateway(self: &Arc<Self>) -> (Arc<Catalog>, Arc<Door>) {
        self.gateway_with(self.clock.clone())
    }

    fn gateway_with(self: &Arc<Self>, clock: Clock) -> (Arc<Catalog>, Arc<Door>) {
        let door = Arc::new(Door::of(self));
        // Whoever stands still in the middle of a request goes on with it.
        let config = StoreConfig { request_timeout: 100 * DAY, ..StoreConfig::new("memory") };
        let home = Store::over(Arc::clone(&door) as Arc<dyn ObjectStore>, &config, &clock);
        (Arc::new(Catalog::new(home, clock)), door)
    }

    /// The numbers that are there of a template.
    async fn numbers(self: &Arc<Self>, name: &str) -> Vec<u64> {
        let (catalog, _) = self.gateway();
        let listed = catalog.home.list(&keys::catalog_prefix(TemplateEntry::NOUN)).await.unwrap();
        let mut numbers: Vec<u64> = listed
            .iter()
            .filter_map(|listed| numbers::parse(&listed.key))
            .filter_map(|(of, number)| (of.as_str() == name).then_some(number))
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

/// The way of one gateway to the store, on which it may stand still.
#[derive(Debug)]
struct Door {
    world: Arc<World>,
    /// The next put, or the next read, of a catalog record waits so many milliseconds.
    before_put: AtomicU64,
    before_get: AtomicU64,
    /// One step in so many, before a catalog request or after it, takes up to three days; 0: none.
    wild: AtomicU64,
}

impl Door {
    fn of(world: &Arc<World>) -> Self {
        Self {
            world: Arc::clone(world),
            before_put: AtomicU64::new(0),
            before_get: AtomicU64::new(0),
            wild: AtomicU64::new(0),
        }
    }

    fn stand_still(&self, what: &AtomicU64, time: Duration) {
        what.store(u64::try_from(time.as_millis()).unwrap(), Relaxed);
    }

    /// How long the next step of a request takes.
    fn draw(&self) -> Duration {
        let (clock, wild) = (&self.world.clock, self.wild.load(Relaxed));
        if wild > 0 && clock.random_u64().is_multiple_of(wild) { clock.jitter(3 * DAY) } else { Duration::ZERO }
    }

    async fn wait(&self, path: &Path, what: Option<&AtomicU64>) {
        if path.as_ref().starts_with("catalog/") {
            let told = what.map_or(0, |what| what.swap(0, Relaxed));
            self.world.clock.sleep(self.draw() + Duration::from_millis(told)).await;
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a door")
    }
}

#[async_trait]
impl ObjectStore for Door {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.wait(location, Some(&self.before_put)).await;
        let put = self.world.objects.put_opts(location, payload, options).await;
        if put.is_ok() {
            self.world.written.lock().insert(location.clone(), self.world.clock.now_ms());
        }
        self.wait(location, None).await;
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.world.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.wait(location, Some(&self.before_get)).await;
        let mut got = self.world.objects.get_opts(location, options).await?;
        got.meta = self.world.stamped(got.meta);
        self.wait(location, None).await;
        Ok(got)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.world.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (world, prefix) = (Arc::clone(&self.world), prefix.cloned());
        let (before, after) = (self.draw(), self.draw());
        futures::stream::once(async move {
            world.clock.sleep(before).await;
            let listed: Vec<_> = world.objects.list(prefix.as_ref()).collect().await;
            world.clock.sleep(after).await;
            listed.into_iter().map(|meta| meta.map(|meta| world.stamped(meta))).collect::<Vec<_>>()
        })
        .flat_map(futures::stream::iter)
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.world.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.world.objects.copy_opts(from, to, options).await
    }
}

/// Adds a word to what the template says.
async fn say(catalog: &Catalog, name: &Name, word: &str) -> Result<u64> {
    let add = |template: &mut TemplateEntry| {
        template.description.push_str(word);
        template.description.push(' ');
        Ok(())
    };
    catalog.change(name, add).await.map(|(named, ())| named.number)
}

async fn says(catalog: &Catalog, name: &Name) -> (u64, String) {
    let found = catalog.get::<TemplateEntry>(name).await.unwrap();
    (found.number, found.state.description)
}

#[tokio::test(start_paused = true)]
async fn of_a_thousand_changes_few_states_stay_and_everybody_finds_the_newest() {
    let world = World::new(1);
    let t = name("t");
    let ((writer, _), (three_days, _), (yesterday, _)) = (world.gateway(), world.gateway(), world.gateway());
    writer.create(&t, template("")).await.unwrap();
    for n in 2..=1001 {
        let pause = match n {
            601 => 2 * DAY,
            801 => DAY,
            _ => Duration::from_secs(60),
        };
        world.clock.sleep(pause).await;
        assert_eq!(say(&writer, &t, "").await.unwrap(), n);
        match n {
            300 => assert_eq!(says(&three_days, &t).await.0, 300),
            700 => assert_eq!(says(&yesterday, &t).await.0, 700),
            _ => {}
        }
    }
    assert_eq!(writer.prune().await.unwrap(), 598);
    let left: Vec<u64> = std::iter::once(1).chain(600..=1001).collect();
    assert_eq!(world.numbers("t").await, left, "what was superseded in the last two days");
    let (fresh, _) = world.gateway();
    for catalog in [&fresh, &three_days, &yesterday] {
        assert_eq!(says(catalog, &t).await.0, 1001);
        assert_eq!(catalog.list::<TemplateEntry>().await.unwrap()[0].number, 1001);
    }
    world.clock.sleep(3 * DAY).await;
    let (pruner, _) = world.gateway();
    assert_eq!(pruner.prune().await.unwrap(), 401);
    assert_eq!(world.numbers("t").await, [1, 1001]);
    for (at, catalog) in [fresh, three_days, yesterday, writer, pruner].iter().enumerate() {
        let n = 1001 + at as u64;
        assert_eq!(says(catalog, &t).await.0, n);
        assert_eq!(say(catalog, &t, "").await.unwrap(), n + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn changes_of_gateways_that_stand_still_between_prunings_are_kept_or_told() {
    let mut told = 0;
    for seed in 0..24 {
        let world = World::new(seed);
        let t = name("t");
        world.gateway().0.create(&t, template("")).await.unwrap();
        let pruner = tokio::spawn({
            let world = Arc::clone(&world);
            async move {
                let (catalog, _) = world.gateway();
                loop {
                    world.clock.sleep(world.clock.jitter(3 * HOUR)).await;
                    catalog.prune().await.unwrap();
                }
            }
        });
        let tasks: Vec<_> = (0..4)
            .map(|writer| {
                let world = Arc::clone(&world);
                let t = t.clone();
                tokio::spawn(async move {
                    let (catalog, door) = world.gateway();
                    door.wild.store(24, Relaxed);
                    let (mut done, mut told) = (Vec::new(), 0);
                    for n in 0..12 {
                        world.clock.sleep(world.clock.jitter(20 * HOUR)).await;
                        let word = format!("{writer}-{n}");
                        match say(&catalog, &t, &word).await {
                            Ok(_) => done.push(word),
                            Err(error) if error.code() == "catalog-stalled" => told += 1,
                            Err(error) => assert_eq!(error.code(), "catalog-unsteady", "{error}"),
                        }
                    }
                    (done, told)
                })
            })
            .collect();
        let mut done = Vec::new();
        for task in tasks {
            let (words, unknown) = task.await.unwrap();
            done.extend(words);
            told += unknown;
        }
        pruner.abort();
        let (number, text) = says(&world.gateway().0, &t).await;
        let words: HashSet<&str> = text.split_whitespace().collect();
        assert_eq!(words.len(), text.split_whitespace().count(), "seed {seed}: once each");
        assert_eq!(words.len() as u64, number - 1, "seed {seed}: a word with each number");
        for word in &done {
            assert!(words.contains(word.as_str()), "seed {seed}: {word} is lost");
        }
        world.clock.sleep(3 * DAY).await;
        world.gateway().0.prune().await.unwrap();
        assert_eq!(world.numbers("t").await, [1, number], "seed {seed}");
    }
    assert!(told > 0, "nobody stood still where it matters");
}

#[tokio::test(start_paused = true)]
async fn who_stood_still_while_others_went_on_is_told_that_nobody_knows() {
    let world = World::new(1);
    let t = name("t");
    let ((still, door), (other, _)) = (world.gateway(), world.gateway());
    still.create(&t, template("")).await.unwrap();
    door.stand_still(&door.before_put, 3 * DAY);
    let stalled = tokio::spawn({
        let (still, t) = (Arc::clone(&still), t.clone());
        async move { say(&still, &t, "late").await }
    });
    world.clock.sleep(HOUR).await;
    for word in ["a", "b", "c"] {
        say(&other, &t, word).await.unwrap();
    }
    world.clock.sleep(2 * DAY + HOUR).await;
    other.prune().await.unwrap();
    assert_eq!(world.numbers("t").await, [1, 4]);
    let error = stalled.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.code(), error.object()), (ErrorKind::Unavailable, "catalog-stalled", Some("t")));
    assert_eq!(world.numbers("t").await, [1, 2, 4], "it was put where 2 had been");
    for catalog in [&still, &other, &world.gateway().0] {
        assert_eq!(says(catalog, &t).await, (4, "a b c ".to_owned()));
    }
    world.clock.sleep(3 * DAY).await;
    other.prune().await.unwrap();
    assert_eq!(world.numbers("t").await, [1, 4]);
}

#[tokio::test(start_paused = true)]
async fn who_stood_still_and_was_not_overtaken_has_done_it() {
    let world = World::new(1);
    let (catalog, door) = world.gateway();
    catalog.create(&name("t"), template("")).await.unwrap();
    door.stand_still(&door.before_put, 3 * DAY);
    assert_eq!(say(&catalog, &name("t"), "late").await.unwrap(), 2);
    catalog.delete(&name("t"), |_: &TemplateEntry| Ok(())).await.unwrap();
    door.stand_still(&door.before_put, 3 * DAY);
    assert_eq!(catalog.create(&name("t"), template("again")).await.unwrap().number, 4);
    assert_eq!(says(&world.gateway().0, &name("t")).await, (4, "again".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_look_under_which_states_went_away_is_done_again() {
    let world = World::new(1);
    let t = name("t");
    let ((slow, door), (other, _)) = (world.gateway(), world.gateway());
    other.create(&t, template("")).await.unwrap();
    assert_eq!(says(&slow, &t).await.0, 1);
    for word in ["a", "b", "c"] {
        say(&other, &t, word).await.unwrap();
    }
    door.stand_still(&door.before_get, 3 * DAY);
    let look = tokio::spawn({
        let (slow, t) = (Arc::clone(&slow), t.clone());
        async move { says(&slow, &t).await }
    });
    world.clock.sleep(2 * DAY + HOUR).await;
    other.prune().await.unwrap();
    assert_eq!(world.numbers("t").await, [1, 4]);
    assert_eq!(look.await.unwrap(), (4, "a b c ".to_owned()), "2 is missing when it is read at last");
}

#[tokio::test(start_paused = true)]
async fn a_state_that_goes_away_between_the_list_and_its_read_is_found_by_its_successor() {
    let world = World::new(1);
    let t = name("t");
    let ((slow, door), (other, _)) = (world.gateway(), world.gateway());
    other.create(&t, template("")).await.unwrap();
    say(&other, &t, "a").await.unwrap();
    door.stand_still(&door.before_get, 3 * DAY);
    let list = tokio::spawn(async move { slow.list::<TemplateEntry>().await });
    world.clock.sleep(HOUR).await;
    say(&other, &t, "b").await.unwrap();
    world.clock.sleep(2 * DAY + HOUR).await;
    other.prune().await.unwrap();
    assert_eq!(world.numbers("t").await, [1, 3]);
    let listed = list.await.unwrap().unwrap();
    assert_eq!((listed.len(), listed[0].number), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_was_costs_one_request_and_of_many_who_look_one_lists() {
    let world = World::new(1);
    let (catalog, _) = world.gateway();
    let asked = |catalog: &Catalog| catalog.home.counts().requests();
    for _ in 0..2 {
        let before = asked(&catalog);
        assert!(catalog.find::<TemplateEntry>(&name("never")).await.unwrap().is_none());
        assert_eq!(asked(&catalog) - before, 1);
        world.clock.sleep(DAY).await;
    }
    assert_eq!(catalog.home.counts().of(Operation::List).requests, 0);
    for n in 0..16 {
        catalog.create(&name(&format!("t{n}")), template("")).await.unwrap();
    }
    let (fresh, _) = world.gateway();
    let names: Vec<Name> = (0..16).map(|n| name(&format!("t{n}"))).collect();
    let found = futures::future::join_all(names.iter().map(|name| fresh.find::<TemplateEntry>(name))).await;
    assert!(found.iter().all(|found| matches!(found, Ok(Some(_)))));
    assert_eq!(fresh.home.counts().of(Operation::List).requests, 1);
    let before = asked(&fresh);
    fresh.find::<TemplateEntry>(&names[3]).await.unwrap();
    assert_eq!(asked(&fresh) - before, 1, "what is remembered and has not changed");
}

#[tokio::test(start_paused = true)]
async fn a_name_made_again_long_after_its_deletion_gets_the_next_number_once() {
    let world = World::new(1);
    let t = name("t");
    let ((one, _), (two, _)) = (world.gateway(), world.gateway());
    one.create(&t, template("")).await.unwrap();
    for _ in 0..5 {
        say(&one, &t, "x").await.unwrap();
    }
    one.delete(&t, |_: &TemplateEntry| Ok(())).await.unwrap();
    assert!(two.find::<TemplateEntry>(&t).await.unwrap().is_none());
    world.clock.sleep(5 * DAY).await;
    one.prune().await.unwrap();
    assert_eq!(world.numbers("t").await, [1, 7]);
    let (fresh, _) = world.gateway();
    assert!(fresh.find::<TemplateEntry>(&t).await.unwrap().is_none());
    let made = futures::join!(
        one.create(&t, template("one")),
        two.create(&t, template("two")),
        fresh.create(&t, template("fresh")),
        async { world.gateway().0.create(&t, template("new")).await },
    );
    let made = [made.0, made.1, made.2, made.3];
    assert_eq!(made.iter().filter(|made| made.as_ref().is_ok_and(|made| made.number == 8)).count(), 1);
    assert_eq!(made.iter().filter(|made| made.as_ref().is_err_and(|e| e.code() == "name-taken")).count(), 3);
    assert_eq!(world.numbers("t").await, [1, 7, 8]);
}

#[tokio::test(start_paused = true)]
async fn states_that_are_too_many_for_one_list_are_taken_away_part_by_part() {
    let world = World::new(1);
    let (catalog, _) = world.gateway();
    for of in ["a", "b"] {
        catalog.create(&name(of), template("")).await.unwrap();
        for _ in 0..120 {
            say(&catalog, &name(of), "x").await.unwrap();
        }
    }
    world.clock.sleep(3 * DAY).await;
    assert_eq!(catalog.prune_noun(TemplateEntry::NOUN, world.clock.now_ms(), 10).await.unwrap(), 238);
    for of in ["a", "b"] {
        assert_eq!(world.numbers(of).await, [1, 121]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_takes_away_nothing_that_is_young() {
    let early = Clock::simulated(1);
    early.sleep(10 * DAY).await;
    let world = World::new(2);
    // One gateway is ten days ahead of the store; and a store is ten days ahead of another gateway.
    let (ahead, _) = world.gateway_with(early.clone());
    let (right, _) = world.gateway();
    right.create(&name("t"), template("")).await.unwrap();
    for _ in 0..3 {
        say(&right, &name("t"), "x").await.unwrap();
    }
    world.clock.sleep(DAY).await;
    assert_eq!(ahead.prune().await.unwrap(), 0);
    let world = Arc::new(World { objects: InMemory::new(), clock: early, written: Mutex::default() });
    let (behind, _) = world.gateway_with(Clock::simulated(3));
    behind.create(&name("t"), template("")).await.unwrap();
    for _ in 0..3 {
        say(&behind, &name("t"), "x").await.unwrap();
    }
    world.clock.sleep(9 * DAY).await;
    assert_eq!(behind.prune().await.unwrap(), 0);
    world.clock.sleep(5 * DAY).await;
    assert_eq!(behind.prune().await.unwrap(), 2, "only late");
}
