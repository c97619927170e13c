//! virtio block device (virtio 1.2, 5.2) over a host file.
//!
//! ```text
//!   queue --request--> slot --engine: io_uring or a worker thread--> done --> status byte, used ring
//!            |                                                        |
//!            +-- what needs no disk: answered at once                 +-- in part: the rest again
//! ```
//!
//! No request keeps the device thread: what may wait for a disk is done by the kernel's workers or by a thread. There are as
//! many requests on the way as there are slots; more stay in the queue.

pub mod device;
pub mod engine;
pub mod events;
pub mod metrics;
pub mod persist;
pub mod request;
mod slots;
mod vectors;

#[cfg(test)]
mod tests;
