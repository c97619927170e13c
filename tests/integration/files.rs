//! Files and consoles through the relay.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::file_service_client::FileServiceClient;
use pinfold_proto::reasons;
use pinfold_sdk::{Code, WriteOptions};
use pinfold_tests::harness::soon;

#[tokio::test]
async fn what_is_written_is_read_back() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let mut from = &content[..];
    let written = fleet.client.write_file(id, "/data/x", WriteOptions::default(), &mut from);
    assert_eq!(soon("an answer", written).await.unwrap(), content.len() as u64);
    let reader = soon("a file", fleet.client.read_file(id, "/data/x", None)).await.unwrap();
    assert_eq!(reader.info().size_bytes, content.len() as u64);
    assert_eq!(soon("the content", reader.bytes(1 << 20)).await.unwrap(), content);
}

#[tokio::test]
async fn refusals_of_the_guest_come_through() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let missing = soon("a refusal", fleet.client.read_file(id, "/nope", None)).await.map(drop);
    assert_eq!(reason(missing), Reason::FileNotFound);
    // the guest says no while the content is still coming
    let content = vec![0_u8; 20 << 20];
    let mut from = &content[..];
    let full = fleet.client.write_file(id, "/full/x", WriteOptions::default(), &mut from);
    let error = soon("a refusal", full).await.unwrap_err();
    assert_eq!((error.cause().reason, error.code()), (Reason::DiskFull, Code::ResourceExhausted));
}

#[tokio::test]
async fn without_a_commit_nothing_is_written() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let start =
        wire::WriteFileStart { sandbox_id: id.to_string(), path: "/half".into(), ..Default::default() };
    let frames =
        [wire::write_file_request::Frame::Start(start), wire::write_file_request::Frame::Data("abc".into())];
    let frames = frames.map(|frame| wire::WriteFileRequest { frame: Some(frame) });
    let mut raw = FileServiceClient::new(fleet.scheduler.channel().await);
    let status = soon("a refusal", raw.write_file(futures::stream::iter(frames))).await.unwrap_err();
    assert_eq!(reasons::cause(&status).reason, Reason::InvalidArgument);
    assert!(status.message().contains("without commit"), "{}", status.message());
    fleet.agent.until_guest("a cancellation", |stats| stats.cancelled == 1).await;
    let half = soon("a refusal", fleet.client.read_file(id, "/half", None)).await.map(drop);
    assert_eq!(reason(half), Reason::FileNotFound);
}

#[tokio::test]
async fn the_console_is_streamed_from_an_offset_and_followed() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let mut logs = soon("logs", fleet.client.logs(id, 11, false)).await.unwrap();
    let chunk = soon("a chunk", logs.next()).await.unwrap().unwrap();
    assert_eq!((chunk.offset, chunk.data), (11, format!("{id}\n").into_bytes().into()));
    assert_eq!(soon("the end", logs.next()).await.unwrap(), None);
    let mut follow = soon("logs", fleet.client.logs(id, 0, true)).await.unwrap();
    assert!(soon("a chunk", follow.next()).await.unwrap().is_some());
    drop(follow);
    fleet.agent.until_guest("a cancellation", |stats| stats.cancelled == 1).await;
}

#[tokio::test]
async fn the_console_of_a_sandbox_that_its_node_has_dropped_is_refused_with_words() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    fleet.client.stop(id, None).await.unwrap();
    fleet.agent.until("a forget", |stats| stats.forgotten >= 1).await;
    let mut logs = soon("logs", fleet.client.logs(id, 0, false)).await.unwrap();
    let error = soon("a refusal", logs.next()).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::SandboxEnded);
    assert!(error.to_string().contains("no longer has the console"), "{error}");
}
