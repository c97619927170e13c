//! A kernel or initramfs file read by position.
//!
//! Several VMMs may hold descriptors of one open file description, so the shared file offset is never used.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

#[derive(Debug)]
pub struct Image<'a> {
    file: &'a File,
    bytes: u64,
    position: u64,
}

impl<'a> Image<'a> {
    /// Errors when the file is not a regular one or cannot be looked at.
    pub fn new(file: &'a File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Self { file, bytes: metadata.len(), position: 0 })
    }

    pub fn length_bytes(&self) -> u64 {
        self.bytes
    }
}

impl Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position =
            target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek out of range"))?;
        Ok(self.position)
    }
}

impl ReadVolatile for Image<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let offset = libc::off_t::try_from(self.position).map_err(|error| {
            VolatileMemoryError::IOError(io::Error::new(io::ErrorKind::InvalidInput, error))
        })?;
        let guard = buffer.ptr_guard_mut();
        // SAFETY: the guard keeps `buffer.len()` bytes of guest memory valid for writes, and the file is open.
        let read = unsafe { libc::pread(self.file.as_raw_fd(), guard.as_ptr().cast(), buffer.len(), offset) };
        let read =
            usize::try_from(read).map_err(|_| VolatileMemoryError::IOError(io::Error::last_os_error()))?;
        buffer.bitmap().mark_dirty(0, read);
        self.position += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn two_readers_of_one_description_do_not_disturb_each_other() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"0123456789").expect("write");
        let twin = file.try_clone().expect("a second descriptor");
        let (mut a, mut b) = (Image::new(&file).expect("regular"), Image::new(&twin).expect("regular"));
        let mut two = [0; 2];
        a.seek(SeekFrom::Start(4)).expect("seek");
        b.read_exact(&mut two).expect("read");
        assert_eq!(&two, b"01");
        a.read_exact(&mut two).expect("read");
        assert_eq!(&two, b"45");
        assert_eq!(a.seek(SeekFrom::End(-1)).expect("seek"), 9);
        assert!(a.seek(SeekFrom::Current(-10)).is_err());
    }

    #[test]
    fn a_directory_is_no_image() {
        let directory = File::open("/").expect("the root directory");
        assert!(Image::new(&directory).is_err());
    }
}
