//! `WatchSandboxes`.

use super::sandboxes::{SandboxApi, sandbox_id};
use super::streams::{Answers, bounded};
use super::{deadline, status};
use crate::view::{WatchFilter, Watcher};
use futures::stream;
use pinfold_domain::Revision;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::convert::sandbox;
use std::sync::Arc;
use tonic::{Request, Status};

pub fn start(
    api: &SandboxApi,
    request: Request<wire::WatchSandboxesRequest>,
) -> Result<Answers<wire::WatchSandboxesResponse>, Status> {
    let deadline = deadline::of(request.metadata());
    let request = request.into_inner();
    let sandbox = match request.sandbox_id.as_str() {
        "" => None,
        text => Some(sandbox_id(text).map_err(status::refuse)?),
    };
    let slot = Arc::clone(&api.watches).try_acquire_owned().map_err(|_| status::too_many_watches())?;
    let from = Revision(request.from_revision);
    let watcher =
        Watcher::new(Arc::clone(&api.view), WatchFilter { sandbox }, from).map_err(status::refuse)?;
    let events = stream::unfold((watcher, slot), |(mut watcher, slot)| async move {
        let event = watcher.next().await.map_err(status::refuse).map(|event| wire::WatchSandboxesResponse {
            sandbox: Some(sandbox::to_wire(&event.sandbox)),
            deleted: event.deleted,
            revision: event.revision.0,
        });
        Some((event, (watcher, slot)))
    });
    Ok(bounded(events, deadline, api.shutdown.clone()))
}
