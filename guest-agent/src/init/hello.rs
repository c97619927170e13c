//! Tells the host that the guest serves: one length-delimited `Hello` to (CID 2, port 1025).

use crate::console;
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};
use pinfold_proto::guest::v1::Hello;
use pinfold_proto::limits::HELLO_PORT;
use prost::Message;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

const ATTEMPTS: u32 = 40;
/// For one attempt.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Tries for about a minute. A host that does not listen by then has given the guest up.
pub async fn say() {
    let mut pause = FIRST_PAUSE;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match timeout(PATIENCE, send()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    if let Some(error) = last {
        console::say(format_args!("the host does not take the hello: {error}"));
    }
}

async fn send() -> io::Result<()> {
    let mut stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, HELLO_PORT)).await?;
    stream.write_all(&hello().encode_length_delimited_to_vec()).await?;
    stream.shutdown(std::net::Shutdown::Both)
}

fn hello() -> Hello {
    let kernel_release =
        uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Hello {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release,
        uptime_ms: u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX),
    }
}
