//! Templates, and which node has prepared which. What is stored of a template never changes; how far each node is with it
//! is soft, drawn in `pinfold_domain::template`, and told anew by each of the node's lists.
//!
//! A node is asked for one template at a time, the oldest first, and only while it has room for the machine that it boots
//! for it: that room is held from the moment when it is asked until it says that it is done, so that no sandbox is placed
//! there that the node would refuse. Sandboxes that wait go first. Nothing here is needed for a create to work: where a
//! template is not prepared, the sandbox boots.
//!
//! ```text
//!              ask              begun            saved
//!   (nothing) -----> Asked ------------> Preparing -----> Prepared      room is held in Asked, Preparing, Dropping
//!     ^   ^            |                     |               |
//!     |   |            +------- fail --------+               |
//!     |   +--- after a while --- Failed <----+               |
//!     +------------ listed as failed: asked again at once ---+
//!     +--- done, or not listed --- Dropping <--- deleted --- (Asked, Preparing)
//! ```

use crate::cluster::node::{NodeEntry, Stage, TemplateHere};
use crate::event::{CallId, Change, Effect, Operation, Rejection, SessionId};
use crate::operations::{self, Made, reject};
use crate::outbox::Reply;
use crate::placement::{Requirement, filter};
use crate::reconcile::Occasion;
use crate::state::State;
use pinfold_domain::{
    Cause, NodeId, NodeState, Preparation, Reason, RequestId, Template, TemplateId, TemplateReport, TenantId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// A template with how far the fleet is with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateStatus {
    pub template: Template,
    /// nodes that could hold it when empty
    pub eligible: u32,
    pub preparing: u32,
    pub prepared: u32,
    /// those that are not asked for it now too
    pub failed: u32,
    /// of the first of them
    pub last_failure: Option<Cause>,
}

#[derive(Debug, Default)]
pub(crate) struct Templates {
    by_id: BTreeMap<TemplateId, Template>,
    by_name: BTreeMap<(TenantId, String), TemplateId>,
    /// nodes that may be asked for one more, at the end of a step
    untended: BTreeSet<NodeId>,
}

impl Templates {
    pub fn get(&self, id: TemplateId) -> Option<&Template> {
        self.by_id.get(&id)
    }

    pub fn named(&self, tenant: &TenantId, name: &str) -> Option<&Template> {
        self.by_name.get(&(tenant.clone(), name.to_owned())).and_then(|id| self.by_id.get(id))
    }

    pub fn insert(&mut self, template: Template) {
        self.by_name.insert((template.tenant.clone(), template.name.clone()), template.id);
        self.by_id.insert(template.id, template);
    }

    fn remove(&mut self, template: &Template) {
        self.by_name.remove(&(template.tenant.clone(), template.name.clone()));
        self.by_id.remove(&template.id);
    }

    /// By their names, behind `after`.
    fn behind(&self, tenant: &TenantId, after: Option<&str>) -> impl Iterator<Item = &Template> {
        let from = (tenant.clone(), after.unwrap_or_default().to_owned());
        let range = self.by_name.range((Bound::Excluded(from), Bound::Unbounded));
        let own = range.take_while(move |((owner, _), _)| owner == tenant);
        own.filter_map(|(_, id)| self.by_id.get(id))
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }
}

pub(crate) fn create(state: &mut State, call: CallId, mut template: Template) {
    template.created_at = state.now;
    let key = (template.tenant.clone(), template.request_id.clone());
    let same = |operation: &Operation| match operation {
        Operation::CreateTemplate(before) if before.is_same(&template) => {
            Some(Reply::Template(before.clone()))
        }
        _ => None,
    };
    let reply = operations::known(state, &key, same).unwrap_or_else(|| match may_create(state, &template) {
        Ok(()) => {
            store(state, template.clone());
            let template = Box::new(template);
            operations::remember(state, key, Operation::CreateTemplate(template.clone()));
            Reply::Template(template)
        }
        Err(rejection) => Reply::Rejected(rejection),
    });
    state.outbox.answer(call, reply);
}

