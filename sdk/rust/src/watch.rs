//! A watch that goes on by itself where it was cut.
//!
//! ```text
//!              open(last revision)               event: remember its revision, reset the backoff
//!   Cut ------------------------------> Open --------------------------------------------> Open
//!    ^   fails: wait, count, give up     |
//!    |   after RESUMES in a row          | the stream ends or breaks
//!    +-----------------------------------+
//! ```
//!
//! A refusal (an unknown sandbox, a revision that is no longer kept) is handed to the caller at once.

use crate::call::Backoff;
use crate::client::Client;
use crate::error::Error;
use crate::model::{self, Sandbox};
use pinfold_domain::{Revision, SandboxId};
use pinfold_proto::api::v1 as wire;
use tonic::{Code, Streaming};

/// Attempts to resume in a row without an event between them: about 15 s.
const RESUMES: u32 = 12;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// after the change; its last state when `deleted`
    pub sandbox: Sandbox,
    pub deleted: bool,
    /// a watch from here misses nothing
    pub revision: Revision,
}

/// See [`Client::watch`]. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    id: Option<SandboxId>,
    revision: Revision,
    stream: Option<Streaming<wire::WatchSandboxesResponse>>,
    backoff: Backoff,
}

impl Watch {
    pub(crate) fn new(client: Client, from: Revision, id: Option<SandboxId>) -> Self {
        Self { client, id, revision: from, stream: None, backoff: Backoff::default() }
    }

    /// The last revision that was seen.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The next change. Cancel safe: a change is never lost when the future is dropped.
    pub async fn next(&mut self) -> Result<WatchEvent, Error> {
        loop {
            let broken = match self.attempt().await {
                Ok(event) => {
                    self.backoff.reset();
                    self.revision = event.revision;
                    return Ok(event);
                }
                Err(error) => error,
            };
            self.stream = None;
            if !resumable(&broken) || self.backoff.failures() >= RESUMES {
                return Err(broken);
            }
            let wait = self.backoff.next();
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&mut self) -> Result<WatchEvent, Error> {
        const CALL: &str = "WatchSandboxes";
        if self.stream.is_none() {
            self.stream = Some(self.client.open_watch(self.revision, self.id).await?);
        }
        let Some(stream) = &mut self.stream else {
            return Err(Error::Protocol { call: CALL, what: "the stream is gone".to_owned() });
        };
        let limit = self.client.options.stream_start_timeout;
        match stream.message().await {
            Ok(Some(event)) => Ok(WatchEvent {
                sandbox: model::sandbox(CALL, event.sandbox)?,
                deleted: event.deleted,
                revision: Revision(event.revision),
            }),
            Ok(None) => Err(ended()),
            Err(status) => Err(Error::from_status(CALL, limit, &status)),
        }
    }
}

/// A server that stops ends its watches in good order: the next one goes on.
fn ended() -> Error {
    let cause = pinfold_domain::Cause::new(
        pinfold_domain::Reason::NodeUnreachable,
        "the scheduler ended the watch and did not take it up again",
    );
    Error::Call { call: "WatchSandboxes", cause, code: Code::Unavailable, retryable: true }
}

fn resumable(error: &Error) -> bool {
    error.is_transport() || matches!(error, Error::Deadline { .. })
}
