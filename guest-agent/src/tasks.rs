//! The only caller of `tokio::spawn`: a task has a name, and one that panics says so on the console.
//!
//! This crate is one static binary that depends on none of the daemons' crates, so it has this page of its own.

use crate::console;
use std::future::Future;
use tokio::task::JoinHandle;

/// Runs `task` beside its caller; it ends by itself. A panic ends that task only: the guest goes on.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<Option<T>> {
    #[allow(clippy::disallowed_methods, reason = "this is the one place")]
    tokio::spawn(async move {
        #[allow(clippy::disallowed_methods, reason = "this is the one place")]
        match tokio::spawn(task).await {
            Ok(value) => Some(value),
            Err(error) => {
                console::say(format_args!("bug: the task {name} ended: {error}"));
                None
            }
        }
    })
}
