//! The guest's console.

use crate::call;
use crate::client::Client;
use crate::error::Error;
use bytes::Bytes;
use pinfold_domain::SandboxId;
use pinfold_proto::api::v1 as wire;
use std::time::Duration;
use tonic::Streaming;

const CALL: &str = "StreamLogs";

/// Bytes of the console as they came: untrusted, escape before showing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// stream offset of `data[0]`; a gap to the chunk before means that the node no longer has what was between
    pub offset: u64,
    pub data: Bytes,
}

#[derive(Debug)]
pub struct LogStream {
    stream: Streaming<wire::StreamLogsResponse>,
    limit: Duration,
}

impl LogStream {
    /// `None` at the end.
    pub async fn next(&mut self) -> Result<Option<LogChunk>, Error> {
        match self.stream.message().await {
            Ok(Some(chunk)) => Ok(Some(LogChunk { offset: chunk.offset, data: chunk.data })),
            Ok(None) => Ok(None),
            Err(status) => Err(Error::from_status(CALL, self.limit, &status)),
        }
    }
}

impl Client {
    /// The console from stream offset `from_offset` on; `follow`: goes on as more is written.
    pub async fn logs(&self, id: SandboxId, from_offset: u64, follow: bool) -> Result<LogStream, Error> {
        let body = wire::StreamLogsRequest { sandbox_id: id.to_string(), from_offset, follow };
        let limit = self.options.stream_start_timeout;
        let mut client = self.sandboxes();
        let stream = call::open(CALL, limit, client.stream_logs(body)).await?;
        Ok(LogStream { stream, limit })
    }
}
