//! Writing: into a draft beside the target, which takes the target's place at the commit. Without a commit nothing
//! changes: the draft is removed when it is dropped.
//!
//! The draft's directory is held open, so that it stays the same one however the workload renames things meanwhile.

use super::read::resolve;
use super::{cause, identity, kind_of, wrong_type};
use crate::agent::Agent;
use crate::exec::plan::invalid;
use crate::exec::users::User;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use pinfold_domain::{Cause, Reason};
use pinfold_proto::convert::file::check_path;
use pinfold_proto::guest::v1::{
    WriteFileRequest, WriteFileResponse, WriteFileStart, write_file_request::Frame,
};
use pinfold_proto::limits::FRAME_BYTES;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tonic::Streaming;

const DEFAULT_MODE: u32 = 0o644;
/// Names tried for the draft.
const NAMES: u32 = 8;

/// Serves one write.
pub async fn run(
    agent: Arc<Agent>,
    mut inbound: Streaming<WriteFileRequest>,
) -> Result<WriteFileResponse, Cause> {
    let _slot = agent.file_slot().await?;
    let start = match next(&mut inbound).await? {
        Frame::Start(start) => start,
        Frame::Data(_) | Frame::Commit(_) => return Err(invalid("frame: the first is start")),
    };
    check_path("path", &start.path)?;
    let mode = start.mode.unwrap_or(DEFAULT_MODE);
    if mode > 0o7777 {
        return Err(invalid(format!("mode is {mode:o} octal, outside 0 to 7777")));
    }
    let user = resolve(&agent, &start.user).await?;
    let path = start.path.clone();
    let draft = agent.workers.run(move || Draft::begin(&user, &start)).await??;
    let mut held = Held { draft: Some(draft), agent: agent.clone() };
    let received = receive(&mut held, &mut inbound, &path).await;
    let draft = held.take()?;
    match received {
        Ok(size_bytes) => {
            let committed = agent.workers.run(move || draft.commit(mode)).await?;
            committed.map_err(|error| cause("write", &path, &error))?;
            Ok(WriteFileResponse { size_bytes })
        }
        Err(cause) => {
            // gone before the caller is told
            agent.workers.run(move || drop(draft)).await?;
            Err(cause)
        }
    }
}

/// Fills the draft up to the commit. Returns its size.
async fn receive(
    held: &mut Held,
    inbound: &mut Streaming<WriteFileRequest>,
    path: &str,
) -> Result<u64, Cause> {
    let mut size_bytes = 0;
    loop {
        match next(inbound).await? {
            Frame::Data(data) if data.len() > FRAME_BYTES => {
                let length = data.len();
                return Err(invalid(format!(
                    "data has {length} bytes in a frame, the limit is {FRAME_BYTES}"
                )));
            }
            Frame::Data(data) => {
                size_bytes += data.len() as u64;
                let mut draft = held.take()?;
                let job = move || {
                    let written = draft.file.write_all(&data);
                    (draft, written)
                };
                let (draft, written) = held.agent.workers.run(job).await?;
                held.draft = Some(draft);
                written.map_err(|error| cause("write", path, &error))?;
            }
            Frame::Commit(_) => return Ok(size_bytes),
            Frame::Start(_) => return Err(invalid("frame: start comes first, and once")),
        }
    }
}

async fn next(inbound: &mut Streaming<WriteFileRequest>) -> Result<Frame, Cause> {
    match inbound.message().await {
        Ok(Some(request)) => request.frame.ok_or_else(|| invalid("frame is missing")),
        Ok(None) => Err(invalid("the stream ended without commit: nothing was changed")),
        Err(status) => {
            let message = format!("the caller's stream broke, nothing was changed: {}", status.message());
            Err(Cause::new(Reason::InvalidArgument, message))
        }
    }
}

/// A draft between two steps. It is removed on a worker, however the call ends: a large file takes its time.
struct Held {
    draft: Option<Draft>,
    agent: Arc<Agent>,
}

impl Held {
    fn take(&mut self) -> Result<Draft, Cause> {
        self.draft.take().ok_or_else(|| Cause::new(Reason::Internal, "the file work failed"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(draft) = self.draft.take() {
            self.agent.workers.later(move || drop(draft));
        }
    }
}

struct Draft {
    user: User,
    directory: OwnedFd,
    name: PathBuf,
    target: PathBuf,
    file: File,
    in_place: bool,
}

impl Draft {
    fn begin(user: &User, start: &WriteFileStart) -> Result<Self, Cause> {
        let failed = |error: io::Error| cause("write", &start.path, &error);
        let begun = identity::with(user, || {
            let path = Path::new(&start.path);
            if start.path.ends_with(['/', '.']) && fs::metadata(path).is_ok_and(|found| found.is_dir()) {
                return Err(wrong_type("write", &start.path, "a directory"));
            }
            if start.path.ends_with('/') {
                return Err(invalid("path ends in `/`: a file has a name"));
            }
            if start.make_directories
                && let Some(parent) = path.parent()
            {
                DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
            }
            let (directory, target) = locate(path, &start.path)?;
            let (name, file) = create(&directory).map_err(|errno| failed(errno.into()))?;
            Ok(Self { user: user.clone(), directory, name, target, file, in_place: false })
        });
        begun.map_err(failed)?
    }

    fn commit(mut self, mode: u32) -> io::Result<()> {
        identity::with(&self.user.clone(), || {
            self.file.set_permissions(Permissions::from_mode(mode))?;
            renameat(&self.directory, &self.name, &self.directory, &self.target)?;
            self.in_place = true;
            Ok(())
        })?
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.in_place {
            // what can fail here: the workload removed it first, or its directory
            let _ = unlinkat(&self.directory, &self.name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// The directory of the target, held open, and the target's name in it. A symbolic link is followed: what it names is
/// what is replaced.
fn locate(path: &Path, shown: &str) -> Result<(OwnedFd, PathBuf), Cause> {
    let failed = |error: io::Error| cause("write", shown, &error);
    let resolved = match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => match fs::canonicalize(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(wrong_type("write", shown, kind_of(found.file_type())));
            }
            other => other.map_err(failed)?,
        },
        _ => path.to_owned(),
    };
    let (Some(parent), Some(name)) = (resolved.parent(), resolved.file_name()) else {
        return Err(wrong_type("write", shown, "a directory"));
    };
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(parent)
        .map_err(failed)?
        .into();
    match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) if !is_regular(&found) => Err(wrong_type("write", shown, kind_of_stat(&found))),
        Ok(_) | Err(Errno::ENOENT) => Ok((directory, PathBuf::from(name))),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn create(directory: &OwnedFd) -> nix::Result<(PathBuf, File)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut last = Errno::EEXIST;
    for _ in 0..NAMES {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = PathBuf::from(format!(".pinfold-draft-{}-{number}", std::process::id()));
        match openat(directory, &name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => return Ok((name, File::from(fd))),
            // left over by an agent before this one
            Err(Errno::EEXIST) => last = Errno::EEXIST,
            Err(errno) => return Err(errno),
        }
    }
    Err(last)
}

fn is_regular(found: &FileStat) -> bool {
    found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

fn kind_of_stat(found: &FileStat) -> &'static str {
    match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFBLK | SFlag::S_IFCHR => "a device",
        _ => "of another kind",
    }
}
