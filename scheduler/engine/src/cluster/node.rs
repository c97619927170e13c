//! One node: what it said of itself, its session, and the room that is taken on it.

use super::reservation::Reservation;
use crate::event::{NodeRegistration, SessionId};
use pinfold_domain::{
    Cause, Node, NodeId, NodeState, Resources, SandboxId, SnapshotId, TemplateId, Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// How far a node is with a template, as far as is known; see the drawing in `pinfold_domain::template`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// it was told
    Asked,
    Preparing,
    Prepared,
    Failed,
    /// it was at work on it when the template was deleted, and lists it until nothing of that is left
    Dropping,
}

impl Stage {
    /// A machine may be up for it.
    pub fn is_at_work(self) -> bool {
        match self {
            Self::Asked | Self::Preparing | Self::Dropping => true,
            Self::Prepared | Self::Failed => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TemplateHere {
    pub stage: Stage,
    /// when it came to this stage
    pub since: Timestamp,
    pub cause: Option<Cause>,
    /// what the machine takes that is booted for it
    pub resources: Resources,
}

#[derive(Debug, Clone)]
pub(crate) struct NodeEntry {
    /// its public face; `reserved` and `sandboxes` are kept equal to the sums over `reservations`
    pub node: Node,
    pub session: Option<SessionId>,
    /// when the last session began
    pub session_since: Timestamp,
    /// false: known only from stored sandboxes, it has not registered since the restart
    pub registered: bool,
    pub reservations: BTreeMap<SandboxId, Reservation>,
    /// what was reserved when it registered: a node may come back smaller than what it holds
    pub reserved_at_join: Resources,
    /// those that lie here and are Ready
    pub snapshots: BTreeSet<SnapshotId>,
    /// what is known of the templates here; changed by [`Self::set_template`] only
    pub templates: BTreeMap<TemplateId, TemplateHere>,
    /// what the machines take that are booted here for templates: kept equal to the sum over `templates`
    pub preparing: Resources,
}

impl NodeEntry {
    /// A node that stored sandboxes name and that has not registered yet. Its silence counts from `now`.
    pub fn awaited(id: NodeId, now: Timestamp) -> Self {
        Self {
            node: Node {
                id,
                state: NodeState::Disconnected,
                allocatable: Resources::default(),
                reserved: Resources::default(),
                labels: BTreeMap::new(),
                zone: String::new(),
                images: BTreeSet::new(),
                kernels: BTreeSet::new(),
                version: String::new(),
                last_heartbeat: now,
                sandboxes: 0,
            },
            session: None,
            session_since: now,
            registered: false,
            reservations: BTreeMap::new(),
            reserved_at_join: Resources::default(),
            snapshots: BTreeSet::new(),
            templates: BTreeMap::new(),
            preparing: Resources::default(),
        }
    }

    /// Takes over what the node says of itself. Its list is not looked at here.
    pub fn register(&mut self, registration: NodeRegistration, now: Timestamp) {
        self.session = Some(registration.session);
        self.session_since = now;
        self.registered = true;
        self.reserved_at_join = self.node.reserved;
        self.node.state = NodeState::Ready;
        self.node.last_heartbeat = now;
        self.node.allocatable = registration.allocatable;
        self.node.labels = registration.labels;
        self.node.zone = registration.zone;
        self.node.images = registration.images;
        self.node.kernels = registration.kernels;
        self.node.version = registration.version;
    }

    /// What is neither reserved nor taken by the preparation of a template.
    pub fn free(&self) -> Resources {
        self.node.allocatable.saturating_sub(&self.taken())
    }

    /// By sandboxes and by the preparation of templates.
    pub fn taken(&self) -> Resources {
        let sum = self.node.reserved.checked_add(&self.preparing);
        sum.expect("a spec's bounds keep the sum of a node's machines far below u64::MAX")
    }

    /// Takes over what is known of a template here; true when the node has more room after it.
    pub fn set_template(&mut self, id: TemplateId, here: Option<TemplateHere>) -> bool {
        match here {
            Some(here) => drop(self.templates.insert(id, here)),
            None => drop(self.templates.remove(&id)),
        }
        let at_work = self.templates.values().filter(|here| here.stage.is_at_work());
        let sum = at_work.fold(Resources::default(), |sum, here| {
            sum.checked_add(&here.resources).expect("few templates, each within a spec's bounds")
        });
        let before = std::mem::replace(&mut self.preparing, sum);
        before.first_excess(&sum).is_some()
    }

    /// Adds a reservation. The caller has checked that it fits, or restores what was stored.
    pub fn reserve(&mut self, id: SandboxId, reservation: Reservation) {
        let sum = self.node.reserved.checked_add(&reservation.resources);
        self.node.reserved =
            sum.expect("a spec's bounds keep the sum of a node's sandboxes far below u64::MAX");
        let old = self.reservations.insert(id, reservation);
        debug_assert!(old.is_none(), "{id} reserved twice on {}", self.node.id);
        self.node.sandboxes = self.reservations.len() as u64;
    }

    /// Changes what the reservation of `id` takes. The caller has checked that it fits.
    pub fn resize(&mut self, id: SandboxId, resources: Resources) {
        let Some(reservation) = self.reservations.get_mut(&id) else { return };
        let others = self.node.reserved.saturating_sub(&reservation.resources);
        reservation.resources = resources;
        self.node.reserved = others
            .checked_add(&resources)
            .expect("a spec's bounds keep the sum of a node's sandboxes far below u64::MAX");
    }

    pub fn is_prepared(&self, template: TemplateId) -> bool {
        self.templates.get(&template).is_some_and(|here| here.stage == Stage::Prepared)
    }

    /// Removes the reservation of `id`; `None` when there was none.
    pub fn release(&mut self, id: SandboxId) -> Option<Reservation> {
        let reservation = self.reservations.remove(&id)?;
        self.node.reserved = self.node.reserved.saturating_sub(&reservation.resources);
        self.node.sandboxes = self.reservations.len() as u64;
        Some(reservation)
    }
}
