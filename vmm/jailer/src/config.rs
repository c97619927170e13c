//! Reads and checks the configuration before anything is changed.

use crate::jail::JailError;
use pinfold_vmm_api::JailConfig;
use pinfold_vmm_api::jail::limits::MAX_CONFIG_BYTES;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{FromRawFd, RawFd};

/// `--config-fd <n>` and nothing else. The descriptor is read from its start and closed.
pub fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<JailConfig, JailError> {
    let usage = || JailError::Usage;
    if arguments.next().as_deref() != Some("--config-fd") {
        return Err(usage());
    }
    let number: RawFd = arguments.next().and_then(|text| text.parse().ok()).ok_or_else(usage)?;
    if arguments.next().is_some() || number < 3 {
        return Err(usage());
    }
    // SAFETY: F_GETFD only asks whether the number is an open descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(JailError::Config(format!("--config-fd {number} is not open")));
    }
    // SAFETY: the descriptor is open (checked above) and nothing else in this process owns it.
    parse(unsafe { File::from_raw_fd(number) })
}

fn parse(mut file: File) -> Result<JailConfig, JailError> {
    let failed = |error: &dyn std::fmt::Display| JailError::Config(error.to_string());
    // a memfd that was just written is at its end; a pipe cannot seek and need not
    let _ = file.rewind();
    let mut text = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(|e| failed(&e))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(JailError::Config(format!("it is longer than {MAX_CONFIG_BYTES} bytes")));
    }
    let config: JailConfig = serde_json::from_slice(&text).map_err(|e| failed(&e))?;
    config.validate().map_err(|e| failed(&e))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(text).expect("write");
        file
    }

    #[test]
    fn arguments_other_than_one_descriptor_are_refused() {
        for bad in [&[][..], &["--config-fd"], &["--config-fd", "x"], &["--config-fd", "1"], &["--help", "3"]]
        {
            let arguments = bad.iter().map(|text| (*text).to_owned());
            assert!(matches!(from_arguments(arguments), Err(JailError::Usage)), "{bad:?}");
        }
        let closed = ["--config-fd", "987654"].map(str::to_owned);
        let error = from_arguments(closed.into_iter()).expect_err("not open").to_string();
        assert!(error.contains("987654 is not open"), "{error}");
    }

    #[test]
    fn what_is_no_config_is_refused() {
        let unknown = br#"{"id":"a","root":"/a","uid":1,"gid":1,"cgroup":"/b","limits":{"open_files":64,
            "file_size_bytes":1},"executable":9,"arguments":[],"passed":[],"extra":1}"#;
        let error = parse(file(unknown)).expect_err("unknown field").to_string();
        assert!(error.contains("extra"), "{error}");
        let error =
            parse(file(&vec![b' '; MAX_CONFIG_BYTES as usize + 1])).expect_err("too long").to_string();
        assert!(error.contains("longer than 65536 bytes"), "{error}");
        let root = br#"{"id":"a","root":"/a","uid":0,"gid":1,"cgroup":"/b","limits":{"open_files":64,
            "file_size_bytes":1},"executable":9,"arguments":[],"passed":[]}"#;
        let error = parse(file(root)).expect_err("root").to_string();
        assert!(error.contains("uid is 0"), "{error}");
    }
}
