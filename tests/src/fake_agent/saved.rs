//! What the agent saves: it has no machines, so a pause is a phase and a snapshot an entry.

use super::OnSave;
use super::node::{Node, lock};
use pinfold_proto::api::v1 as api;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::session_request::Message;

/// As if the memory of a small sandbox had been written.
const SIZES: api::SnapshotSizes =
    api::SnapshotSizes { state_bytes: 4096, memory_bytes: 64 << 20, disk_bytes: 8 << 20 };

impl Node {
    pub fn heartbeat(&self) -> Message {
        let (sandboxes, snapshots, templates) = (self.statuses(), self.snapshots(), self.templates());
        Message::Heartbeat(wire::Heartbeat { sandboxes, snapshots, templates })
    }

    pub fn snapshots(&self) -> Vec<wire::SnapshotStatus> {
        lock(&self.snapshots).values().cloned().collect()
    }

    pub fn templates(&self) -> Vec<wire::TemplateStatus> {
        lock(&self.templates).values().cloned().collect()
    }

    pub fn pause(&self, pause: &wire::Pause) {
        self.order(
            &pause.sandbox_id,
            pause.order,
            [api::Phase::Running, api::Phase::Pausing, api::Phase::Paused],
        );
    }

    pub fn resume(&self, resume: &wire::Resume) {
        self.order(
            &resume.sandbox_id,
            resume.order,
            [api::Phase::Paused, api::Phase::Resuming, api::Phase::Running],
        );
    }

    /// Takes an order up once: from the first phase through the second to the third, or back.
    fn order(&self, sandbox_id: &str, order: u64, [from, passing, to]: [api::Phase; 3]) {
        {
            let mut sandboxes = lock(&self.sandboxes);
            let Some(status) = sandboxes.get_mut(sandbox_id) else { return };
            if status.order >= order || status.phase() != from {
                return;
            }
            status.order = order;
        }
        self.report(sandbox_id, passing, None);
        match &self.config.on_save {
            OnSave::Done => self.report(sandbox_id, to, None),
            OnSave::Begin => {}
            OnSave::Fail(cause) => self.report(sandbox_id, from, Some(cause.clone())),
        }
    }

    pub fn take_snapshot(&self, take: wire::TakeSnapshot) {
        use api::SnapshotState as S;
        let of = |state: S, cause| wire::SnapshotStatus {
            snapshot_id: take.snapshot_id.clone(),
            state: state.into(),
            cause,
            sizes: (state == S::Ready).then_some(SIZES),
        };
        let status = match &self.config.on_save {
            OnSave::Done => of(S::Ready, None),
            OnSave::Begin => of(S::Creating, None),
            OnSave::Fail(cause) => of(S::Failed, Some(cause.clone())),
        };
        let known = lock(&self.snapshots).entry(take.snapshot_id.clone()).or_insert(status).clone();
        let _ = self.say(Message::Snapshot(known));
    }

    pub fn drop_snapshot(&self, id: &str) {
        lock(&self.snapshots).remove(id);
    }

    pub fn prepare(&self, prepare: wire::PrepareTemplate) {
        use api::Preparation as P;
        let (preparation, cause) = match &self.config.on_save {
            OnSave::Done => (P::Prepared, None),
            OnSave::Begin => (P::Preparing, None),
            OnSave::Fail(cause) => (P::Failed, Some(cause.clone())),
        };
        let template_id = prepare.template_id;
        let preparation = preparation.into();
        let status =
            wire::TemplateStatus { template_id: template_id.clone(), preparation, cause, sizes: Some(SIZES) };
        lock(&self.templates).insert(template_id, status.clone());
        let _ = self.say(Message::Template(status));
    }

    pub fn drop_template(&self, id: &str) {
        lock(&self.templates).remove(id);
    }

    /// Counts an assignment that is a restore; false when it cannot be one and ought to be.
    pub fn can_begin(&self, assign: &wire::Assign) -> bool {
        let prepared = i32::from(api::Preparation::Prepared);
        if lock(&self.templates).get(&assign.template_id).is_some_and(|t| t.preparation == prepared) {
            self.stats.send_modify(|stats| stats.restored += 1);
        }
        let snapshot = assign.spec.as_ref().map(|spec| spec.snapshot_id.as_str()).unwrap_or_default();
        snapshot.is_empty() || lock(&self.snapshots).contains_key(snapshot)
    }
}
