//! What must hold beyond the engine's own invariants: seen from outside, over the whole fleet and over time.

use super::client::Clients;
use super::driver::Driver;
use super::node::SimNode;
use pinfold_domain::{Epoch, Milestone, Phase, Reason, Sandbox, SandboxId, SnapshotState, Source, Timestamp};
use pinfold_engine::EngineConfig;
use std::collections::{BTreeMap, BTreeSet};

/// What happened that may be the reason of an end.
#[derive(Debug, Default)]
pub struct Ledger {
    /// each epoch was given to one node only
    homes: BTreeMap<(SandboxId, Epoch), usize>,
    /// was on a node when the node lost its records
    pub wiped: BTreeSet<SandboxId>,
    /// reasons of all ends, for the summary
    pub ends: BTreeMap<SandboxId, Reason>,
    /// how often each phase was stored, for the summary
    pub phases: BTreeMap<Phase, u64>,
}

impl Ledger {
    /// An assignment leaves the scheduler.
    pub fn assigned(&mut self, driver: &Driver, node: usize, sandbox: &Sandbox) -> Result<(), String> {
        let stored = driver.store.sandboxes.get(&sandbox.id).map(|stored| stored.epoch);
        if stored.is_none_or(|epoch| epoch < sandbox.epoch) && !driver.store.removed.contains_key(&sandbox.id)
        {
            return Err(format!("epoch {} of {} left before it was stored", sandbox.epoch, sandbox.id));
        }
        let home = *self.homes.entry((sandbox.id, sandbox.epoch)).or_insert(node);
        if home != node {
            return Err(format!("epoch {} of {} was given to two nodes", sandbox.epoch, sandbox.id));
        }
        Ok(())
    }

    /// A sandbox was stored: if it ends, is the reason true?
    pub fn stored(
        &mut self,
        sandbox: &Sandbox,
        clients: &Clients,
        config: &EngineConfig,
        silent: bool,
    ) -> Result<(), String> {
        *self.phases.entry(sandbox.phase).or_insert(0) += 1;
        if !sandbox.phase.is_final() && sandbox.phase != Phase::Stopping {
            return Ok(());
        }
        let reason = sandbox.cause.as_ref().map(|cause| cause.reason).ok_or("an end without a cause")?;
        let client = clients.of(sandbox.id);
        let placed = sandbox.timeline.iter().find(|t| t.milestone == Milestone::Placed).map(|t| t.at);
        let is_true = match reason {
            // the answer to the create may still be on its way: nobody else can know the id
            Reason::StopRequested => {
                client.is_some_and(|client| client.asked_to_stop)
                    || clients.stopped_forks.contains(&sandbox.id)
            }
            // it was to start from a snapshot that failed or was lost before it had a node, or was refused for it
            Reason::SnapshotFailed | Reason::SnapshotUnusable => {
                matches!(sandbox.spec.source, Source::Snapshot(_)) && sandbox.phase == Phase::Failed
            }
            Reason::DeleteRequested => client.is_some_and(|client| client.asked_to_delete),
            Reason::TtlExpired => sandbox.expires_at.is_some_and(|at| at <= sandbox.phase_at),
            Reason::StartTimeout => {
                let limit = sandbox.spec.start_timeout;
                placed.is_some_and(|placed| sandbox.phase_at.since(placed) >= limit)
            }
            Reason::NodeRefused => {
                let for_room = sandbox.refused_for_room;
                sandbox.epoch.0 - for_room >= config.assignment_attempts || for_room > config.room_refusals
            }
            Reason::NodeForgot => self.wiped.contains(&sandbox.id),
            Reason::NodeLost => silent,
            Reason::JailFailed => sandbox.phase == Phase::Failed,
            Reason::GuestPowerOff => sandbox.phase == Phase::Stopped,
            _ => false,
        };
        if !is_true {
            return Err(format!("{} is {} for {reason:?}, which is not true", sandbox.id, sandbox.phase));
        }
        if sandbox.phase.is_final() {
            self.ends.insert(sandbox.id, reason);
        }
        Ok(())
    }
}

/// One live instance per sandbox and epoch, no node beyond its room.
pub fn instances<'a>(nodes: impl Iterator<Item = &'a SimNode>) -> Result<(), String> {
    let mut live = BTreeSet::new();
    for node in nodes {
        if let Some(dimension) = node.used().first_excess(&node.allocatable) {
            return Err(format!("node {} is beyond its {}", node.id, dimension.name()));
        }
        for instance in node.live() {
            if !live.insert(instance) {
                return Err(format!("{instance:?} lives twice"));
            }
        }
    }
    Ok(())
}

