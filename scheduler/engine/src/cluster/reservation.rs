//! The room that one sandbox holds on one node, and what the node was last heard to say of it.
//!
//! ```text
//!   reserve             confirm
//!  --------> Reserved ----------> Confirmed
//!               |                     |
//!               +------- release -----+-----> gone
//! ```
//!
//! Room is reserved before the node is told and released when the node says that nothing is left, when the assignment
//! is withdrawn, or when the node is given up. In between it shrinks when a sandbox is paused and grows when it is resumed. The node keeps its own account and has the last word.

use pinfold_domain::{Epoch, Resources, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReservationState {
    /// the node was told, or will be when it has a session
    Reserved,
    /// the node has said that it holds this epoch
    Confirmed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub epoch: Epoch,
    pub resources: Resources,
    pub state: ReservationState,
    /// when the node was last told, or when a restart began to wait for it
    pub since: Timestamp,
    /// highest sequence seen in this session
    pub sequence: Option<u64>,
    /// first list in a row that lacked it
    pub missing_since: Option<Timestamp>,
}

impl Reservation {
    pub fn new(epoch: Epoch, resources: Resources, since: Timestamp) -> Self {
        let state = ReservationState::Reserved;
        Self { epoch, resources, state, since, sequence: None, missing_since: None }
    }

    pub fn is_confirmed(&self) -> bool {
        self.state == ReservationState::Confirmed
    }
}
