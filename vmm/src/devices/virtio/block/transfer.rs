//! Between guest memory and the disk file without a copy.

use crate::devices::virtio::chain::Buffer;
use crate::memory::GuestMemory;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

/// Buffers given to one system call; the kernel takes 1024 at most.
const VECTORS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// from the file to guest memory
    Read,
    /// from guest memory to the file
    Write,
}

/// Moves all of `buffers` to or from byte `offset` of the file on.
///
/// Errors: what the kernel says; unexpected end when the file became shorter; invalid input when a buffer is not
/// in memory.
pub fn transfer(
    file: &File,
    memory: &GuestMemory,
    buffers: &[Buffer],
    offset: u64,
    direction: Direction,
) -> io::Result<()> {
    let mut slices = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        for slice in memory.get_slices(buffer.address, buffer.bytes as usize) {
            slices.push(slice.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?);
        }
    }
    let mut at = offset;
    let mut first = 0;
    while first < slices.len() {
        let batch = &slices[first..slices.len().min(first + VECTORS)];
        let moved = match once(file, batch, at, direction) {
            Ok(0) if batch.iter().all(VolatileSlice::is_empty) => {
                first += batch.len();
                continue;
            }
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        at += moved as u64;
        first += skip(&mut slices[first..], moved);
    }
    Ok(())
}

/// Takes `moved` bytes off the front; returns how many slices are done.
fn skip(slices: &mut [VolatileSlice<'_>], moved: usize) -> usize {
    let mut left = moved;
    for (index, slice) in slices.iter_mut().enumerate() {
        if left < slice.len() {
            *slice = slice.offset(left).expect("left is less than the slice's length");
            return index;
        }
        left -= slice.len();
    }
    slices.len()
}

fn once(file: &File, slices: &[VolatileSlice<'_>], offset: u64, direction: Direction) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let count = vectors.len() as libc::c_int;
    let moved = match direction {
        // SAFETY: each vector is a piece of guest memory that its guard keeps valid for writes during the call.
        Direction::Read => unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) },
        // SAFETY: each vector is a piece of guest memory that its guard keeps valid for reads during the call.
        Direction::Write => unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset) },
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}
