//! Callers that pause, resume, snapshot, fork, and keep templates.

use super::client::{Act, Clients, UNIT, template_name};
use pinfold_domain::{
    Reason, RequestId, SandboxId, SnapshotId, Template, TemplateId, Timestamp, spec::defaults,
};
use pinfold_engine::{Answered, CallId, Event, ForkRequest, ForkSource, Rejection};
use std::collections::BTreeMap;
use uuid::Uuid;

fn request_id(client: usize, what: &str, number: u64) -> RequestId {
    format!("client-{client}-{what}-{number}").parse().expect("printable ASCII without space")
}

impl Clients {
    /// The event of an act that [`Clients::call`] leaves to this; `None` when it has become pointless.
    pub(super) fn saving_event(&mut self, call: CallId, index: usize, act: Act) -> Option<Event> {
        let tenant = Default::default();
        // beside the ids of creates, which are the numbers of their calls
        let minted = |part: u64| Uuid::from_u128((u128::from(call.0) << 64) + u128::from(part));
        let sandbox = self.all.get(index)?.sandbox;
        Some(match act {
            Act::Pause(number) => {
                Event::Pause { call, request_id: request_id(index, "pause", number), sandbox_id: sandbox? }
            }
            Act::Resume(number) => {
                Event::Resume { call, request_id: request_id(index, "resume", number), sandbox_id: sandbox? }
            }
            Act::Snapshot(number) => Event::CreateSnapshot {
                call,
                tenant,
                request_id: request_id(index, "snapshot", number),
                snapshot_id: SnapshotId(minted(0)),
                sandbox_id: sandbox?,
                name: String::new(),
            },
            Act::Fork(number) => {
                let of = self.all.get(index)?.snapshots.first().filter(|_| number % 2 == 1);
                let source = of.map_or(ForkSource::Sandbox(sandbox?), |id| ForkSource::Snapshot(*id));
                let count = number % 4 + 1;
                Event::Fork {
                    call,
                    fork: Box::new(ForkRequest {
                        tenant,
                        request_id: request_id(index, "fork", number),
                        source,
                        sandbox_ids: (1..=count).map(|part| SandboxId(minted(part))).collect(),
                        snapshot_id: SnapshotId(minted(0)),
                        name: String::new(),
                        labels: BTreeMap::new(),
                        ttl: None,
                    }),
                }
            }
            Act::DropSnapshot(snapshot_id) => {
                let request_id = format!("drop-{snapshot_id}").parse().expect("printable and short");
                Event::DeleteSnapshot { call, tenant, request_id, snapshot_id }
            }
            Act::StopFork(sandbox_id) => {
                self.stopped_forks.insert(sandbox_id);
                let request_id = request_id(index, "stop", 0);
                Event::Stop { call, request_id, sandbox_id, grace: pinfold_domain::Millis(1_000) }
            }
            Act::Template(number) => Event::CreateTemplate {
                call,
                template: Box::new(Template {
                    id: TemplateId(minted(0)),
                    tenant,
                    request_id: request_id(index, "template", number),
                    name: template_name(number),
                    image: defaults::IMAGE.to_owned(),
                    kernel: None,
                    resources: UNIT,
                    environment: BTreeMap::new(),
                    created_at: Timestamp::default(),
                }),
            },
            Act::DropTemplate(number) => Event::DeleteTemplate {
                call,
                tenant,
                request_id: request_id(index, "drop-template", number),
                name: template_name(number),
            },
            Act::Create | Act::Conflict | Act::Stop | Act::Delete => return None,
        })
    }

    /// Checks the answer to such an act.
    pub(super) fn saving_answer(
        &mut self,
        index: usize,
        act: Act,
        result: &Result<Answered, Rejection>,
    ) -> Result<(), String> {
        let client = &mut self.all[index];
        match (act, result) {
            (Act::Pause(_) | Act::Resume(_), Ok(Answered::Sandbox(sandbox)))
                if Some(sandbox.id) == client.sandbox => {}
            (Act::Snapshot(_), Ok(Answered::Snapshot(snapshot)))
                if Some(snapshot.sandbox) == client.sandbox =>
            {
                client.snapshots.insert(snapshot.id);
            }
            (Act::Fork(number), Ok(Answered::Forks { sandboxes, .. })) => {
                let ids: Vec<SandboxId> = sandboxes.iter().map(|sandbox| sandbox.id).collect();
                let before = client.forks.entry(number).or_insert_with(|| ids.clone());
                if ids.iter().any(|id| !before.contains(id)) || before.len() as u64 != number % 4 + 1 {
                    return Err(format!("fork {number} of client {index} gave {before:?}, then {ids:?}"));
                }
            }
            (Act::DropSnapshot(id), Ok(Answered::Snapshot(snapshot))) if snapshot.id == id => {}
            (Act::Template(_) | Act::DropTemplate(_), Ok(Answered::Template(_))) => {}
            (act, Err(rejection)) if is_expected(act, rejection.cause.reason) => {}
            (act, other) => return Err(format!("{act:?} of client {index} was answered with {other:?}")),
        }
        Ok(())
    }
}

/// What may be answered to a client that does not know the state of its sandbox.
fn is_expected(act: Act, reason: Reason) -> bool {
    let of_the_sandbox = matches!(
        reason,
        Reason::SandboxNotFound
            | Reason::SandboxStarting
            | Reason::SandboxEnded
            | Reason::WrongPhase
            | Reason::NodeUnreachable
    );
    match act {
        Act::Pause(_) | Act::Resume(_) => of_the_sandbox || reason == Reason::NoRoom,
        Act::Snapshot(_) => of_the_sandbox,
        Act::Fork(_) => {
            of_the_sandbox
                || matches!(reason, Reason::QueueFull | Reason::SnapshotNotFound | Reason::SnapshotUnusable)
                // of which snapshot it forks may have changed between two attempts
                || reason == Reason::RequestIdConflict
        }
        Act::DropSnapshot(_) => matches!(reason, Reason::SnapshotInUse | Reason::SnapshotNotFound),
        Act::Template(_) => reason == Reason::TemplateExists,
        Act::DropTemplate(_) => reason == Reason::TemplateNotFound,
        Act::Create | Act::Conflict | Act::Stop | Act::Delete | Act::StopFork(_) => false,
    }
}