fn may_create(state: &State, template: &Template) -> Result<(), Rejection> {
    if state.templates.named(&template.tenant, &template.name).is_some() {
        let message = format!("there is a template {:?} already", template.name);
        return Err(reject(Reason::TemplateExists, message));
    }
    if state.templates.get(template.id).is_some() {
        return Err(reject(Reason::Internal, format!("template id {} is taken", template.id)));
    }
    let (count, limit) = (state.templates.len(), state.config.templates);
    if count >= limit {
        let message = format!("there are {count} templates already, the limit is {limit}");
        return Err(reject(Reason::LimitReached, message));
    }
    let mut eligible = state.cluster.not_lost().filter(|entry| could_hold(entry, template)).peekable();
    if eligible.peek().is_some() && eligible.all(|entry| wanted_on(state, entry) >= per_node(state)) {
        let limit = per_node(state);
        let message = format!(
            "every node that could hold it has {limit} templates to prepare already, templates_per_node is {limit}"
        );
        return Err(reject(Reason::LimitReached, message));
    }
    Ok(())
}

fn per_node(state: &State) -> usize {
    state.config.templates_per_node
}

/// How many of those that are kept the node has prepared, or will be asked for.
fn wanted_on(state: &State, entry: &NodeEntry) -> usize {
    let failed = |id| entry.templates.get(id).is_some_and(|here: &TemplateHere| here.stage == Stage::Failed);
    let all = state.templates.by_id.iter().filter(|(id, _)| !failed(*id));
    all.filter(|(_, template)| could_hold(entry, template)).count()
}

fn store(state: &mut State, template: Template) {
    state.outbox.records.push(Change::PutTemplate(Box::new(template.clone())));
    state.templates.insert(template);
    let nodes = registered(state);
    state.templates.untended.extend(nodes);
}

fn registered(state: &State) -> Vec<NodeId> {
    state.cluster.registered().map(|entry| entry.node.id.clone()).collect()
}

pub(crate) fn delete(state: &mut State, call: CallId, tenant: TenantId, request_id: RequestId, name: &str) {
    let key = (tenant, request_id);
    let same = |operation: &Operation| match operation {
        Operation::DeleteTemplate(gone) if gone.name == name => Some(Reply::Template(gone.clone())),
        _ => None,
    };
    let known = operations::known(state, &key, same);
    let reply = known.unwrap_or_else(|| match state.templates.named(&key.0, name).cloned() {
        Some(template) => {
            forget(state, &template);
            let template = Box::new(template);
            operations::remember(state, key, Operation::DeleteTemplate(template.clone()));
            Reply::Template(template)
        }
        None => Reply::Rejected(reject(Reason::TemplateNotFound, format!("there is no template {name:?}"))),
    });
    state.outbox.answer(call, reply);
}

/// Removes it here and on every node that has something of it.
fn forget(state: &mut State, template: &Template) {
    state.templates.remove(template);
    state.outbox.records.push(Change::DeleteTemplate { id: template.id });
    operations::let_go(state, Made::Template(template.id));
    for node in registered(state) {
        let known = state.cluster.get(&node).and_then(|entry| entry.templates.get(&template.id));
        let Some(at_work) = known.map(|here| here.stage.is_at_work()) else { continue };
        // its machine takes room until the node has ended it
        set(state, &node, template, at_work.then_some((Stage::Dropping, None)));
        send_drop(state, &node, template.id);
    }
}

fn send_drop(state: &mut State, node: &NodeId, template_id: TemplateId) {
    if let Some(session) = state.cluster.get(node).and_then(|entry| entry.session) {
        state.outbox.send(Effect::DropTemplate { node: node.clone(), session, template_id });
    }
}

