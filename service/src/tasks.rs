//! Named tasks. The only place that spawns: every task has a name and a rule for its end.
//!
//! ```text
//!   essential   ends, fails or panics   -> shutdown, its error is what `finish` returns
//!   background  ends                    -> nothing; a panic is logged
//! ```
//!
//! Invariant: after [`Tasks::finish`] no task of this set runs, or it has been named in the log and left behind after
//! the time limit.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A set of tasks under one shutdown token. Clones share the set.
#[derive(Debug, Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    next_id: AtomicU64,
    /// id -> name of the tasks that run
    running: Mutex<BTreeMap<u64, &'static str>>,
    /// of the first essential task that failed
    failure: Mutex<Option<anyhow::Error>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new(CancellationToken::new())
    }
}

impl Tasks {
    pub fn new(shutdown: CancellationToken) -> Self {
        let inner = Inner {
            tracker: TaskTracker::new(),
            shutdown,
            next_id: AtomicU64::new(0),
            running: Mutex::new(BTreeMap::new()),
            failure: Mutex::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Cancelled when the process is to end.
    pub fn shutdown(&self) -> CancellationToken {
        self.inner.shutdown.clone()
    }

    /// A task without which the daemon is of no use: however it ends, the daemon shuts down.
    pub fn essential(
        &self,
        name: &'static str,
        future: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let guard = self.enter(name, true);
        let inner = Arc::clone(&self.inner);
        let future = async move {
            let mut guard = guard;
            let outcome = future.await;
            guard.ended = true;
            if let Err(error) = outcome {
                inner.fail(error.context(format!("the task {name} failed")));
            }
        };
        let _handle = self.start(future);
    }

    /// A task whose end is its own business.
    pub fn background<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let guard = self.enter(name, false);
        self.start(async move {
            let mut guard = guard;
            let value = future.await;
            guard.ended = true;
            value
        })
    }

    /// Names of the tasks that run now, in the order of their start.
    pub fn running(&self) -> Vec<&'static str> {
        lock(&self.inner.running).values().copied().collect()
    }

    /// Cancels the token, waits at most `limit` for all tasks. Returns the error of the first essential task that
    /// failed, or an error that names the tasks that did not end.
    pub async fn finish(&self, limit: Duration) -> anyhow::Result<()> {
        self.inner.shutdown.cancel();
        self.inner.tracker.close();
        let ended = tokio::time::timeout(limit, self.inner.tracker.wait()).await.is_ok();
        if let Some(error) = lock(&self.inner.failure).take() {
            return Err(error);
        }
        if !ended {
            anyhow::bail!("tasks did not end within {} ms: {}", limit.as_millis(), self.running().join(", "));
        }
        Ok(())
    }

    /// The signal watcher outlives all others and is not waited for.
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub(crate) fn signals(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(future));
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    fn start<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        tokio::spawn(self.inner.tracker.track_future(future))
    }

    fn enter(&self, name: &'static str, essential: bool) -> Guard {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.inner.running).insert(id, name);
        Guard { inner: Arc::clone(&self.inner), id, name, essential, ended: false }
    }
}

impl Inner {
    fn fail(&self, error: anyhow::Error) {
        tracing::error!(error = format!("{error:#}"), "an essential task failed");
        lock(&self.failure).get_or_insert(error);
    }
}

/// Applies the task's rule when its future is gone: ended, panicked or aborted.
struct Guard {
    inner: Arc<Inner>,
    id: u64,
    name: &'static str,
    essential: bool,
    ended: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.inner.running).remove(&self.id);
        if !self.ended && std::thread::panicking() {
            if self.essential {
                self.inner.fail(anyhow::anyhow!("the task {} panicked", self.name));
            } else {
                tracing::error!(task = self.name, "a task panicked");
            }
        }
        if self.essential && !self.inner.shutdown.is_cancelled() {
            tracing::error!(task = self.name, "an essential task is gone: shutting down");
            self.inner.shutdown.cancel();
        }
    }
}

/// A panic elsewhere leaves these maps whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn the_end_of_an_essential_task_shuts_down() {
        let tasks = Tasks::default();
        tasks.essential("driver", async { Ok(()) });
        tokio::time::timeout(LIMIT, tasks.shutdown().cancelled()).await.unwrap();
        tasks.finish(LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn the_first_failure_is_what_finish_returns() {
        let tasks = Tasks::default();
        tasks.essential("store", async { anyhow::bail!("disk is gone") });
        tasks.shutdown().cancelled().await;
        let error = tasks.finish(LIMIT).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "the task store failed: disk is gone");
    }

    #[tokio::test]
    async fn a_panic_of_an_essential_task_shuts_down_and_is_named() {
        let tasks = Tasks::default();
        tasks.essential("driver", async { panic!("on purpose") });
        tasks.shutdown().cancelled().await;
        let error = tasks.finish(LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "the task driver panicked");
    }

    #[tokio::test]
    async fn a_background_task_may_end_or_panic() {
        let tasks = Tasks::default();
        assert_eq!(tasks.background("one", async { 7 }).await.unwrap(), 7);
        assert!(tasks.background("two", async { panic!("on purpose") }).await.is_err());
        assert!(!tasks.shutdown().is_cancelled());
        tasks.finish(LIMIT).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_named() {
        let tasks = Tasks::default();
        tasks.background("stubborn", std::future::pending::<()>());
        let error = tasks.finish(Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.to_string(), "tasks did not end within 20 ms: stubborn");
    }

    #[tokio::test]
    async fn a_clean_shutdown_of_an_essential_task_is_no_failure() {
        let tasks = Tasks::default();
        let shutdown = tasks.shutdown();
        tasks.essential("server", async move {
            shutdown.cancelled().await;
            Ok(())
        });
        assert_eq!(tasks.running(), ["server"]);
        tasks.finish(LIMIT).await.unwrap();
        assert!(tasks.running().is_empty());
    }
}
