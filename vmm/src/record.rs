//! The exit record: the last thing that the VMM writes.

use pinfold_vmm_api::control::ExitRecord;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Writes `record` as one line of JSON at the start of `file`.
pub fn write(file: &File, record: &ExitRecord) -> io::Result<()> {
    let mut line = serde_json::to_vec(record).map_err(io::Error::other)?;
    line.push(b'\n');
    file.write_all_at(&line, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_vmm_api::control::ExitReason;

    #[test]
    fn a_record_reads_back() {
        let file = tempfile::tempfile().expect("a temporary file");
        let record = ExitRecord::without_cost(ExitReason::GuestReset, "triple fault on vCPU 0");
        write(&file, &record).expect("written");
        let mut bytes = vec![0; 4096];
        let length = file.read_at(&mut bytes, 0).expect("read");
        let read: ExitRecord = serde_json::from_slice(&bytes[..length]).expect("JSON");
        assert_eq!(read, record);
    }
}
