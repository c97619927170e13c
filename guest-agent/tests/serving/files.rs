//! Files: content, rights, kinds, and that nothing changes without a commit.

use crate::harness::{Client, PATIENCE, connect};
use pinfold_proto::guest::v1::read_file_response::Frame as Answer;
use pinfold_proto::guest::v1::write_file_request::Frame;
use pinfold_proto::guest::v1::{CommitFile, ReadFileRequest, WriteFileRequest, WriteFileStart};
use pinfold_proto::limits::FRAME_BYTES;
use pinfold_proto::reasons;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use tonic::Status;

async fn read(client: &mut Client, path: &str, user: &str) -> Result<(u64, u32, Vec<u8>), Status> {
    let request = ReadFileRequest { path: path.to_owned(), user: user.to_owned() };
    let mut answers = client.read_file(request).await?.into_inner();
    let (mut info, mut content) = (None, Vec::new());
    while let Some(answer) = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap()? {
        match answer.frame.unwrap() {
            Answer::Info(first) => info = Some(first),
            Answer::Data(data) => {
                assert!(info.is_some() && data.len() <= FRAME_BYTES);
                content.extend_from_slice(&data);
            }
        }
    }
    let info = info.unwrap();
    Ok((info.size_bytes, info.mode, content))
}

async fn write(
    client: &mut Client,
    start: WriteFileStart,
    content: &[u8],
    commit: bool,
) -> Result<u64, Status> {
    let mut frames = vec![Frame::Start(start)];
    frames.extend(content.chunks(FRAME_BYTES).map(|piece| Frame::Data(piece.to_vec().into())));
    frames.extend(commit.then_some(Frame::Commit(CommitFile {})));
    let frames = frames.into_iter().map(|frame| WriteFileRequest { frame: Some(frame) });
    let answer = client.write_file(tokio_stream::iter(frames.collect::<Vec<_>>())).await?;
    Ok(answer.into_inner().size_bytes)
}

fn to(path: &Path) -> WriteFileStart {
    WriteFileStart { path: path.to_str().unwrap().to_owned(), ..Default::default() }
}

fn reason(status: &Status) -> &'static str {
    reasons::cause(status).reason.as_str()
}

fn names_in(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn what_was_written_is_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let content: Vec<u8> = (0..3 * FRAME_BYTES + 17).map(|n| (n % 251) as u8).collect();
    let mut client = connect().await;
    let start = WriteFileStart { mode: Some(0o640), ..to(&path) };
    assert_eq!(write(&mut client, start, &content, true).await.unwrap(), content.len() as u64);
    let (size, mode, back) = read(&mut client, path.to_str().unwrap(), "").await.unwrap();
    assert_eq!((size, mode), (content.len() as u64, 0o640));
    assert!(back == content);
    assert_eq!(names_in(directory.path()), ["file"]);
    write(&mut client, to(&path), b"", true).await.unwrap();
    assert_eq!(read(&mut client, path.to_str().unwrap(), "").await.unwrap(), (0, 0o644, vec![]));
}

#[tokio::test]
async fn without_a_commit_nothing_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "old").unwrap();
    let status = write(&mut connect().await, to(&path), &[9; 200_000], false).await.unwrap_err();
    assert!(status.message().contains("without commit"), "{}", status.message());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names_in(directory.path()), ["file"]);
}

#[tokio::test]
async fn a_writer_that_goes_away_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let mut client = connect().await;
    let (frames, receiver) = tokio::sync::mpsc::channel(1);
    let call = tokio::spawn(async move {
        client.write_file(tokio_stream::wrappers::ReceiverStream::new(receiver)).await
    });
    frames.send(WriteFileRequest { frame: Some(Frame::Start(to(&path))) }).await.unwrap();
    frames.send(WriteFileRequest { frame: Some(Frame::Data(vec![1; 1000].into())) }).await.unwrap();
    crate::harness::until("the draft is there", || names_in(directory.path()).len() == 1).await;
    call.abort();
    crate::harness::until("the draft is gone", || names_in(directory.path()).is_empty()).await;
}

