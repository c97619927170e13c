//! Carries out what the engine asks for, after the commit.

use crate::driver::Answer;
use crate::nodes::sessions::Sessions;
use crate::view::View;
use pinfold_domain::{Cause, Sandbox};
use pinfold_engine::{CallId, Change, Effect, Rejection};
use pinfold_proto::convert::sandbox::cause_to_wire;
use pinfold_proto::convert::spec;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::session_response::Message;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Calls that wait for their answer.
#[derive(Default)]
pub struct Pending {
    calls: HashMap<CallId, oneshot::Sender<Answer>>,
}

impl Pending {
    pub fn add(&mut self, call: CallId, answer: oneshot::Sender<Answer>) {
        self.calls.insert(call, answer);
    }

    fn answer(&mut self, call: CallId, result: Answer) {
        if let Some(answer) = self.calls.remove(&call) {
            // a caller that went away finds its sandbox again by its request id
            let _ = answer.send(result);
        }
    }

    pub fn reject_all(&mut self, cause: &Cause) {
        for (_, answer) in self.calls.drain() {
            let _ = answer.send(Err(Rejection { cause: cause.clone(), explanation: None }));
        }
    }
}

pub struct Executor {
    view: Arc<View>,
    sessions: Arc<Sessions>,
}

impl Executor {
    pub fn new(view: Arc<View>, sessions: Arc<Sessions>) -> Self {
        Self { view, sessions }
    }

    /// `changes` are durable. Readers see them before anybody is answered, so that a caller can read what it wrote.
    pub fn carry_out(&self, changes: &[Change], actions: Vec<Effect>, pending: &mut Pending) {
        if !changes.is_empty() {
            self.view.apply(changes);
        }
        for action in actions {
            self.one(action, pending);
        }
    }

    fn one(&self, action: Effect, pending: &mut Pending) {
        match action {
            // taken out by the driver
            Effect::Persist(_) => {}
            Effect::Answer { call, result } => pending.answer(call, result),
            Effect::Assign { node, session, sandbox, ttl_left } => {
                self.sessions.send(&node, session, Message::Assign(assign(&sandbox, ttl_left.0)));
            }
            Effect::StopOnNode { node, session, sandbox_id, epoch, cause, grace } => {
                let stop = wire::Stop {
                    sandbox_id: sandbox_id.to_string(),
                    epoch: epoch.0,
                    cause: Some(cause_to_wire(&cause)),
                    grace_ms: grace.0,
                };
                self.sessions.send(&node, session, Message::Stop(stop));
            }
            Effect::PauseOnNode { node, session, sandbox_id, epoch, order } => {
                let pause = wire::Pause { sandbox_id: sandbox_id.to_string(), epoch: epoch.0, order };
                self.sessions.send(&node, session, Message::Pause(pause));
            }
            Effect::ResumeOnNode { node, session, sandbox_id, epoch, order } => {
                let resume = wire::Resume { sandbox_id: sandbox_id.to_string(), epoch: epoch.0, order };
                self.sessions.send(&node, session, Message::Resume(resume));
            }
            Effect::TakeSnapshot { node, session, snapshot_id, sandbox_id, epoch } => {
                let (snapshot_id, sandbox_id) = (snapshot_id.to_string(), sandbox_id.to_string());
                let take = wire::TakeSnapshot { snapshot_id, sandbox_id, epoch: epoch.0 };
                self.sessions.send(&node, session, Message::TakeSnapshot(take));
            }
            Effect::DropSnapshot { node, session, snapshot_id } => {
                let drop = wire::DropSnapshot { snapshot_id: snapshot_id.to_string() };
                self.sessions.send(&node, session, Message::DropSnapshot(drop));
            }
            Effect::PrepareTemplate { node, session, template } => {
                let prepare = wire::PrepareTemplate {
                    template_id: template.id.to_string(),
                    name: template.name.clone(),
                    spec: Some(spec::to_wire(&template.spec())),
                };
                self.sessions.send(&node, session, Message::PrepareTemplate(prepare));
            }
            Effect::DropTemplate { node, session, template_id } => {
                let drop = wire::DropTemplate { template_id: template_id.to_string() };
                self.sessions.send(&node, session, Message::DropTemplate(drop));
            }
            Effect::Forget { node, session, sandbox_id, epoch } => {
                let forget = wire::Forget { sandbox_id: sandbox_id.to_string(), epoch: epoch.0 };
                self.sessions.send(&node, session, Message::Forget(forget));
            }
            Effect::CloseSession { node, session, why } => self.sessions.close(&node, session, &why),
        }
    }
}

fn assign(sandbox: &Sandbox, ttl_ms: u64) -> wire::Assign {
    let template = sandbox.origin.as_ref().and_then(|origin| origin.template);
    wire::Assign {
        sandbox_id: sandbox.id.to_string(),
        epoch: sandbox.epoch.0,
        spec: Some(spec::to_wire(&sandbox.effective_spec())),
        tenant: sandbox.tenant.to_string(),
        ttl_ms,
        template_id: template.map(|id| id.to_string()).unwrap_or_default(),
    }
}
