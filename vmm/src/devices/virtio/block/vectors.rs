//! Pieces of guest memory as the kernel takes them, and how a transfer that was done in part goes on.

use crate::devices::virtio::chain::Buffer;
use crate::memory::GuestMemory;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

/// What a host that cannot zero a range writes instead, again and again.
static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];
const ZEROES_BYTES: usize = 64 << 10;

/// Pieces of memory for one transfer, at most as many as the kernel takes (IOV_MAX, 1024): a chain has no more than 256
/// buffers, each in two pieces at worst, and [`ZEROES`] goes into the longest write-zeroes 512 times.
#[derive(Debug, Default)]
pub struct Vectors {
    all: Vec<libc::iovec>,
    /// pieces that are done
    done: usize,
}

// SAFETY: the pointers are into guest memory or a constant, and both may be used from any thread. Who has a `Vectors` for a
// transfer holds the guest memory until the transfer has ended (`Slots`).
unsafe impl Send for Vectors {}

impl Vectors {
    /// None when a buffer is not in memory.
    pub fn of(memory: &GuestMemory, buffers: &[Buffer]) -> Option<Self> {
        let mut all = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            for slice in memory.get_slices(buffer.address, buffer.bytes as usize) {
                all.push(vector(&slice.ok()?));
            }
        }
        Some(Self { all, done: 0 })
    }

    /// A source of zeroes.
    pub fn zeroes(bytes: u64) -> Self {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut all = Vec::new();
        while left > 0 {
            let piece = left.min(ZEROES_BYTES);
            // the kernel only reads from it
            all.push(libc::iovec { iov_base: ZEROES.as_ptr().cast_mut().cast(), iov_len: piece });
            left -= piece;
        }
        Self { all, done: 0 }
    }

    pub fn left(&self) -> &[libc::iovec] {
        &self.all[self.done..]
    }

    pub fn bytes_left(&self) -> u64 {
        self.left().iter().map(|vector| vector.iov_len as u64).sum()
    }

    /// Takes `moved` bytes off the front.
    pub fn advance(&mut self, moved: usize) {
        let mut moved = moved;
        while let Some(first) = self.all.get_mut(self.done) {
            if moved < first.iov_len {
                // the piece is longer than `moved`, so the address stays in it
                first.iov_base = first.iov_base.wrapping_byte_add(moved);
                first.iov_len -= moved;
                return;
            }
            moved -= first.iov_len;
            self.done += 1;
        }
    }
}

fn vector(slice: &VolatileSlice<'_>) -> libc::iovec {
    let guard = slice.ptr_guard_mut();
    libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    #[test]
    fn zeroes_of_any_length_are_within_what_the_kernel_takes() {
        for bytes in [0, 512, 64 << 10, (64 << 10) + 512, super::super::request::TRANSFER_BYTES_MAX] {
            let vectors = Vectors::zeroes(bytes);
            assert_eq!(vectors.bytes_left(), bytes);
            assert!(vectors.left().len() <= 1024);
        }
    }

    proptest! {
        /// However a transfer is cut, its pieces are those of the whole, in order, each once.
        #[test]
        fn parts_of_a_transfer_make_the_whole(
            lengths in proptest::collection::vec(0..50u32, 0..8),
            cuts in proptest::collection::vec(0..60usize, 0..20),
        ) {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("memory");
            let mut at = 0;
            let buffers: Vec<_> = lengths
                .iter()
                .map(|bytes| {
                    at += 64;
                    Buffer { address: GuestAddress(at), bytes: *bytes }
                })
                .collect();
            let mut vectors = Vectors::of(&memory, &buffers).expect("in memory");
            let bytes = |all: &[libc::iovec]| -> Vec<usize> {
                all.iter().flat_map(|one| one.iov_base as usize..one.iov_base as usize + one.iov_len).collect()
            };
            let whole = bytes(vectors.left());
            let mut moved = 0;
            for cut in cuts {
                let cut = cut.min(whole.len() - moved);
                vectors.advance(cut);
                moved += cut;
                prop_assert_eq!(bytes(vectors.left()), &whole[moved..]);
                prop_assert_eq!(vectors.bytes_left(), (whole.len() - moved) as u64);
            }
        }
    }
}
