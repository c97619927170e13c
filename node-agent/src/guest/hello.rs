//! The guest's first word: one length-delimited `Hello` on a connection to (CID 2, port 1025), which the VMM turns into a
//! connection to a socket in its jail.

use super::{GuestError, HelloFuture};
use crate::host::paths::remove_file;
use crate::host::{Act, HostError};
use crate::machine::launch::give;
use bytes::Buf;
use pinfold_proto::guest::v1::Hello;
use prost::Message;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};

/// Two short strings and a number.
const MAX_HELLO_BYTES: u64 = 4096;
/// From the guest's connect to the end of its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Listens at `path`, which only `uid` may connect to.
pub fn listen(path: &Path, uid: u32) -> Result<HelloFuture, HostError> {
    remove_file(path)?;
    let listener = UnixListener::bind(path).act(|| format!("listen on {}", path.display()))?;
    give(path, uid)?;
    Ok(Box::pin(first_hello(listener)))
}

/// The first connection that says what a hello is; others are dropped. The caller bounds the wait.
async fn first_hello(listener: UnixListener) -> Result<Hello, GuestError> {
    loop {
        let (stream, _) = listener.accept().await.map_err(|error| GuestError::Link(error.to_string()))?;
        match tokio::time::timeout(HELLO_TIMEOUT, read(stream)).await {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) | Err(_) => tracing::warn!("a guest connected to say hello and did not"),
        }
    }
}

async fn read(stream: UnixStream) -> Option<Hello> {
    let mut bytes = Vec::new();
    stream.take(MAX_HELLO_BYTES).read_to_end(&mut bytes).await.ok()?;
    let mut bytes = bytes.as_slice();
    let hello = Hello::decode_length_delimited(&mut bytes).ok()?;
    (!bytes.has_remaining()).then_some(hello)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn the_first_true_hello_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock_1025");
        let listener = UnixListener::bind(&path).unwrap();
        let hello = Hello { agent_version: "1".into(), kernel_release: "6.1".into(), uptime_ms: 7 };
        let sender = async {
            for bytes in [b"\x7fgarbage".to_vec(), vec![0xff; 10_000], hello.encode_length_delimited_to_vec()]
            {
                let mut stream = UnixStream::connect(&path).await.unwrap();
                // the listener may have heard enough before all is written
                let _ = stream.write_all(&bytes).await;
            }
        };
        let (received, ()) = tokio::join!(first_hello(listener), sender);
        assert_eq!(received.unwrap(), hello);
    }
}
