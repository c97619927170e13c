//! Threads for work that blocks on the disk. All are made before the first call: a guest that is full of threads still
//! serves files.
//!
//! A file system in user space that the workload mounts and does not serve can hold up all of them; then files of this
//! guest wait, and nothing else does.

use crate::agent::limits;
use pinfold_domain::{Cause, Reason};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use tokio::sync::{Semaphore, oneshot};

type Job = Box<dyn FnOnce() + Send>;

pub struct Workers {
    jobs: SyncSender<Job>,
    /// as many permits as the queue has places, so that sending never blocks
    places: Arc<Semaphore>,
}

const STACK_BYTES: usize = 512 * 1024;

impl Workers {
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(limits::FILE_JOBS);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..limits::FILE_WORKERS {
            let queue = queue.clone();
            thread::Builder::new()
                .name(format!("file-{number}"))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&queue))?;
        }
        Ok(Self { jobs, places: Arc::new(Semaphore::new(limits::FILE_JOBS)) })
    }

    /// Runs `job` on a worker. It is finished even when the caller goes away; its result is then dropped there.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Cause> {
        let gone = || Cause::new(Reason::Internal, "the file work failed");
        let place = self.places.clone().acquire_owned().await.map_err(|_| gone())?;
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move || {
            let result = job();
            drop(place);
            drop(sender.send(result));
        });
        self.jobs.try_send(job).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())
    }
}

impl Workers {
    /// Runs `job` on a worker, or here when all places are taken. For the ends of things, which wait for nothing.
    pub fn later(&self, job: impl FnOnce() + Send + 'static) {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return job() };
        let job = Box::new(move || {
            job();
            drop(place);
        });
        // fails only when no worker is left, and the job is then dropped with what it owns
        drop(self.jobs.try_send(job));
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // a job that panics is reported as failed, by its sender's drop; the thread goes on
        drop(catch_unwind(AssertUnwindSafe(job)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_fails_alone() {
        let workers = Workers::start().unwrap();
        for _ in 0..2 * limits::FILE_WORKERS {
            let panicked = workers.run(|| panic!("on purpose")).await;
            assert_eq!(panicked.unwrap_err().reason, Reason::Internal);
        }
        assert_eq!(workers.run(|| 7).await.unwrap(), 7);
    }
}
