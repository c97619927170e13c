//! File frames: the public API's to the guest's and back.

use super::process::check_user;
use super::{WireError, at_most, excerpt, in_range};
use crate::api::v1 as api;
use crate::guest::v1 as guest;
use crate::limits;
use pinfold_domain::SandboxId;

/// A path in the guest: absolute, at most [`limits::PATH_BYTES`], no NUL, no `..` component. Symbolic links are the
/// guest's own affair: they are followed inside it, with the rights of the guest's user.
pub fn check_path(field: &'static str, path: &str) -> Result<(), WireError> {
    at_most(field, path.len(), limits::PATH_BYTES)?;
    let not_allowed = |why| Err(WireError::NotAllowed { field, value: excerpt(path), why });
    if path.contains('\0') {
        return not_allowed("it holds a NUL byte");
    }
    if !path.starts_with('/') {
        return not_allowed("a path is absolute");
    }
    if path.split('/').any(|part| part == "..") {
        return not_allowed("a path has no `..` component");
    }
    Ok(())
}

/// Sandbox and guest request of a read.
pub fn read_to_guest(
    request: api::ReadFileRequest,
) -> Result<(SandboxId, guest::ReadFileRequest), WireError> {
    let sandbox_id = request.sandbox_id.parse()?;
    check_path("path", &request.path)?;
    check_user(&request.user)?;
    Ok((sandbox_id, guest::ReadFileRequest { path: request.path, user: request.user }))
}

pub fn read_from_guest(response: guest::ReadFileResponse) -> api::ReadFileResponse {
    use api::read_file_response::Frame as To;
    use guest::read_file_response::Frame as From;
    let frame = response.frame.map(|frame| match frame {
        From::Info(info) => To::Info(api::FileInfo { size_bytes: info.size_bytes, mode: info.mode }),
        From::Data(data) => To::Data(data),
    });
    api::ReadFileResponse { frame }
}

/// The first frame of a write.
pub fn write_start_to_guest(
    start: api::WriteFileStart,
) -> Result<(SandboxId, guest::WriteFileStart), WireError> {
    let sandbox_id = start.sandbox_id.parse()?;
    check_path("path", &start.path)?;
    check_user(&start.user)?;
    if let Some(mode) = start.mode {
        in_range("mode", u64::from(mode), (0, 0o7777))?;
    }
    let api::WriteFileStart { path, user, mode, make_directories, .. } = start;
    Ok((sandbox_id, guest::WriteFileStart { path, user, mode, make_directories }))
}

/// A later frame of a write.
pub fn write_frame_to_guest(request: api::WriteFileRequest) -> Result<guest::WriteFileRequest, WireError> {
    use api::write_file_request::Frame as From;
    use guest::write_file_request::Frame as To;
    let frame = match request.frame.ok_or(WireError::Missing { field: "frame" })? {
        From::Start(_) => {
            let why = "start comes first, and once";
            return Err(WireError::NotAllowed { field: "frame", value: "start".to_owned(), why });
        }
        From::Data(data) => {
            at_most("data", data.len(), limits::FRAME_BYTES)?;
            To::Data(data)
        }
        From::Commit(_) => To::Commit(guest::CommitFile {}),
    };
    Ok(guest::WriteFileRequest { frame: Some(frame) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_bounded_and_without_parents() {
        for good in ["/", "/etc/hosts", "/a/..b", "/a/...", "/sp ace/ü"] {
            assert_eq!(check_path("path", good), Ok(()), "{good}");
        }
        let long = format!("/{}", "a".repeat(4095));
        for bad in ["", "etc", "./a", "/..", "/a/../b", "/a/..", "/a\0b", &long] {
            let error = check_path("path", bad).unwrap_err().to_string();
            assert!(error.starts_with("path "), "{error}");
            assert!(error.len() < 200);
        }
    }

    #[test]
    fn a_second_start_and_a_large_frame_are_refused() {
        use api::write_file_request::Frame;
        let refused = |frame| write_frame_to_guest(api::WriteFileRequest { frame: Some(frame) }).unwrap_err();
        assert!(refused(Frame::Start(api::WriteFileStart::default())).to_string().contains("once"));
        assert!(refused(Frame::Data(vec![0; limits::FRAME_BYTES + 1].into())).to_string().contains("65536"));
        assert!(write_frame_to_guest(api::WriteFileRequest { frame: None }).is_err());
    }
}
