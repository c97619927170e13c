//! The console ring: the last bytes of the guest's serial output, in a file of fixed size.
//!
//! ```text
//!   offset 0   8 bytes  magic "PFCONS01"
//!   offset 8   8 bytes  written: bytes ever written by the guest, little endian
//!   offset 16  ...      ring of [`RING_BYTES`]; byte number n of the stream is at n % RING_BYTES
//! ```
//!
//! The writer stores the data first and `written` after it, so a reader that reads `written`, then the data, then
//! `written` again knows which bytes it may trust. A guest cannot make the file grow.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub const RING_BYTES: u64 = 1024 * 1024;
pub const HEADER_BYTES: u64 = 16;
const MAGIC: &[u8; 8] = b"PFCONS01";

/// The VMM's end.
#[derive(Debug)]
pub struct Writer {
    file: File,
    written: u64,
}

impl Writer {
    /// Starts an empty ring.
    pub fn create(file: File) -> io::Result<Self> {
        file.set_len(HEADER_BYTES + RING_BYTES)?;
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(MAGIC);
        file.write_all_at(&header, 0)?;
        Ok(Self { file, written: 0 })
    }

    /// Appends `data`; what is older than [`RING_BYTES`] is overwritten.
    pub fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let skipped = data.len().saturating_sub(RING_BYTES as usize);
        let mut at = self.written + skipped as u64;
        let mut rest = &data[skipped..];
        while !rest.is_empty() {
            let offset = at % RING_BYTES;
            let now = rest.len().min((RING_BYTES - offset) as usize);
            self.file.write_all_at(&rest[..now], HEADER_BYTES + offset)?;
            rest = &rest[now..];
            at += now as u64;
        }
        self.written += data.len() as u64;
        self.file.write_all_at(&self.written.to_le_bytes(), 8)
    }
}

/// A reader's end. Any number of readers may look at one ring.
#[derive(Debug)]
pub struct Reader {
    file: File,
}

/// A piece of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// stream offset of `data[0]`; larger than asked when older bytes were overwritten
    pub offset: u64,
    pub data: Vec<u8>,
}

impl Reader {
    pub fn new(file: File) -> Self {
        Self { file }
    }

    /// Bytes from stream offset `from` on, at most `limit`. Empty when there is nothing newer, or no ring yet.
    pub fn read(&self, from: u64, limit: usize) -> io::Result<Chunk> {
        let Some(written) = self.written()? else { return Ok(Chunk { offset: from, data: Vec::new() }) };
        let oldest = written.saturating_sub(RING_BYTES);
        let start = from.clamp(oldest, written);
        let wanted = (written - start).min(limit as u64);
        let mut data = vec![0; wanted as usize];
        let mut filled = 0;
        while filled < data.len() {
            let offset = (start + filled as u64) % RING_BYTES;
            let now = (data.len() - filled).min((RING_BYTES - offset) as usize);
            self.file.read_exact_at(&mut data[filled..filled + now], HEADER_BYTES + offset)?;
            filled += now;
        }
        // what the writer overwrote meanwhile is dropped
        let oldest_now = self.written()?.unwrap_or(written).saturating_sub(RING_BYTES);
        let lost = oldest_now.saturating_sub(start).min(data.len() as u64);
        data.drain(..lost as usize);
        Ok(Chunk { offset: start + lost, data })
    }

    fn written(&self) -> io::Result<Option<u64>> {
        let mut header = [0; HEADER_BYTES as usize];
        match self.file.read_exact_at(&mut header, 0) {
            Ok(()) if &header[..8] == MAGIC => {
                let mut count = [0; 8];
                count.copy_from_slice(&header[8..]);
                Ok(Some(u64::from_le_bytes(count)))
            }
            Ok(()) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Writer, Reader) {
        let file = tempfile::tempfile().expect("a temporary file");
        let reader = Reader::new(file.try_clone().expect("a second handle"));
        (Writer::create(file).expect("an empty ring"), reader)
    }

    #[test]
    fn reads_back_from_an_offset() {
        let (mut writer, reader) = pair();
        writer.append(b"hello ").expect("append");
        writer.append(b"world").expect("append");
        assert_eq!(reader.read(6, 100).expect("read"), Chunk { offset: 6, data: b"world".to_vec() });
        assert_eq!(reader.read(11, 100).expect("read").data, b"");
    }

    #[test]
    fn keeps_the_newest_bytes_only() {
        let (mut writer, reader) = pair();
        let block = vec![b'a'; RING_BYTES as usize];
        writer.append(&block).expect("append");
        writer.append(b"0123456789").expect("append");
        let chunk = reader.read(0, usize::MAX).expect("read");
        assert_eq!(chunk.offset, 10);
        assert_eq!(chunk.data.len() as u64, RING_BYTES);
        assert!(chunk.data.ends_with(b"0123456789"));
    }

    #[test]
    fn one_append_larger_than_the_ring_keeps_its_end() {
        let (mut writer, reader) = pair();
        let mut block = vec![b'a'; RING_BYTES as usize + 5];
        block.extend_from_slice(b"end");
        writer.append(&block).expect("append");
        let chunk = reader.read(0, usize::MAX).expect("read");
        assert_eq!(chunk.offset, 8);
        assert!(chunk.data.ends_with(b"aend"));
    }

    #[test]
    fn a_file_that_is_no_ring_reads_as_empty() {
        let reader = Reader::new(tempfile::tempfile().expect("a temporary file"));
        assert_eq!(reader.read(0, 10).expect("read").data, b"");
    }
}
