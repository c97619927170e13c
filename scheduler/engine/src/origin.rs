//! Where a sandbox begins: an image, a template, a snapshot. A source other than an image gives image, kernel, resources
//! and environment when the sandbox is accepted, so that the end of the source changes nothing for it.

use crate::event::Rejection;
use crate::operations::reject;
use crate::snapshots;
use crate::state::State;
use pinfold_domain::spec::check_environment;
use pinfold_domain::{
    Explanation, NodeId, Origin, Reason, Sandbox, SandboxId, SandboxSpec, SnapshotState, Source, TemplateId,
    TenantId,
};

/// Fills in what the source of `spec` gives.
pub(crate) fn resolve(
    state: &State,
    tenant: &TenantId,
    spec: &mut SandboxSpec,
) -> Result<Option<Origin>, Rejection> {
    let (given, template) = match &spec.source {
        Source::Image => return Ok(None),
        Source::Template(name) => {
            let found = state
                .templates
                .named(tenant, name)
                .ok_or_else(|| reject(Reason::TemplateNotFound, format!("there is no template {name:?}")))?;
            (found.spec(), Some(found.id))
        }
        Source::Snapshot(id) => {
            let entry = snapshots::find(state, tenant, *id)?;
            let snapshot = &entry.snapshot;
            if snapshot.state.is_over() {
                let message = format!("snapshot {id} is {}", snapshot.state);
                return Err(reject(Reason::SnapshotUnusable, message));
            }
            (snapshot.spec.clone(), None)
        }
    };
    let SandboxSpec { image, kernel, resources, environment, .. } = given;
    (spec.image, spec.kernel, spec.resources) = (image, kernel, resources);
    Ok(Some(Origin { template, environment }))
}

/// The bounds of a spec hold with the environment of its source too.
pub(crate) fn check(spec: &SandboxSpec, origin: Option<&Origin>) -> Result<(), Rejection> {
    let Some(origin) = origin else { return Ok(()) };
    let mut environment = origin.environment.clone();
    environment.extend(spec.environment.clone());
    let checked = check_environment("environment", &environment);
    checked.map_err(|error| reject(Reason::InvalidArgument, format!("with that of its source: {error}")))
}

pub(crate) fn template_of(sandbox: &Sandbox) -> Option<TemplateId> {
    sandbox.origin.as_ref().and_then(|origin| origin.template)
}

/// `explanation` with what a person should know about the place of a sandbox that was given to `node`, or waits.
pub(crate) fn with_note(
    state: &State,
    id: SandboxId,
    node: Option<&NodeId>,
    explanation: Explanation,
) -> Explanation {
    let note = state.sandbox(id).map(|sandbox| note(state, sandbox, node)).unwrap_or_default();
    Explanation { note, ..explanation }
}

fn note(state: &State, sandbox: &Sandbox, node: Option<&NodeId>) -> String {
    match (&sandbox.spec.source, node) {
        (Source::Image, _) | (Source::Snapshot(_), Some(_)) => String::new(),
        (Source::Template(name), Some(node)) => {
            let entry = state.cluster.get(node);
            let prepared =
                template_of(sandbox).is_some_and(|id| entry.is_some_and(|entry| entry.is_prepared(id)));
            match prepared {
                true => String::new(),
                false => format!("template {name} is not prepared on {node}, where it boots instead"),
            }
        }
        (Source::Template(_), None) => String::new(),
        (Source::Snapshot(id), None) => match state.snapshots.get(*id).map(|entry| &entry.snapshot) {
            Some(snapshot) if snapshot.state == SnapshotState::Creating => {
                format!("snapshot {id} is still being taken on {}", snapshot.node)
            }
            Some(snapshot) => format!("snapshot {id} is on {}", snapshot.node),
            None => format!("snapshot {id} is gone"),
        },
    }
}
