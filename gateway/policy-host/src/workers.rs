//! Threads of their own for plugin calls, behind a bounded queue: a guest that spins never holds a thread of the runtime.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// How much these threads give way to those that serve.
const NICE: i32 = 5;

type Job = Box<dyn FnOnce() + Send>;

/// Why a job was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// The queue was full, or the job waited too long.
    Busy,
    /// The job panicked, or the threads have ended.
    Lost,
}

struct Queue {
    jobs: VecDeque<(Instant, Job)>,
    open: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    queue_max: usize,
    wait_max: Duration,
}

/// The threads; they end when this is dropped and the queue is empty.
pub(crate) struct Workers(Arc<Shared>);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("waiting", &self.0.queue.lock().jobs.len()).finish_non_exhaustive()
    }
}

impl Workers {
    pub(crate) fn start(threads: usize, queue_max: usize, wait_max: Duration) -> std::io::Result<Self> {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), open: true });
        let shared = Arc::new(Shared { queue, ready: Condvar::new(), queue_max, wait_max });
        for n in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("policy-{n}")).spawn(move || {
                // Of this thread alone (Linux): where cores are scarce, who reads and writes comes before who decides.
                let _ = rustix::process::nice(NICE);
                work(&shared);
            })?;
        }
        Ok(Self(shared))
    }

    /// Runs a job on one of the threads.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the job running to its end; its result is dropped.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Undone> {
        let (tell, told) = oneshot::channel();
        {
            let mut queue = self.0.queue.lock();
            if !queue.open {
                return Err(Undone::Lost);
            }
            if queue.jobs.len() >= self.0.queue_max {
                return Err(Undone::Busy);
            }
            let (asked, wait_max) = (Instant::now(), self.0.wait_max);
            queue.jobs.push_back((
                asked,
                Box::new(move || {
                    let done = if asked.elapsed() > wait_max { Err(Undone::Busy) } else { Ok(job()) };
                    let _ = tell.send(done);
                }),
            ));
        }
        self.0.ready.notify_one();
        told.await.unwrap_or(Err(Undone::Lost))
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock();
        let (_, job) = loop {
            match queue.jobs.pop_front() {
                Some(job) => break job,
                None if !queue.open => return,
                None => shared.ready.wait(&mut queue),
            }
        };
        drop(queue);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a policy decision panicked; the built-in rule answers");
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.0.queue.lock().open = false;
        self.0.ready.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_costs_one_job_and_a_full_queue_is_said() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let workers = Workers::start(1, 1, Duration::from_secs(60)).unwrap();
            assert_eq!(workers.run(|| -> u32 { panic!("a test panics here") }).await, Err(Undone::Lost));
            assert_eq!(workers.run(|| 7).await, Ok(7));
            let (hold, held) = std::sync::mpsc::channel::<()>();
            let (begun, begin) = oneshot::channel();
            let first = workers.run(move || {
                let _ = begun.send(());
                held.recv().ok();
                1
            });
            let second = async {
                begin.await.unwrap();
                let third = async {
                    tokio::task::yield_now().await;
                    let full = workers.run(|| 3).await;
                    hold.send(()).unwrap();
                    full
                };
                tokio::join!(workers.run(|| 2), third)
            };
            assert_eq!(tokio::join!(first, second), (Ok(1), (Ok(2), Err(Undone::Busy))));
        });
    }

    #[test]
    fn the_threads_give_way_and_the_caller_does_not() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            fields.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let workers = Workers::start(1, 1, Duration::from_secs(60)).unwrap();
        assert_eq!(runtime.block_on(workers.run(nice)), Ok((before + NICE).min(19)));
        assert_eq!(nice(), before);
    }
}
