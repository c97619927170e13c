//! The guest's console, from the ring that the VMM writes. It is there until the sandbox is forgotten.

use super::{Client, Outcome, Say};
use crate::sandbox::record::Ledger;
use pinfold_domain::{Cause, Reason};
use pinfold_proto::limits::FRAME_BYTES;
use pinfold_proto::node::v1 as wire;
use pinfold_vmm_api::console::{Chunk, Reader};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The ring is a file that another process maps and writes at offsets: no kernel event says "there is more" without
/// waking for every byte (inotify would, once per guest character). A person does not see a tenth of a second.
const POLL: Duration = Duration::from_millis(100);

/// Sends from `from_offset` on; with `follow`, until the sandbox has ended.
pub async fn run(client: &mut Client, ledger: &Arc<Ledger>, request: wire::LogsRequest) -> Outcome {
    let Client { frames, say } = client;
    let send = async {
        let mut offset = request.from_offset;
        loop {
            // Asked before the ring is read: what was written before the end is then surely read.
            let ended = ledger.reports().borrow().phase.is_final();
            let chunk = match read(ledger, offset) {
                Ok(chunk) => chunk,
                Err(error) => {
                    let message = format!("the console cannot be read: {error}");
                    return Outcome::Failed(Cause::new(Reason::Internal, message));
                }
            };
            if !chunk.data.is_empty() {
                offset = chunk.offset + chunk.data.len() as u64;
                let frame = Say::Logs(wire::LogsChunk { offset: chunk.offset, data: chunk.data.into() });
                if say.send(wire::RelayRequest { frame: Some(frame) }).await.is_err() {
                    return Outcome::ClientGone;
                }
            } else if ended || !request.follow {
                return Outcome::End;
            } else {
                tokio::time::sleep(POLL).await;
            }
        }
    };
    // A client that only listens says nothing more, so whatever comes here is its end.
    tokio::select! {
        outcome = send => outcome,
        _ = frames.message() => Outcome::ClientGone,
    }
}

/// No ring yet reads as empty.
fn read(ledger: &Ledger, from: u64) -> io::Result<Chunk> {
    match File::open(ledger.paths().console()) {
        Ok(file) => Reader::new(file).read(from, FRAME_BYTES),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Chunk { offset: from, data: Vec::new() }),
        Err(error) => Err(error),
    }
}
