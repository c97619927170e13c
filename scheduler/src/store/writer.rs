//! The store's own thread: commits block on the disk, and nothing else may wait for that.

use super::{Store, StoreError};
use pinfold_engine::Change;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Commits that may wait. The driver waits for each before the next, so that one would do.
const QUEUE: usize = 4;

struct Commit {
    changes: Arc<[Change]>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// Hands commits to the thread. The thread ends, and closes the store, when this is dropped.
pub struct Writer {
    queue: mpsc::Sender<Commit>,
}

/// Resolves when the thread has closed its store.
pub type Closed = oneshot::Receiver<()>;

impl Writer {
    pub fn start(mut store: impl Store) -> std::io::Result<(Self, Closed)> {
        let (queue, mut commits) = mpsc::channel::<Commit>(QUEUE);
        let (closed_sender, closed) = oneshot::channel();
        std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            while let Some(commit) = commits.blocking_recv() {
                // whoever asked may be gone; the change is stored all the same
                let _ = commit.done.send(store.commit(&commit.changes));
            }
            drop(store);
            let _ = closed_sender.send(());
        })?;
        Ok((Self { queue }, closed))
    }

    /// Returns when `changes` are durable.
    pub async fn commit(&self, changes: Arc<[Change]>) -> Result<(), StoreError> {
        let (done, outcome) = oneshot::channel();
        self.queue.send(Commit { changes, done }).await.map_err(|_| StoreError::Gone)?;
        outcome.await.map_err(|_| StoreError::Gone)?
    }
}
