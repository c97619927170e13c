//! The saved machines that this node holds, by id: snapshots of sandboxes, and templates.
//!
//! ```text
//!            begin             finish
//!   (none) --------> Making -----------> Ready ---- spoil ----+
//!      ^                |                  |                  v
//!      |                |  finish          |  remove        Failed (stays listed until it is removed)
//!      |                +------------------|----------------> |
//!      +------ remove ---------------------+------------------+
//! ```
//!
//! Invariant: what is Ready is whole on the disk. Both lists are bounded in number and in bytes: what is being made counts with all
//! that it may come to take, what was found damaged until it is dropped, and what was removed for as long as a machine maps
//! it. Removed while it is being made, it is listed until nothing of it is left.

mod shelf;

pub use shelf::Shelf;

use crate::host::snapshots::{Mapped, Saved, SnapshotKey, SnapshotStore, Unusable};
use crate::host::{HostError, Images};
use pinfold_domain::{
    Cause, Preparation, Reason, SnapshotId, SnapshotReport, SnapshotSizes, SnapshotState, TemplateId,
    TemplateReport,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// How much a node keeps.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub number: usize,
    pub bytes: u64,
}

pub struct Catalog {
    pub snapshots: Shelf<SnapshotId>,
    pub templates: Shelf<TemplateId>,
    /// machines that are being saved at once: each writes as fast as the disk takes it
    pub saving: Semaphore,
    fallbacks: AtomicU64,
}

/// What there is of one saved machine.
#[derive(Debug, Clone)]
pub enum Held {
    Making,
    Ready(Arc<Saved>),
    Failed(Cause),
}

/// Where a saved machine is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Snapshot(SnapshotId),
    Template(TemplateId),
}

impl Catalog {
    /// Looks at the disk; what is damaged there is listed as failed.
    pub fn open(
        snapshots: (SnapshotStore, Bounds),
        templates: (SnapshotStore, Bounds),
        at_once: usize,
    ) -> Result<Self, HostError> {
        Ok(Self {
            snapshots: Shelf::open("snapshot", snapshots)?,
            templates: Shelf::open("template", templates)?,
            saving: Semaphore::new(at_once),
            fallbacks: AtomicU64::new(0),
        })
    }

    pub fn key(&self) -> &SnapshotKey {
        self.snapshots.key()
    }

    /// Templates whose image or kernel was replaced while no agent ran are prepared anew. Returns how many there are.
    pub async fn outdate_templates(&self, images: &dyn Images) -> usize {
        let mut outdated = 0;
        for (id, held) in self.templates.list() {
            let Held::Ready(saved) = held else { continue };
            if let Some(why) = saved.outdated(images) {
                tracing::info!(template = %id, %why, "a template is outdated");
                self.outdate(id, &why).await;
                outdated += 1;
            }
        }
        outdated
    }

    /// What is made from this template would not be what a boot makes: its files go, and the scheduler asks for it again.
    pub async fn outdate(&self, template: TemplateId, why: &Unusable) {
        self.templates.outdate(template, Cause::new(Reason::SnapshotInvalid, why.to_string())).await;
    }

    /// Charges what a machine maps that an earlier agent has started, whether or not it is still listed.
    pub fn adopt(&self, origin: Origin, mapped: Mapped) -> Arc<Mapped> {
        match origin {
            Origin::Snapshot(_) => self.snapshots.adopt(mapped),
            Origin::Template(_) => self.templates.adopt(mapped),
        }
    }

    /// Counts a create from a template that had to boot; how many there were since the agent's start.
    pub fn note_fallback(&self) -> u64 {
        self.fallbacks.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn snapshot_reports(&self) -> Vec<SnapshotReport> {
        self.snapshots.list().into_iter().map(|(id, held)| snapshot_report(id, &held)).collect()
    }

    pub fn template_reports(&self) -> Vec<TemplateReport> {
        self.templates.list().into_iter().map(|(id, held)| template_report(id, &held)).collect()
    }

    /// Waits until something changes; returns what has changed since the last call.
    pub async fn next_changes(&self) -> (Vec<SnapshotReport>, Vec<TemplateReport>) {
        loop {
            let snapshots = self.snapshots.changes();
            let templates = self.templates.changes();
            if !snapshots.is_empty() || !templates.is_empty() {
                let snapshots = snapshots.iter().map(|(id, held)| snapshot_report(*id, held)).collect();
                let templates = templates.iter().map(|(id, held)| template_report(*id, held)).collect();
                return (snapshots, templates);
            }
            tokio::select! {
                () = self.snapshots.changed_again() => {}
                () = self.templates.changed_again() => {}
            }
        }
    }
}

fn parts(held: &Held) -> (Option<Cause>, SnapshotSizes) {
    match held {
        Held::Making => (None, SnapshotSizes::default()),
        Held::Ready(saved) => (None, saved.manifest.sizes),
        Held::Failed(cause) => (Some(cause.clone()), SnapshotSizes::default()),
    }
}

fn snapshot_report(snapshot_id: SnapshotId, held: &Held) -> SnapshotReport {
    let state = match held {
        Held::Making => SnapshotState::Creating,
        Held::Ready(_) => SnapshotState::Ready,
        Held::Failed(_) => SnapshotState::Failed,
    };
    let (cause, sizes) = parts(held);
    SnapshotReport { snapshot_id, state, cause, sizes }
}

fn template_report(template_id: TemplateId, held: &Held) -> TemplateReport {
    let preparation = match held {
        Held::Making => Preparation::Preparing,
        Held::Ready(_) => Preparation::Prepared,
        Held::Failed(_) => Preparation::Failed,
    };
    let (cause, sizes) = parts(held);
    TemplateReport { template_id, preparation, cause, sizes }
}

#[cfg(test)]
pub mod tests;
