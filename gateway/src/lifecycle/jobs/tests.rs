//! What jobs promise, with work that the tests control.

use clonegate_core::ids::Name;

use super::*;
use crate::delta::DeltaSettings;
use crate::lifecycle::advisor::BuiltIn;
use crate::lifecycle::context::{Request, within};
use crate::lifecycle::views::{JobStateView, ListJobs};
use crate::lifecycle::{DatastoreSettings, GatewaySettings};
use crate::store::StoreConfig;

/// Steps that the counting work did, over all gateways of a test.
static STEPS: Mutex<Vec<(String, u64)>> = Mutex::new(Vec::new());

/// Counts to what the specification says, a second for each step, and saves each.
fn count(gateway: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let to: u64 = run.spec()?;
        let from: u64 = run.cursor()?.unwrap_or(0);
        for step in from..to {
            gateway.clock.sleep(Duration::from_secs(1)).await;
            run.progress(step + 1, Some(to));
            STEPS.lock().push((format!("{}/{}", gateway.home.label(), run.id()), step));
            run.save(&(step + 1)).await?;
        }
        Ok(serde_json::json!({ "counted": to }))
    })
}

fn fail(_: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        if run.spec::<bool>()? {
            panic!("a bug");
        }
        Err(Error::conflict("referenced", "it is in use").on("x").hint("free it"))
    })
}

async fn gateway(dir: &std::path::Path, id: u8, host: &str) -> Arc<Gateway> {
    let clock = Clock::simulated(u64::from(id));
    let url = |part: &str| StoreConfig::new(format!("file://{}/{part}", dir.display()));
    let settings = GatewaySettings {
        home: url("home"),
        datastores: vec![DatastoreSettings::new(Name::new("local").unwrap(), url("store"))],
        sources: Vec::new(),
        gateway: clonegate_core::ids::GatewayId::from_bytes([id; 16]),
        host: host.to_owned(),
        icache_bytes: 1 << 20,
        delta: DeltaSettings { journal: None, ..DeltaSettings::default() },
        idle_close: Duration::from_secs(300),
        power_off_grace: Duration::from_secs(30),
        slots_per_base: 128,
    };
    let gateway = Gateway::start(settings, Arc::new(BuiltIn), clock).await.unwrap();
    gateway.jobs.works.lock().extend([("count", count as Work), ("fail", fail as Work)]);
    gateway
}

fn order<S>(kind: &'static str, subject: &str, spec: S) -> JobOrder<S> {
    JobOrder { kind, subject: subject.to_owned(), spec, unit: JobUnit::Steps, total: None }
}

async fn until(gateway: &Gateway, id: &str, wanted: impl Fn(&JobView) -> bool) -> JobView {
    for _ in 0..4000 {
        let job = gateway.show_job(id).await.unwrap();
        if wanted(&job) {
            return job;
        }
        gateway.clock.sleep(Duration::from_millis(100)).await;
    }
    panic!("it never came: {:?}", gateway.show_job(id).await.unwrap());
}

fn over(job: &JobView) -> bool {
    job.state.is_over()
}

fn steps_of(dir: &std::path::Path, id: &str) -> Vec<u64> {
    let id = format!("file://{}/home/{id}", dir.display());
    STEPS.lock().iter().filter(|(job, _)| *job == id).map(|(_, step)| *step).collect()
}

