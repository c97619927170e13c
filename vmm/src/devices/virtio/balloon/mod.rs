//! virtio memory balloon (virtio 1.2, 5.5): how memory that a guest does not need comes back to the host.
//!
//! ```text
//!   host: target --config, interrupt--> driver: takes pages out of use --inflate queue--> given back to the host
//!                                       driver: wants pages again    --deflate queue--> nothing to do: a fault brings them
//!                                       driver: free pages           --reporting queue--> given back, the guest keeps them
//!   host asks for its status             driver: how it does         --statistics queue--> counters
//! ```
//!
//! What the driver says is a hint and never a limit: that is the cgroup's. A guest that lies about its pages loses its
//! own contents at most.

pub mod device;
pub mod events;
pub mod metrics;
pub mod persist;
pub mod release;

#[cfg(test)]
mod tests;