/// Changes what is known; a node is marked as changed only if it is.
fn set(state: &mut State, node: &NodeId, template: &Template, here: Option<(Stage, Option<Cause>)>) {
    let (id, since, resources) = (template.id, state.now, template.resources);
    let Some(known) = state.cluster.get(node).map(|entry| entry.templates.get(&id)) else { return };
    let before = known.map(|known| (known.stage, known.cause.clone()));
    if before == here {
        return;
    }
    put(state, node, id, here.map(|(stage, cause)| TemplateHere { stage, since, cause, resources }));
}

fn put(state: &mut State, node: &NodeId, id: TemplateId, here: Option<TemplateHere>) {
    let gained = state.cluster.get_mut(node).is_some_and(|entry| entry.set_template(id, here));
    if gained {
        state.cluster.wake(node);
    }
    state.templates.untended.insert(node.clone());
}

/// Asks nodes for the next template that they lack, unless they are busy with one. After the queue was looked at: what
/// waits there and fits has its room already.
pub(crate) fn tend(state: &mut State) {
    if state.queue.unfinished {
        return;
    }
    for node in std::mem::take(&mut state.templates.untended) {
        let Some((session, next)) = next_for(state, &node) else { continue };
        set(state, &node, &next, Some((Stage::Asked, None)));
        state.templates.untended.remove(&node);
        state.outbox.send(Effect::PrepareTemplate { node, session, template: Box::new(next) });
    }
}

fn next_for(state: &State, node: &NodeId) -> Option<(SessionId, Template)> {
    let entry = state.cluster.get(node)?;
    let session = entry.session.filter(|_| entry.registered && entry.node.state == NodeState::Ready)?;
    if entry.templates.values().any(|here| here.stage.is_at_work()) || is_full(state, entry) {
        return None;
    }
    let due = |template: &&Template| match entry.templates.get(&template.id) {
        None => true,
        Some(here) if here.stage == Stage::Failed => {
            here.since.after(state.config.template_retry) <= state.now
        }
        Some(_) => false,
    };
    let fits = |template: &&Template| {
        could_hold(entry, template) && template.resources.first_excess(&entry.free()).is_none()
    };
    let mut wanted = state.templates.by_id.values().filter(due).filter(fits);
    wanted.next().map(|template| (session, template.clone()))
}

/// It has prepared as many as it may.
fn is_full(state: &State, entry: &NodeEntry) -> bool {
    let prepared = entry.templates.values().filter(|here| here.stage == Stage::Prepared).count();
    prepared >= per_node(state)
}

/// The node could hold it when empty.
fn could_hold(entry: &NodeEntry, template: &Template) -> bool {
    let requirement = Requirement::new(&template.spec(), Some(template.id), BTreeSet::new());
    filter::first_rejection_when_empty(entry, &requirement).is_none()
}

/// Why a node that could hold it is not asked for it now; `None` when it is about to be.
fn why_not_now(state: &State, entry: &NodeEntry, template: &Template) -> Option<Cause> {
    let node = &entry.node.id;
    if is_full(state, entry) {
        let limit = per_node(state);
        let message = format!("node {node} has prepared {limit} templates, templates_per_node is {limit}");
        return Some(Cause::new(Reason::LimitReached, message));
    }
    if entry.session.is_none() || entry.node.state != NodeState::Ready {
        let message = format!("node {node} is {}", entry.node.state.as_str());
        return Some(Cause::new(Reason::NodeUnreachable, message));
    }
    // whatever it prepares now will be done some time
    let free = entry.node.allocatable.saturating_sub(&entry.node.reserved);
    let short = template.resources.first_excess(&free)?;
    let message = format!("node {node} has no room to prepare it: {}", short.name());
    Some(Cause::new(Reason::NoRoom, message))
}

/// One change on one node.
pub(crate) fn report(state: &mut State, node: &NodeId, session: SessionId, status: TemplateReport) {
    if state.cluster.is_in_session(node, session) {
        take_over(state, node, status);
    }
}