/// What the engine says of a sandbox that runs or is paused is what its node says. No message on its way changes that: from
/// one to the other leads an order, which the engine knows first.
pub fn agreement<'a>(
    sandboxes: impl Iterator<Item = &'a Sandbox>,
    nodes: impl Iterator<Item = &'a SimNode>,
) -> Result<(), String> {
    let settled = |phase| matches!(phase, Phase::Running | Phase::Paused);
    let nodes: BTreeMap<_, _> = nodes.map(|node| (&node.id, node)).collect();
    for sandbox in sandboxes.filter(|sandbox| settled(sandbox.phase)) {
        let node = sandbox.node.as_ref().and_then(|node| nodes.get(node));
        let here = node.and_then(|node| node.instance(sandbox.id, sandbox.epoch));
        let Some(here) = here.filter(|(phase, ..)| settled(*phase)) else { continue };
        let said = (sandbox.phase, sandbox.order, sandbox.held());
        if here != said {
            return Err(format!("the engine says of {} {said:?}, its node {here:?}", sandbox.id));
        }
    }
    Ok(())
}

/// An answer is let out: what it says must be durable.
pub fn answered(driver: &Driver, sandbox: &Sandbox) -> Result<(), String> {
    let stored = driver.store.sandboxes.get(&sandbox.id).map(|stored| stored.revision);
    let removed = driver.store.removed.get(&sandbox.id).copied();
    if stored.max(removed).is_some_and(|revision| revision >= sandbox.revision) {
        return Ok(());
    }
    Err(format!("{} was answered at {}, the store has {stored:?}", sandbox.id, sandbox.revision))
}

/// The faults have ceased, everybody was asked to stop, time has passed: nothing may be left.
pub fn at_rest<'a>(
    driver: &Driver,
    clients: &Clients,
    nodes: impl Iterator<Item = &'a SimNode>,
    now: Timestamp,
) -> Result<(), String> {
    if let Some((call, op)) = clients.open.iter().next() {
        return Err(format!("{call:?} ({op:?}) was never answered"));
    }
    let unended = driver.store.snapshots.values().find(|snapshot| {
        let over = matches!(snapshot.state, SnapshotState::Failed | SnapshotState::Lost);
        snapshot.ephemeral || !over
    });
    if let Some(snapshot) = unended {
        let (id, state, for_forks) = (snapshot.id, snapshot.state, snapshot.ephemeral);
        return Err(format!("snapshot {id} is {state} at the end; made for forks: {for_forks}"));
    }
    if let Some(id) = clients
        .forks()
        .find(|id| !driver.store.sandboxes.contains_key(id) && !driver.store.removed.contains_key(id))
    {
        return Err(format!("fork {id} was accepted and is nowhere"));
    }
    for client in &clients.all {
        let Some(id) = client.sandbox else { continue };
        if !driver.store.sandboxes.contains_key(&id) && !driver.store.removed.contains_key(&id) {
            return Err(format!("{id} was accepted and is nowhere"));
        }
        if client.deleted && !driver.store.removed.contains_key(&id) {
            return Err(format!("{id} was deleted and is still there"));
        }
    }
    if let Some(sandbox) = driver.store.sandboxes.values().find(|sandbox| !sandbox.phase.is_final()) {
        let since = now.since(sandbox.phase_at).0;
        return Err(format!("{} is {} for {since} ms and does not end", sandbox.id, sandbox.phase));
    }
    for node in nodes {
        if let Some((id, epoch)) = node.live().next() {
            return Err(format!("{id} at epoch {epoch} was left running on {}", node.id));
        }
        let kept: Vec<_> = node.list_snapshots().iter().map(|report| report.snapshot_id).collect();
        if let Some(id) = kept.iter().find(|id| !driver.store.snapshots.contains_key(id)) {
            return Err(format!("snapshot {id} is left on {}", node.id));
        }
        let templates = node.list_templates();
        if let Some(left) = templates.iter().find(|t| !driver.store.templates.contains_key(&t.template_id)) {
            return Err(format!("template {} is left on {}", left.template_id, node.id));
        }
        if node.records() > 0 {
            return Err(format!("{} still keeps {} records", node.id, node.records()));
        }
    }
    let engine = driver.engine.as_ref().ok_or("the scheduler is down")?;
    if let Some(node) = engine.nodes().find(|node| node.sandboxes > 0) {
        return Err(format!("room for {} sandboxes leaked on {}", node.sandboxes, node.id));
    }
    if engine.queue_length() > 0 {
        return Err(format!("{} sandboxes are left in the queue", engine.queue_length()));
    }
    Ok(())
}
