//! Files in a sandbox, streamed both ways.

use crate::call;
use crate::client::Client;
use crate::error::Error;
use bytes::{BufMut, Bytes, BytesMut};
use pinfold_domain::SandboxId;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::limits;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use wire::write_file_request::Frame;

const READ: &str = "ReadFile";
const WRITE: &str = "WriteFile";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// when it was opened
    pub size_bytes: u64,
    /// permission bits
    pub mode: u32,
}

/// A file that is being read.
#[derive(Debug)]
pub struct FileReader {
    info: FileInfo,
    frames: Streaming<wire::ReadFileResponse>,
    limit: Duration,
}

impl FileReader {
    pub fn info(&self) -> FileInfo {
        self.info
    }

    /// The next piece, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.frames.message().await {
                Ok(Some(wire::ReadFileResponse {
                    frame: Some(wire::read_file_response::Frame::Data(data)),
                })) => {
                    return Ok(Some(data));
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(status) => return Err(Error::from_status(READ, self.limit, &status)),
            }
        }
    }

    /// The whole file; more than `limit` bytes are an error.
    pub async fn bytes(mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        while let Some(data) = self.next().await? {
            content.extend_from_slice(&data);
            if content.len() > limit {
                return Err(Error::TooLarge { what: "the file", limit });
            }
        }
        Ok(content)
    }

    /// Copies the rest into `to`; the number of bytes.
    pub async fn copy_to(mut self, to: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Error> {
        let local = |source| Error::Local { call: READ, act: "write", source };
        let mut count = 0;
        while let Some(data) = self.next().await? {
            to.write_all(&data).await.map_err(local)?;
            count += data.len() as u64;
        }
        to.flush().await.map_err(local)?;
        Ok(count)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// `None`: root
    pub user: Option<String>,
    /// permission bits; `None`: 0644
    pub mode: Option<u32>,
    pub make_directories: bool,
}

impl Client {
    /// Opens a regular file in the guest with the rights of `user` (`None`: root). `path` is absolute.
    pub async fn read_file(
        &self,
        id: SandboxId,
        path: &str,
        user: Option<&str>,
    ) -> Result<FileReader, Error> {
        let body = wire::ReadFileRequest {
            sandbox_id: id.to_string(),
            path: path.to_owned(),
            user: user.unwrap_or_default().to_owned(),
        };
        let limit = self.options.stream_start_timeout;
        let mut client = self.files();
        let open = async {
            let mut frames = call::open(READ, limit, client.read_file(body)).await?;
            let first = frames.message().await.map_err(|status| Error::from_status(READ, limit, &status))?;
            match first.and_then(|first| first.frame) {
                Some(wire::read_file_response::Frame::Info(info)) => {
                    let info = FileInfo { size_bytes: info.size_bytes, mode: info.mode };
                    Ok(FileReader { info, frames, limit })
                }
                _ => Err(Error::Protocol { call: READ, what: "the first frame is not FileInfo".to_owned() }),
            }
        };
        tokio::time::timeout(limit, open).await.unwrap_or(Err(Error::Deadline { call: READ, limit }))
    }

    /// Writes all of `content` to `path`. The file appears whole at the end, or not at all. Returns its size.
    pub async fn write_file(
        &self,
        id: SandboxId,
        path: &str,
        options: WriteOptions,
        content: &mut (impl AsyncRead + Unpin),
    ) -> Result<u64, Error> {
        let (frames, queue) = mpsc::channel(limits::STREAM_QUEUE_FRAMES);
        let start = wire::WriteFileStart {
            sandbox_id: id.to_string(),
            path: path.to_owned(),
            user: options.user.unwrap_or_default(),
            mode: options.mode,
            make_directories: options.make_directories,
        };
        let mut client = self.files();
        let call = client.write_file(ReceiverStream::new(queue));
        let feed = feed(frames, start, content);
        tokio::pin!(call, feed);
        let mut fed = false;
        loop {
            tokio::select! {
                // an answer before the end is a refusal
                answer = &mut call => {
                    let limit = self.options.call_timeout;
                    let answer = answer.map_err(|status| Error::from_status(WRITE, limit, &status))?;
                    return Ok(answer.into_inner().size_bytes);
                }
                result = &mut feed, if !fed => {
                    // without the commit frame the guest keeps what it had
                    result.map_err(|source| Error::Local { call: WRITE, act: "read", source })?;
                    fed = true;
                }
                () = tokio::time::sleep(self.options.call_timeout), if fed => {
                    return Err(Error::Deadline { call: WRITE, limit: self.options.call_timeout });
                }
            }
        }
    }
}

/// Start, content, commit. Ends early without an error when nobody takes the frames: the call has its answer.
async fn feed(
    frames: mpsc::Sender<wire::WriteFileRequest>,
    start: wire::WriteFileStart,
    content: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<()> {
    let send = async |frame| frames.send(wire::WriteFileRequest { frame: Some(frame) }).await.is_ok();
    if !send(Frame::Start(start)).await {
        return Ok(());
    }
    loop {
        let mut buffer = BytesMut::with_capacity(limits::FRAME_BYTES).limit(limits::FRAME_BYTES);
        if content.read_buf(&mut buffer).await? == 0 {
            break;
        }
        if !send(Frame::Data(buffer.into_inner().freeze())).await {
            return Ok(());
        }
    }
    send(Frame::Commit(wire::CommitFile {})).await;
    Ok(())
}
