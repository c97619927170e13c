//! What a VMM and a page-fault handler say to each other: one JSON object per line over a connected Unix stream socket.
//!
//! ```text
//!   VMM                                   handler
//!    |-- Layout, with the userfaultfd ----->|     one message, SCM_RIGHTS
//!    |<------------- HandlerWord::Serving --|     from here on the VMM touches guest memory
//!    |                    ...               |     faults come over the userfaultfd alone
//!    |<------------ HandlerWord::Complete --|     every page is in place: the handler may leave
//! ```
//!
//! A handler that closes the socket before it said [`HandlerWord::Complete`] takes the machine with it: nobody else knows
//! what the missing pages hold. A VMM that closes it has ended.

use serde::{Deserialize, Serialize};
use std::time::Duration;

pub const VERSION: u32 = 1;
/// Longest line of either side, in bytes.
pub const MAX_LINE_BYTES: usize = 4096;
/// Ranges of RAM at most.
pub const MAX_REGIONS: usize = 8;
/// How long each side waits for the other at the beginning.
pub const GREETING_TIME: Duration = Duration::from_secs(10);

/// Where guest memory lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// [`VERSION`]
    pub version: u32,
    /// of the machine's config
    pub id: String,
    pub regions: Vec<Region>,
}

/// A range of RAM. All in bytes and whole pages of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// guest physical address of its first byte
    pub guest_address: u64,
    /// address of its first byte in the VMM process, as faults name it
    pub host_address: u64,
    pub bytes: u64,
    /// where its first byte is in the memory file of the snapshot
    pub file_offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandlerWord {
    Serving,
    Complete,
}
