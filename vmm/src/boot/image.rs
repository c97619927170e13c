//! A kernel or initramfs file read by position.
//!
//! Several VMMs may hold descriptors of one open file description, so the shared file offset is never used.

use crate::memory::{self, GuestMemory, PAGE_BYTES};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile, VolatileMemory,
    VolatileMemoryError, VolatileSlice,
};

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

    /// Copies `bytes` from `offset` on to guest memory, out of the page cache without a buffer between. Errors when
    /// either side ends before.
    pub fn copy_to(&self, memory: &GuestMemory, offset: u64, bytes: u64, to: GuestAddress) -> io::Result<()> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before its content"));
        }
        let first = offset & !(PAGE_BYTES - 1);
        let mapped = MmapRegionBuilder::<()>::new((offset - first + bytes) as usize)
            .with_file_offset(FileOffset::new(self.file.try_clone()?, first))
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_PRIVATE)
            .build()
            .map_err(io::Error::other)?;
        let source = mapped.get_slice((offset - first) as usize, bytes as usize).map_err(io::Error::other)?;
        let mut done = 0;
        for target in memory.get_slices(to, bytes as usize) {
            let target = target.map_err(io::Error::other)?;
            let part = source.subslice(done, target.len()).map_err(io::Error::other)?;
            part.copy_to_volatile_slice(target);
            done += target.len();
        }
        Ok(())
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

/// Less than this is copied: a mapping costs a structure of the host's kernel.
const MAPPED_BYTES_MIN: u64 = 64 * 1024;

/// An image whose content comes to guest memory by mapping the file there, where both begin at the same place of a page:
/// all machines that boot the file then share the pages that they do not write.
#[derive(Debug)]
pub struct MappedImage<'a> {
    image: Image<'a>,
    memory: &'a GuestMemory,
}

impl<'a> MappedImage<'a> {
    pub fn new(image: Image<'a>, memory: &'a GuestMemory) -> Self {
        Self { image, memory }
    }

    /// Guest address of a place in this process, if it is guest memory.
    fn guest_address(&self, host: u64) -> Option<u64> {
        self.memory.iter().find_map(|region| {
            let offset = host.checked_sub(region.as_ptr() as u64)?;
            (offset < region.len()).then(|| region.start_addr().0 + offset)
        })
    }

    /// Of a transfer of `bytes` to the host address `to`: bytes before the first whole page, bytes of whole pages. None
    /// when it is not worth a mapping or the two do not begin at the same place of a page.
    fn whole_pages(&self, to: u64, bytes: u64) -> Option<(u64, u64)> {
        let position = self.image.position;
        let available = bytes.min(self.image.bytes.saturating_sub(position));
        // bytes to the next page boundary; a position near the end of all numbers has none above it
        let head = position.wrapping_neg() % PAGE_BYTES;
        let whole = available.saturating_sub(head) & !(PAGE_BYTES - 1);
        (to % PAGE_BYTES == position % PAGE_BYTES && whole >= MAPPED_BYTES_MIN).then_some((head, whole))
    }
}

impl Read for MappedImage<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.image.read(buffer)
    }
}

impl Seek for MappedImage<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.image.seek(to)
    }
}

impl ReadVolatile for MappedImage<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let bytes = buffer.len();
        let to = buffer.ptr_guard_mut().as_ptr() as u64;
        let guest = self.guest_address(to);
        let (Some((head, whole)), Some(guest)) = (self.whole_pages(to, bytes as u64), guest) else {
            return self.image.read_volatile(buffer);
        };
        self.image.read_exact_volatile(&mut buffer.subslice(0, head as usize)?)?;
        let start = GuestAddress(guest + head);
        memory::map_over(self.memory, start, whole, self.image.file, self.image.position)
            .map_err(|error| VolatileMemoryError::IOError(io::Error::other(error)))?;
        self.image.position += whole;
        let done = (head + whole) as usize;
        Ok(done + self.image.read_volatile(&mut buffer.subslice(done, bytes - done)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

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

    /// Every transfer of a file of numbered 16-byte records is right, mapped or not.
    #[test]
    fn a_mapped_image_reads_as_the_file() {
        let file = tempfile::tempfile().expect("a temporary file");
        let bytes: Vec<u8> = (0..40_000u128).flat_map(u128::to_le_bytes).collect();
        file.write_all_at(&bytes, 0).expect("written");
        let memory = memory::allocate(96 << 20).expect("memory");
        let begin = 0x100_0000u64;
        for (from, to, length) in [
            (0, begin, 300_000),
            (4096, begin + 0x10_0000, 300_000),
            (4096 + 8, begin + 0x20_0008, 300_001),
            (4096 + 8, begin + 0x30_0000, 300_001),
            (500_000, begin + 0x40_0000 + 500_000 % 4096, 140_000),
            (16, begin + 0x50_0010, 5000),
        ] {
            let mut image = MappedImage::new(Image::new(&file).expect("regular"), &memory);
            image.seek(SeekFrom::Start(from)).expect("seek");
            memory.read_exact_volatile_from(GuestAddress(to), &mut image, length).expect("within the file");
            let mut got = vec![0; length];
            memory.read_slice(&mut got, GuestAddress(to)).expect("in memory");
            assert!(got == bytes[from as usize..from as usize + length], "{from} to {to:#x}");
            assert_eq!(memory.read_obj::<u8>(GuestAddress(to + length as u64)).expect("in memory"), 0);
        }
        let mut past = MappedImage::new(Image::new(&file).expect("regular"), &memory);
        past.seek(SeekFrom::Start(600_000 & !4095)).expect("seek");
        assert!(memory.read_exact_volatile_from(GuestAddress(begin), &mut past, 100_000).is_err());
        let mappings = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        assert!(
            mappings.lines().any(|line| line.contains("rw-p 00001000") && line.contains("(deleted)")),
            "{mappings}"
        );
    }

    #[test]
    fn a_directory_is_no_image() {
        let directory = File::open("/").expect("the root directory");
        assert!(Image::new(&directory).is_err());
    }
}