fn take_over(state: &mut State, node: &NodeId, status: TemplateReport) {
    let id = status.template_id;
    let before = state.cluster.get(node).and_then(|entry| entry.templates.get(&id)).map(|here| here.stage);
    let Some(template) = state.templates.get(id).cloned() else {
        if before.is_some() && status.preparation != Preparation::Preparing {
            put(state, node, id, None);
        }
        return send_drop(state, node, id);
    };
    // what was saved is of no use any more, and nothing was tried in vain: it is asked for at once
    if (before, status.preparation) == (Some(Stage::Prepared), Preparation::Failed) {
        return set(state, node, &template, None);
    }
    let stage = match status.preparation {
        Preparation::Preparing => Stage::Preparing,
        Preparation::Prepared => Stage::Prepared,
        Preparation::Failed => Stage::Failed,
    };
    let no_cause = || Cause::new(Reason::SnapshotFailed, "the node gave no cause");
    let cause = (stage == Stage::Failed).then(|| status.cause.unwrap_or_else(no_cause));
    set(state, node, &template, Some((stage, cause)));
}

/// The node was told so short a time ago that its list may not know of it.
fn is_fresh(state: &State, here: &TemplateHere) -> bool {
    matches!(here.stage, Stage::Asked | Stage::Dropping)
        && state.now.since(here.since) < state.config.forgotten_after
}

/// The full list of a node whose session was checked.
pub(crate) fn list(state: &mut State, node: &NodeId, reports: Vec<TemplateReport>, occasion: Occasion) {
    let seen: BTreeSet<TemplateId> = reports.iter().map(|report| report.template_id).collect();
    let Some(entry) = state.cluster.get(node) else { return };
    let retry = |here: &TemplateHere| state.now.since(here.since) < state.config.template_retry;
    let kept = |here: &TemplateHere| match here.stage {
        Stage::Failed => retry(here),
        _ => occasion == Occasion::Heartbeat && is_fresh(state, here),
    };
    let gone = entry.templates.iter().filter(|(id, here)| !seen.contains(id) && !kept(here));
    let gone: Vec<TemplateId> = gone.map(|(id, _)| *id).collect();
    for id in gone {
        put(state, node, id, None);
    }
    for report in reports {
        let known = state.cluster.get(node).and_then(|entry| entry.templates.get(&report.template_id));
        // of the time before: it was asked again since
        let old =
            report.preparation == Preparation::Failed && known.is_some_and(|here| is_fresh(state, here));
        if !old {
            take_over(state, node, report);
        }
    }
    state.templates.untended.insert(node.clone());
}

/// The node was given up: what is on it is told when it comes back.
pub(crate) fn node_lost(state: &mut State, node: &NodeId) {
    let known: Vec<TemplateId> =
        state.cluster.get(node).map_or_else(Vec::new, |entry| entry.templates.keys().copied().collect());
    known.into_iter().for_each(|id| put(state, node, id, None));
}

/// At most `limit` templates of a tenant by their names, behind `after`.
pub(crate) fn page(
    state: &State,
    tenant: &TenantId,
    after: Option<&str>,
    limit: usize,
) -> Vec<TemplateStatus> {
    state.templates.behind(tenant, after).take(limit).map(|template| status(state, template)).collect()
}

pub(crate) fn status(state: &State, template: &Template) -> TemplateStatus {
    let mut status = TemplateStatus {
        template: template.clone(),
        eligible: 0,
        preparing: 0,
        prepared: 0,
        failed: 0,
        last_failure: None,
    };
    for entry in state.cluster.not_lost() {
        let eligible = could_hold(entry, template);
        status.eligible += u32::from(eligible);
        let Some(here) = entry.templates.get(&template.id) else {
            if let Some(cause) = why_not_now(state, entry, template).filter(|_| eligible) {
                status.failed += 1;
                status.last_failure = status.last_failure.or(Some(cause));
            }
            continue;
        };
        match here.stage {
            Stage::Asked | Stage::Preparing | Stage::Dropping => status.preparing += 1,
            Stage::Prepared => status.prepared += 1,
            Stage::Failed => {
                status.failed += 1;
                status.last_failure = status.last_failure.or_else(|| here.cause.clone());
            }
        }
    }
    status
}