#[tokio::test(start_paused = true)]
async fn a_job_tells_how_far_it_is_and_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1, "one").await;
    let job = gateway.start_job(order("count", "desk", 5_u64)).await.unwrap();
    assert_eq!((job.state, job.by.as_str()), (JobStateView::Queued, "gateway"));
    let half = until(&gateway, &job.id, |job| job.done >= 2).await;
    assert_eq!((half.state, half.total, half.host.as_deref()), (JobStateView::Running, Some(5), Some("one")));
    let done = until(&gateway, &job.id, over).await;
    assert_eq!(
        (done.state, done.done, done.result),
        (JobStateView::Done, 5, Some(serde_json::json!({ "counted": 5 })))
    );
    assert_eq!(steps_of(dir.path(), &job.id), [0, 1, 2, 3, 4]);
    let listed = gateway.list_jobs(ListJobs::default()).await.unwrap();
    assert_eq!(listed.items.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), [job.id.as_str()]);
    let none = gateway.list_jobs(ListJobs { under_way: true, ..ListJobs::default() }).await.unwrap();
    assert!(none.items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_job_at_a_time_is_at_work_on_a_subject() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1, "one").await;
    let job = gateway.start_job(order("count", "desk", 3_u64)).await.unwrap();
    let refused = gateway.start_job(order("count", "desk", 4_u64)).await.unwrap_err();
    assert_eq!((refused.code(), refused.object()), ("job-running", Some("desk")));
    gateway.start_job(order("count", "other", 1_u64)).await.unwrap();
    until(&gateway, &job.id, over).await;
    gateway.start_job(order("count", "desk", 1_u64)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failure_keeps_its_code_and_a_bug_ends_the_job_alone() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1, "one").await;
    for (bug, code) in [(false, "referenced"), (true, "job-died")] {
        let job = gateway.start_job(order("fail", "desk", bug)).await.unwrap();
        let job = until(&gateway, &job.id, over).await;
        assert_eq!((job.state, job.error.unwrap().code.as_str()), (JobStateView::Failed, code));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_sent_again_finds_its_job_even_on_another_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (gateway(dir.path(), 1, "one").await, gateway(dir.path(), 2, "two").await);
    let mut ids = Vec::new();
    for gateway in [&one, &one, &two] {
        let request = Request::new("admin", Some("key-1".to_owned()));
        let job = within(request, gateway.start_job(order("count", "desk", 2_u64))).await.unwrap();
        assert_eq!(job.by, "admin");
        ids.push(job.id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    until(&two, &ids[0], over).await;
    assert_eq!(steps_of(dir.path(), &ids[0]), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_job_is_cancelled_from_any_gateway_and_stays_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (gateway(dir.path(), 1, "one").await, gateway(dir.path(), 2, "two").await);
    for canceller in [&one, &two] {
        let job = one.start_job(order("count", "desk", 1000_u64)).await.unwrap();
        until(&two, &job.id, |job| job.state == JobStateView::Running).await;
        let dry = canceller.cancel_job(&job.id, true).await.unwrap();
        assert!(dry.dry_run && dry.notes[0].contains("one"), "{dry:?}");
        canceller.cancel_job(&job.id, false).await.unwrap();
        let job = until(&two, &job.id, over).await;
        assert_eq!(job.state, JobStateView::Cancelled);
        assert!(steps_of(dir.path(), &job.id).len() < 100);
        let again = canceller.cancel_job(&job.id, false).await.unwrap();
        assert!(again.notes[0].contains("over already"), "{again:?}");
    }
    assert_eq!(one.cancel_job("j_00000000000000000000000000", false).await.unwrap_err().code(), "unknown-job");
}

#[tokio::test(start_paused = true)]
async fn another_gateway_goes_on_where_a_dead_one_stopped_and_no_earlier() {
    let dir = tempfile::tempdir().unwrap();
    // A gateway that dies without a word: its record stays as its last heartbeat left it.
    let two = gateway(dir.path(), 2, "two").await;
    let dead = Runner {
        gateway: clonegate_core::ids::GatewayId::from_bytes([1; 16]),
        run: Nonce([9; 16]),
        host: "one".to_owned(),
    };
    let id: JobId = two.clock.id();
    let mut record = JobRecord {
        id,
        nonce: two.clock.nonce(),
        written_ms: 1,
        kind: "count".to_owned(),
        subject: "desk".to_owned(),
        by: "admin".to_owned(),
        spec: "6".to_owned(),
        state: JobState::Running,
        done: 0,
        total: None,
        unit: JobUnit::Steps,
        note: String::new(),
        cursor: String::new(),
        runner: Some(dead.clone()),
        attempts: 1,
        cancel: false,
        created_ms: two.clock.now_ms(),
        started_ms: Some(1),
        ended_ms: None,
        error: None,
        result: String::new(),
    };
    assert!(matches!(two.jobs.book.put(1, &record).await.unwrap(), Put::Ours));
    // While its number moves it is alive, however old its clock says that it is.
    for number in 2..8 {
        two.clock.sleep(STALE / 2).await;
        record.cursor = "4".to_owned();
        record.nonce = two.clock.nonce();
        assert!(matches!(two.jobs.book.put(number, &record).await.unwrap(), Put::Ours), "taken over while alive");
    }
    let done = until(&two, &id.to_string(), over).await;
    assert_eq!((done.state, done.attempts), (JobStateView::Done, 2));
    assert_eq!(steps_of(dir.path(), &id.to_string()), [4, 5]);
    // The dead one comes back and finds its number taken.
    assert!(matches!(two.jobs.book.put(8, &record).await.unwrap(), Put::Theirs(_)));
}

#[tokio::test(start_paused = true)]
async fn of_two_gateways_that_go_on_with_one_job_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let one = gateway(dir.path(), 1, "one").await;
    let job = one.start_job(order("count", "desk", 40_u64)).await.unwrap();
    until(&one, &job.id, |job| job.done >= 3).await;
    // Its gateway stops in order: the job waits for whoever looks next.
    one.stop().await;
    drop(one);
    let (two, three) = (gateway(dir.path(), 2, "two").await, gateway(dir.path(), 3, "three").await);
    let done = until(&two, &job.id, over).await;
    assert_eq!((done.state, done.attempts), (JobStateView::Done, 2));
    let steps = steps_of(dir.path(), &job.id);
    assert_eq!(steps, (0..40).collect::<Vec<_>>(), "each step once");
    drop(three);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_are_long_over_go_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1, "one").await;
    let job = gateway.start_job(order("count", "desk", 1_u64)).await.unwrap();
    until(&gateway, &job.id, over).await;
    Arc::clone(&gateway).tend_jobs().await;
    let there = gateway.jobs.book.newest(job.id.parse().unwrap()).await.unwrap().unwrap();
    let old = JobRecord { ended_ms: Some(1), nonce: gateway.clock.nonce(), ..there.record };
    gateway.jobs.book.put(there.number + 1, &old).await.unwrap();
    // What a removal that was cut short leaves: everything but the first state.
    let cut = gateway.clock.id();
    gateway.jobs.book.put(2, &JobRecord { id: cut, ..old }).await.unwrap();
    assert_eq!(gateway.show_job(cut.to_string()).await.unwrap_err().code(), "unknown-job");
    Arc::clone(&gateway).tend_jobs().await;
    assert_eq!(gateway.show_job(&job.id).await.unwrap_err().code(), "unknown-job");
    assert!(gateway.home.list(&crate::store::keys::jobs()).await.unwrap().is_empty());
}
