//! Waits for a file to grow, by inotify: no polling.

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::path::Path;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Changes of the files of one directory.
#[derive(Debug)]
pub struct DirectoryWatch {
    events: pipe::Receiver,
}

impl DirectoryWatch {
    pub fn new(directory: &Path) -> Result<Self> {
        let context = || format!("cannot watch {}", directory.display());
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).with_context(context)?;
        let events = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&descriptor, directory, events).with_context(context)?;
        // to the runtime it is like a pipe: readable, read without blocking
        let events = pipe::Receiver::from_owned_fd_unchecked(descriptor).with_context(context)?;
        Ok(Self { events })
    }

    /// Waits until something in the directory changes. What changed since the last call counts.
    pub async fn changed(&mut self) -> Result<()> {
        let mut buffer = [0_u8; 4096];
        // which file it was does not matter: the caller looks
        self.events.read(&mut buffer).await.context("cannot read inotify")?;
        while self.events.try_read(&mut buffer).is_ok_and(|count| count > 0) {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[tokio::test]
    async fn a_write_wakes_the_waiter() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut watch = DirectoryWatch::new(directory.path()).unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(quiet.is_err());
        for _ in 0..2 {
            file.write_all(b"line\n").unwrap();
            tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
        }
    }
}
