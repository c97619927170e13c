//! virtio network device (virtio 1.2, 5.1) over a tap that the host has set up.
//!
//! ```text
//!   transmit queue --> header and source address checked on a copy --> gate --> tap
//!   receive queue  <-- frame written into its buffers by the kernel <-- gate <-- tap
//! ```
//!
//! Frames are not copied: the kernel reads and writes guest memory. Of a frame that is sent, the first 26 bytes are: what
//! was checked is what goes out. Frames wait in the tap while the guest has no buffers, and in the guest while the host
//! takes none.

pub mod device;
pub mod events;
pub mod header;
pub mod metrics;
pub mod persist;
mod receive;
pub mod tap;
mod transmit;

#[cfg(test)]
mod tests;
