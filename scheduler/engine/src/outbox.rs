//! What a step has decided so far. It becomes effects at the end of the step, so that a sandbox that changed three times
//! in a step is stored once, in its last state, and so that changes always come before what depends on them.

use crate::event::{CallId, Change, Effect, Rejection, SessionId};
use crate::timers::TimerKey;
use pinfold_domain::{Epoch, NodeId, Sandbox, SandboxId, Snapshot, SnapshotId, Template};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) enum Reply {
    /// the sandbox as it is at the end of the step
    Sandbox(SandboxId),
    /// a sandbox that is no longer kept
    Given(Box<Sandbox>),
    /// those of the forks that are still kept, as they are at the end of the step
    Forks {
        ids: Vec<SandboxId>,
        snapshot_id: SnapshotId,
    },
    /// the snapshot as it is at the end of the step; as it is given here if it is no longer kept
    Snapshot(Box<Snapshot>),
    Template(Box<Template>),
    Rejected(Rejection),
}

#[derive(Debug)]
pub(crate) enum Message {
    Answer { call: CallId, reply: Reply },
    Assign { node: NodeId, session: SessionId, id: SandboxId, epoch: Epoch },
    Ready(Effect),
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// sandboxes that changed, in the order of their first change
    pub touched: Vec<SandboxId>,
    pub touched_set: BTreeSet<SandboxId>,
    /// sandboxes that were removed, in their last state
    pub removed: BTreeMap<SandboxId, Box<Sandbox>>,
    /// changes that have no revision
    pub records: Vec<Change>,
    /// snapshots that changed or were removed
    pub snapshots: BTreeSet<SnapshotId>,
    pub messages: Vec<Message>,
    /// whose time has to be set anew
    pub retime: BTreeSet<TimerKey>,
}

impl Outbox {
    pub fn touch(&mut self, id: SandboxId) {
        if self.touched_set.insert(id) {
            self.touched.push(id);
        }
    }

    pub fn remove(&mut self, sandbox: Box<Sandbox>) {
        self.touched_set.remove(&sandbox.id);
        self.removed.insert(sandbox.id, sandbox);
    }

    pub fn answer(&mut self, call: CallId, reply: Reply) {
        self.messages.push(Message::Answer { call, reply });
    }

    pub fn send(&mut self, effect: Effect) {
        self.messages.push(Message::Ready(effect));
    }
}
