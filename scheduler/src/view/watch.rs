//! Following the changes.
//!
//! A watcher has no queue of its own: it holds the revision that it has reached and reads on from the shared ring. One
//! that is too slow finds that the ring has moved past it and is told so; it costs nobody any memory.

use super::{View, not_found};
use pinfold_domain::{Cause, Reason, Revision, Sandbox, SandboxId};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch as signal;

/// Changes that are taken out of the ring at a time.
const BATCH: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    pub sandbox: Arc<Sandbox>,
    pub deleted: bool,
    /// resume from here; 0 within the present state: half of it is not enough to resume from
    pub revision: Revision,
}

/// Why a watch is over.
pub type WatchEnd = Cause;

#[derive(Debug, Clone, Copy, Default)]
pub struct WatchFilter {
    /// only this one
    pub sandbox: Option<SandboxId>,
}

impl WatchFilter {
    fn matches(&self, sandbox: &Sandbox) -> bool {
        self.sandbox.is_none_or(|id| id == sandbox.id)
    }
}

/// One follower of the changes.
pub struct Watcher {
    view: Arc<View>,
    filter: WatchFilter,
    /// every change up to here was handed out, or did not match
    reached: Revision,
    pending: VecDeque<WatchEvent>,
    newest: signal::Receiver<Revision>,
}

impl Watcher {
    /// From revision 0: the present state, then changes. Else: the changes after `from`.
    pub fn new(view: Arc<View>, filter: WatchFilter, from: Revision) -> Result<Self, WatchEnd> {
        let newest = view.newest.subscribe();
        let mut watcher = Self { view, filter, reached: from, pending: VecDeque::new(), newest };
        if from == Revision(0) {
            watcher.take_present_state()?;
        } else {
            watcher.check_resumable()?;
        }
        Ok(watcher)
    }

    fn take_present_state(&mut self) -> Result<(), WatchEnd> {
        let state = self.view.read();
        let matching = state.sandboxes.values().filter(|sandbox| self.filter.matches(sandbox));
        let events = matching.map(|sandbox| WatchEvent {
            sandbox: Arc::clone(sandbox),
            deleted: false,
            revision: Revision(0),
        });
        self.pending = events.collect();
        self.reached = state.revision;
        match (self.pending.back_mut(), self.filter.sandbox) {
            (Some(last), _) => last.revision = state.revision,
            (None, Some(id)) => return Err(not_found(id)),
            (None, None) => {}
        }
        Ok(())
    }

    fn check_resumable(&self) -> Result<(), WatchEnd> {
        let state = self.view.read();
        if self.reached > state.revision {
            let message = format!("from_revision is {}, the newest is {}", self.reached, state.revision);
            return Err(Cause::new(Reason::InvalidArgument, message));
        }
        if self.reached < state.ring.compacted() {
            let message = format!(
                "from_revision is {}, changes up to {} are no longer kept: list, then watch from the list's revision",
                self.reached,
                state.ring.compacted()
            );
            return Err(Cause::new(Reason::RevisionCompacted, message));
        }
        Ok(())
    }

    /// The next change, when there is one. Cancel safe.
    pub async fn next(&mut self) -> Result<WatchEvent, WatchEnd> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            if self.fill()? {
                continue;
            }
            let reached = self.reached;
            if self.newest.wait_for(|newest| *newest > reached).await.is_err() {
                return Err(Cause::new(Reason::StoreUnavailable, "the scheduler is shutting down"));
            }
        }
    }

    /// Reads on from the ring; false when there is nothing new.
    fn fill(&mut self) -> Result<bool, WatchEnd> {
        let state = self.view.read();
        let Some(entries) = state.ring.after(self.reached, BATCH) else {
            let message = format!(
                "this watch fell behind: it has reached revision {}, changes up to {} are no longer kept; list, then \
                 watch from the list's revision",
                self.reached,
                state.ring.compacted()
            );
            return Err(Cause::new(Reason::RevisionCompacted, message));
        };
        let Some(last) = entries.last() else { return Ok(false) };
        self.reached = last.revision();
        let matching = entries.into_iter().filter(|entry| self.filter.matches(&entry.sandbox));
        self.pending.extend(matching.map(|entry| WatchEvent {
            revision: entry.revision(),
            deleted: entry.deleted,
            sandbox: entry.sandbox,
        }));
        Ok(true)
    }
}