#[tokio::test]
async fn bad_paths_are_refused_by_name() {
    let mut client = connect().await;
    for bad in ["", "etc/passwd", "/etc/../etc/passwd", "/a\0b", &format!("/{}", "x/".repeat(3000))] {
        let status = read(&mut client, bad, "").await.unwrap_err();
        assert_eq!(reason(&status), "InvalidArgument", "{bad:?}");
        assert!(status.message().contains("path"), "{}", status.message());
        let start = WriteFileStart { path: bad.to_owned(), ..Default::default() };
        assert_eq!(reason(&write(&mut client, start, b"x", true).await.unwrap_err()), "InvalidArgument");
    }
}

#[tokio::test]
async fn what_is_missing_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("a/b/file");
    let mut client = connect().await;
    assert_eq!(reason(&read(&mut client, below.to_str().unwrap(), "").await.unwrap_err()), "FileNotFound");
    assert_eq!(reason(&write(&mut client, to(&below), b"x", true).await.unwrap_err()), "FileNotFound");
    let start = WriteFileStart { make_directories: true, ..to(&below) };
    write(&mut client, start, b"x", true).await.unwrap();
    assert_eq!(fs::read(&below).unwrap(), b"x");
}

#[tokio::test]
async fn only_regular_files_are_read_and_written() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let dangling = directory.path().join("dangling");
    std::os::unix::fs::symlink("/no/such/target", &dangling).unwrap();
    let mut client = connect().await;
    let (folder, pipe) = (directory.path().to_str().unwrap(), fifo.to_str().unwrap());
    for (path, kind) in
        [(folder, "a directory"), (pipe, "a FIFO"), ("/dev/null", "a device"), ("/", "a directory")]
    {
        let status = read(&mut client, path, "").await.unwrap_err();
        assert_eq!(reason(&status), "FileWrongType");
        assert!(status.message().contains(kind), "{}", status.message());
        let status = write(&mut client, to(Path::new(path)), b"x", true).await.unwrap_err();
        assert_eq!(reason(&status), "FileWrongType");
        assert!(status.message().contains(kind), "{}", status.message());
    }
    assert_eq!(reason(&write(&mut client, to(&dangling), b"x", true).await.unwrap_err()), "FileWrongType");
    assert_eq!(reason(&read(&mut client, "/etc/passwd/below", "").await.unwrap_err()), "FileWrongType");
    assert_eq!(names_in(directory.path()).len(), 2);
}

#[tokio::test]
async fn a_symbolic_link_is_followed_to_what_it_names() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    fs::write(&real, "old").unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    write(&mut connect().await, to(&link), b"new", true).await.unwrap();
    assert_eq!(fs::read(&real).unwrap(), b"new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[tokio::test]
async fn a_file_of_proc_is_read_to_its_end() {
    let (size, _, content) = read(&mut connect().await, "/proc/version", "").await.unwrap();
    assert_eq!(size, 0);
    assert!(content.starts_with(b"Linux version"));
}

#[tokio::test]
async fn the_rights_are_the_users() {
    if !nix::unistd::Uid::effective().is_root() {
        // another identity needs root; the guest's agent always is
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "s").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut client = connect().await;
    let status = read(&mut client, secret.to_str().unwrap(), "nobody").await.unwrap_err();
    assert_eq!(reason(&status), "FilePermission");
    let as_nobody = |path: &Path| WriteFileStart { user: "nobody".into(), ..to(path) };
    let status = write(&mut client, as_nobody(&secret), b"x", true).await.unwrap_err();
    assert_eq!(reason(&status), "FilePermission");
    assert_eq!(fs::read(&secret).unwrap(), b"s");
    // the next call of the same thread is root's again
    assert_eq!(read(&mut client, secret.to_str().unwrap(), "root").await.unwrap().2, b"s");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let own = directory.path().join("own");
    write(&mut client, as_nobody(&own), b"mine", true).await.unwrap();
    assert_eq!(fs::metadata(&own).unwrap().uid(), 65534);
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_draft_goes() {
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path();
    let flags = nix::mount::MsFlags::empty();
    if nix::mount::mount(Some("tmpfs"), small, Some("tmpfs"), flags, Some("size=256k")).is_err() {
        // mounting needs root; the guest's own disk is filled in the system tests
        return;
    }
    let status = write(&mut connect().await, to(&small.join("big")), &[1; 1 << 20], true).await.unwrap_err();
    let left = names_in(small);
    nix::mount::umount(small).unwrap();
    assert_eq!(reason(&status), "DiskFull");
    assert!(left.is_empty(), "{left:?}");
}
