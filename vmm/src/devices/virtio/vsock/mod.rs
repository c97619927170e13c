//! virtio socket device (virtio 1.2, 5.10): stream sockets of the guest as Unix sockets of the host.
//!
//! ```text
//!   host -> guest   Unix connect, "CONNECT <port>\n"   REQUEST ->   <- RESPONSE   "OK <host port>\n", then bytes
//!   guest -> host   REQUEST to (2, P)   connect to "<prefix>_<P>"   RESPONSE (or RST), then bytes
//! ```
//!
//! `packet` is the wire format, `connection` one stream with its credit and half-closes, `device` the table of
//! connections, `events` what driver and host make happen.

mod connection;
pub mod device;
mod events;
mod host;
pub mod metrics;
pub mod packet;
pub mod persist;

#[cfg(test)]
mod tests;
