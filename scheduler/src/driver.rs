//! The owner of the engine: inbox -> step -> commit -> effects, and the timers.
//!
//! ```text
//!   inbox --(what is waiting, at most a batch)--> step, step, step --> commit --> view, answers, commands
//!     ^                                                                  |
//!     '---- waits meanwhile: the next batch, the next commit <-----------'
//! ```
//!
//! Invariant: nothing that a step asks for is done before all changes of its batch are durable. When a commit fails the
//! engine is ahead of the store: the callers of that batch are told, and the process ends, to begin again from the store.

mod handle;

pub use handle::{DriverHandle, ForkOrder};

use crate::config::DriverConfig;
use crate::effects::{Executor, Pending};
use crate::store::writer::Writer;
use anyhow::Context;
use pinfold_domain::{Cause, Explanation, Node, NodeId, Reason, SandboxId, TenantId, Timestamp};
use pinfold_engine::{Answered, CallId, Change, Effect, Engine, Event, Rejection, TemplateStatus};
use pinfold_service::CancellationToken;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};

/// What a call is answered with.
pub type Answer = Result<Answered, Rejection>;

/// What the driver takes in.
pub enum Input {
    /// an event that is answered
    Call {
        call: CallId,
        event: Event,
        answer: oneshot::Sender<Answer>,
    },
    /// an event that is not
    Event(Event),
    /// nodes in the order of their names
    ListNodes {
        after: Option<NodeId>,
        limit: usize,
        answer: oneshot::Sender<Vec<Node>>,
    },
    /// why a sandbox waits, by the fleet of this moment
    Explain {
        sandbox_id: SandboxId,
        answer: oneshot::Sender<Option<Explanation>>,
    },
    /// templates in the order of their names, with how far the fleet is with each
    ListTemplates {
        tenant: TenantId,
        after: Option<String>,
        limit: usize,
        answer: oneshot::Sender<Vec<TemplateStatus>>,
    },
    GetTemplate {
        tenant: TenantId,
        name: String,
        answer: oneshot::Sender<Option<TemplateStatus>>,
    },
}

/// The engine and all that carries out what it asks for.
pub struct Driver {
    engine: Engine,
    inbox: mpsc::Receiver<Input>,
    batch: usize,
    writer: Writer,
    executor: Executor,
    pending: Pending,
}

impl Driver {
    pub fn new(
        engine: Engine,
        config: &DriverConfig,
        writer: Writer,
        executor: Executor,
    ) -> (Self, DriverHandle) {
        let (sender, inbox) = mpsc::channel(config.inbox);
        let handle = DriverHandle::new(sender, Duration::from_millis(config.inbox_wait_ms));
        let pending = Pending::default();
        (Self { engine, inbox, batch: config.batch, writer, executor, pending }, handle)
    }

    /// Until `stop` is cancelled; what waits in the inbox then is still done.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut inputs = Vec::with_capacity(self.batch);
        loop {
            let tick = tokio::select! {
                biased;
                () = stop.cancelled(), if !self.inbox.is_closed() => {
                    self.inbox.close();
                    continue;
                }
                count = self.inbox.recv_many(&mut inputs, self.batch) => {
                    if count == 0 {
                        return Ok(());
                    }
                    false
                }
                () = sleep_until(self.engine.next_deadline()) => true,
            };
            self.turn(&mut inputs, tick).await?;
        }
    }

    /// One batch: steps, one commit, effects.
    async fn turn(&mut self, inputs: &mut Vec<Input>, tick: bool) -> anyhow::Result<()> {
        let mut effects = Vec::new();
        let due = |engine: &Engine, now| engine.next_deadline().is_some_and(|deadline| deadline <= now);
        for input in inputs.drain(..) {
            effects.extend(self.take(input));
        }
        // timers must not starve behind a full inbox
        let now = now();
        if tick || due(&self.engine, now) {
            effects.extend(self.engine.step(now, Event::Tick));
        }
        let (changes, actions) = split(effects);
        let changes: Arc<[Change]> = changes.into();
        if !changes.is_empty()
            && let Err(error) = self.writer.commit(Arc::clone(&changes)).await
        {
            let cause =
                Cause::new(Reason::StoreUnavailable, "the store cannot be written: nothing was accepted");
            self.pending.reject_all(&cause);
            return Err(error).context("a commit failed: ending, to begin again from what is stored");
        }
        self.executor.carry_out(&changes, actions, &mut self.pending);
        Ok(())
    }

    fn take(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Event(event) => self.engine.step(now(), event),
            Input::Call { call, event, answer } => {
                self.pending.add(call, answer);
                self.engine.step(now(), event)
            }
            Input::ListNodes { after, limit, answer } => {
                let behind = |node: &Node| after.as_ref().is_none_or(|after| node.id > *after);
                // whoever asked may be gone
                let _ = answer.send(self.engine.nodes().filter(behind).take(limit).collect());
                Vec::new()
            }
            Input::Explain { sandbox_id, answer } => {
                // whoever asked may be gone
                let _ = answer.send(self.engine.explain(sandbox_id));
                Vec::new()
            }
            Input::ListTemplates { tenant, after, limit, answer } => {
                let _ = answer.send(self.engine.templates(&tenant, after.as_deref(), limit));
                Vec::new()
            }
            Input::GetTemplate { tenant, name, answer } => {
                let _ = answer.send(self.engine.template(&tenant, &name));
                Vec::new()
            }
        }
    }
}

/// Changes, and all the rest in its order.
fn split(effects: Vec<Effect>) -> (Vec<Change>, Vec<Effect>) {
    let mut changes = Vec::new();
    let mut actions = Vec::new();
    for effect in effects {
        match effect {
            Effect::Persist(change) => changes.push(change),
            other => actions.push(other),
        }
    }
    (changes, actions)
}

/// The one place where the scheduler asks what time it is: the wall clock as it stood at the first call, and the
/// monotonic clock from there on. A wall clock that is set forward would otherwise end every time to live at once; the
/// monotonic one is disciplined by NTP in its rate, and never set.
pub fn now() -> Timestamp {
    static BEGIN: LazyLock<(Duration, Instant)> = LazyLock::new(|| {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (since_epoch, Instant::now())
    });
    let (since_epoch, begin) = *BEGIN;
    Timestamp(u64::try_from((since_epoch + begin.elapsed()).as_millis()).unwrap_or(u64::MAX))
}

async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        // 1 ms more: the timer may fire early in its millisecond, and then the engine would be asked in vain
        Some(deadline) => {
            tokio::time::sleep(Duration::from_millis(deadline.since(now()).0.saturating_add(1))).await
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
