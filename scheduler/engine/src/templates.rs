//! Templates, and which node has prepared which. What is stored of a template never changes; how far each node is with it
//! is soft, drawn in `pinfold_domain::template`, and told anew by each of the node's lists.
//!
//! A node is asked for one template at a time, the oldest first, and only for what it could hold. Nothing here is needed
//! for a create to work: where a template is not prepared, the sandbox boots.

use crate::cluster::node::{NodeEntry, Stage, TemplateHere};
use crate::event::{CallId, Change, Effect, Operation, Rejection, SessionId};
use crate::operations::{self, reject};
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
    pub failed: u32,
    /// of the first node that failed
    pub last_failure: Option<Cause>,
}

#[derive(Debug, Default)]
pub(crate) struct Templates {
    by_id: BTreeMap<TemplateId, Template>,
    by_name: BTreeMap<(TenantId, String), TemplateId>,
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
    Ok(())
}

fn store(state: &mut State, template: Template) {
    state.outbox.records.push(Change::PutTemplate(Box::new(template.clone())));
    state.templates.insert(template);
    for node in registered(state) {
        tend(state, &node);
    }
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
    for node in registered(state) {
        let has = state.cluster.get(&node).is_some_and(|entry| entry.templates.contains_key(&template.id));
        if has {
            set(state, &node, template.id, None);
            send_drop(state, &node, template.id);
            tend(state, &node);
        }
    }
}

fn send_drop(state: &mut State, node: &NodeId, template_id: TemplateId) {
    if let Some(session) = state.cluster.get(node).and_then(|entry| entry.session) {
        state.outbox.send(Effect::DropTemplate { node: node.clone(), session, template_id });
    }
}

/// Changes what is known; a node is marked as changed only if it is.
fn set(state: &mut State, node: &NodeId, id: TemplateId, here: Option<(Stage, Option<Cause>)>) {
    let now = state.now;
    let Some(known) = state.cluster.get(node).map(|entry| entry.templates.get(&id)) else { return };
    let before = known.map(|known| (known.stage, known.cause.clone()));
    if before == here {
        return;
    }
    let Some(entry) = state.cluster.get_mut(node) else { return };
    match here {
        Some((stage, cause)) => drop(entry.templates.insert(id, TemplateHere { stage, since: now, cause })),
        None => drop(entry.templates.remove(&id)),
    }
}

/// Asks a node for the next template that it lacks, unless it is busy with one.
fn tend(state: &mut State, node: &NodeId) {
    let Some((session, next)) = next_for(state, node) else { return };
    set(state, node, next.id, Some((Stage::Asked, None)));
    let node = node.clone();
    state.outbox.send(Effect::PrepareTemplate { node, session, template: Box::new(next) });
}

fn next_for(state: &State, node: &NodeId) -> Option<(SessionId, Template)> {
    let entry = state.cluster.get(node)?;
    let session = entry.session.filter(|_| entry.registered && entry.node.state == NodeState::Ready)?;
    let busy = |here: &TemplateHere| matches!(here.stage, Stage::Asked | Stage::Preparing);
    let prepared = entry.templates.values().filter(|here| here.stage == Stage::Prepared).count();
    if entry.templates.values().any(busy) || prepared >= state.config.templates_per_node {
        return None;
    }
    let due = |template: &&Template| match entry.templates.get(&template.id) {
        None => true,
        Some(here) if here.stage == Stage::Failed => {
            here.since.after(state.config.template_retry) <= state.now
        }
        Some(_) => false,
    };
    let mut wanted =
        state.templates.by_id.values().filter(due).filter(|template| could_hold(entry, template));
    wanted.next().map(|template| (session, template.clone()))
}

/// The node could hold it when empty.
fn could_hold(entry: &NodeEntry, template: &Template) -> bool {
    let requirement = Requirement::new(&template.spec(), Some(template.id), BTreeSet::new());
    filter::first_rejection_when_empty(entry, &requirement).is_none()
}

/// One change on one node.
pub(crate) fn report(state: &mut State, node: &NodeId, session: SessionId, status: TemplateReport) {
    if !state.cluster.is_in_session(node, session) {
        return;
    }
    take_over(state, node, status);
    tend(state, node);
}

fn take_over(state: &mut State, node: &NodeId, status: TemplateReport) {
    let id = status.template_id;
    if state.templates.get(id).is_none() {
        return send_drop(state, node, id);
    }
    let stage = match status.preparation {
        Preparation::Preparing => Stage::Preparing,
        Preparation::Prepared => Stage::Prepared,
        Preparation::Failed => Stage::Failed,
    };
    let no_cause = || Cause::new(Reason::SnapshotFailed, "the node gave no cause");
    let cause = (stage == Stage::Failed).then(|| status.cause.unwrap_or_else(no_cause));
    set(state, node, id, Some((stage, cause)));
}

/// The node was asked so short a time ago that its list may not know of it.
fn is_fresh(state: &State, here: &TemplateHere) -> bool {
    here.stage == Stage::Asked && state.now.since(here.since) < state.config.forgotten_after
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
        set(state, node, id, None);
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
    tend(state, node);
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
        status.eligible += u32::from(could_hold(entry, template));
        let Some(here) = entry.templates.get(&template.id) else { continue };
        match here.stage {
            Stage::Asked | Stage::Preparing => status.preparing += 1,
            Stage::Prepared => status.prepared += 1,
            Stage::Failed => {
                status.failed += 1;
                status.last_failure = status.last_failure.or_else(|| here.cause.clone());
            }
        }
    }
    status
}
