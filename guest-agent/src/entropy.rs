//! The kernel's random number generator gets what another machine cannot have: random(4).

use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct rand_pool_info` of linux/random.h with room for the most that is given at once.
#[repr(C)]
struct PoolInfo {
    /// bits that are credited
    entropy_count: libc::c_int,
    /// bytes that follow
    buf_size: libc::c_int,
    bytes: [u8; BYTES],
}

const BYTES: usize = crate::agent::limits::ENTROPY_BYTES.1;
/// `_IOW('R', 0x03, int[2])`
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203_u32 as libc::Ioctl;
/// `_IO('R', 0x07)`
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Mixes `random` in and makes every later number depend on it. Takes at most [`BYTES`]; needs CAP_SYS_ADMIN.
pub fn add(random: &[u8]) -> io::Result<()> {
    let too_many = || io::Error::new(io::ErrorKind::InvalidInput, "more bytes than fit");
    let mut pool = PoolInfo {
        // at most BYTES, so both fit
        entropy_count: (random.len() * 8) as libc::c_int,
        buf_size: random.len() as libc::c_int,
        bytes: [0; BYTES],
    };
    pool.bytes.get_mut(..random.len()).ok_or_else(too_many)?.copy_from_slice(random);
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the descriptor is open, and RNDADDENTROPY reads a rand_pool_info with `buf_size` bytes behind it, which
    // `pool` has.
    let added = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const pool) };
    Errno::result(added)?;
    // SAFETY: the descriptor is open, and RNDRESEEDCRNG has no argument.
    let reseeded = unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) };
    Errno::result(reseeded)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_it() {
        assert_eq!(add(&[1; BYTES + 1]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        match add(&[7; 32]) {
            Ok(()) => {}
            // only the machine's root may: this is as far as the test comes elsewhere
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }
}
