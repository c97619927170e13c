//! The life of a sandbox.
//!
//! ```text
//!             place            accept            ready
//!   Pending ---------> Assigned ------> Starting ------> Running
//!      ^  |               |                |                |
//!      |  |   refuse      |                |                |  stop
//!      +--|---------------+                |                v
//!         |  stop           stop           |  stop      Stopping
//!         |                  |             +------------>   |  end
//!         v                  +-------------------------->   v
//!      Stopped <---------------------------------------- Stopped
//!
//!   fail:  Assigned, Starting, Running, Stopping -> Failed      lose: the same -> Lost
//!
//!             pause            paused            resume              ready
//!   Running ---------> Pausing ------> Paused ----------> Resuming --------> Running
//!      ^                  |               ^                   |
//!      |      ready       |               |      paused       |
//!      +------------------+               +-------------------+
//!       the node could not save it         the node could not bring it back yet
//! ```
//!
//! Stopped, Failed and Lost are final. There is no wildcard arm below: a new phase does not compile until every
//! transition has decided about it.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// accepted and stored, waits for a node
    Pending,
    /// a node was chosen and told
    Assigned,
    /// the node brings it up
    Starting,
    Running,
    Pausing,
    Paused,
    Resuming,
    Stopping,
    Stopped,
    Failed,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transition {
    Place,
    /// the node would not take it: back to the queue
    Refuse,
    Accept,
    Ready,
    Pause,
    Paused,
    Resume,
    /// a stop was asked for
    Stop,
    /// it ended as asked, or its time was over
    End,
    Fail,
    Lose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {phase} cannot {transition:?}")]
pub struct IllegalTransition {
    pub phase: Phase,
    pub transition: Transition,
}

impl Phase {
    pub const ALL: [Self; 11] = [
        Self::Pending,
        Self::Assigned,
        Self::Starting,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Lost,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }

    /// No transition leads out.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Lost)
    }

    /// A node holds room for it.
    pub fn holds_room(self) -> bool {
        !self.is_final() && self != Self::Pending
    }

    /// The phase after `transition`.
    pub fn next(self, transition: Transition) -> Result<Self, IllegalTransition> {
        use Phase as P;
        use Transition as T;
        let next = match (self, transition) {
            (P::Pending, T::Place) => P::Assigned,
            (P::Assigned, T::Refuse) => P::Pending,
            (P::Assigned, T::Accept) => P::Starting,
            // a report may be lost, the next one tells all
            (P::Assigned | P::Starting | P::Resuming, T::Ready) => P::Running,
            // it could not be saved, and goes on
            (P::Pausing, T::Ready) => P::Running,
            (P::Running, T::Pause) => P::Pausing,
            (P::Pausing, T::Paused) => P::Paused,
            // it could not be brought back now, and is still saved
            (P::Resuming, T::Paused) => P::Paused,
            (P::Paused, T::Resume) => P::Resuming,
            (
                P::Assigned | P::Starting | P::Running | P::Pausing | P::Paused | P::Resuming | P::Stopping,
                T::Stop,
            ) => P::Stopping,
            // nothing runs yet: there is nothing to wait for
            (P::Pending, T::Stop | T::End) => P::Stopped,
            (
                P::Assigned | P::Starting | P::Running | P::Pausing | P::Paused | P::Resuming | P::Stopping,
                T::End,
            ) => P::Stopped,
            (
                P::Pending
                | P::Assigned
                | P::Starting
                | P::Running
                | P::Pausing
                | P::Paused
                | P::Resuming
                | P::Stopping,
                T::Fail,
            ) => P::Failed,
            (
                P::Assigned | P::Starting | P::Running | P::Pausing | P::Paused | P::Resuming | P::Stopping,
                T::Lose,
            ) => P::Lost,
            (phase, transition) => return Err(IllegalTransition { phase, transition }),
        };
        Ok(next)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Phase as P;
    use Transition as T;

    const TRANSITIONS: [Transition; 11] = [
        T::Place,
        T::Refuse,
        T::Accept,
        T::Ready,
        T::Pause,
        T::Paused,
        T::Resume,
        T::Stop,
        T::End,
        T::Fail,
        T::Lose,
    ];

    /// Every legal pair, written out by hand; all others must be refused.
    const LEGAL: &[(Phase, Transition, Phase)] = &[
        (P::Pending, T::Place, P::Assigned),
        (P::Pending, T::Stop, P::Stopped),
        (P::Pending, T::End, P::Stopped),
        (P::Pending, T::Fail, P::Failed),
        (P::Assigned, T::Refuse, P::Pending),
        (P::Assigned, T::Accept, P::Starting),
        (P::Assigned, T::Ready, P::Running),
        (P::Assigned, T::Stop, P::Stopping),
        (P::Assigned, T::End, P::Stopped),
        (P::Assigned, T::Fail, P::Failed),
        (P::Assigned, T::Lose, P::Lost),
        (P::Starting, T::Ready, P::Running),
        (P::Starting, T::Stop, P::Stopping),
        (P::Starting, T::End, P::Stopped),
        (P::Starting, T::Fail, P::Failed),
        (P::Starting, T::Lose, P::Lost),
        (P::Running, T::Pause, P::Pausing),
        (P::Running, T::Stop, P::Stopping),
        (P::Running, T::End, P::Stopped),
        (P::Running, T::Fail, P::Failed),
        (P::Running, T::Lose, P::Lost),
        (P::Pausing, T::Paused, P::Paused),
        (P::Pausing, T::Ready, P::Running),
        (P::Pausing, T::Stop, P::Stopping),
        (P::Pausing, T::End, P::Stopped),
        (P::Pausing, T::Fail, P::Failed),
        (P::Pausing, T::Lose, P::Lost),
        (P::Paused, T::Resume, P::Resuming),
        (P::Paused, T::Stop, P::Stopping),
        (P::Paused, T::End, P::Stopped),
        (P::Paused, T::Fail, P::Failed),
        (P::Paused, T::Lose, P::Lost),
        (P::Resuming, T::Ready, P::Running),
        (P::Resuming, T::Paused, P::Paused),
        (P::Resuming, T::Stop, P::Stopping),
        (P::Resuming, T::End, P::Stopped),
        (P::Resuming, T::Fail, P::Failed),
        (P::Resuming, T::Lose, P::Lost),
        (P::Stopping, T::Stop, P::Stopping),
        (P::Stopping, T::End, P::Stopped),
        (P::Stopping, T::Fail, P::Failed),
        (P::Stopping, T::Lose, P::Lost),
    ];

    #[test]
    fn the_table_is_complete() {
        for phase in Phase::ALL {
            for transition in TRANSITIONS {
                let expected =
                    LEGAL.iter().find(|row| (row.0, row.1) == (phase, transition)).map(|row| row.2);
                assert_eq!(phase.next(transition).ok(), expected, "{phase} {transition:?}");
            }
        }
    }

    #[test]
    fn nothing_leads_out_of_a_final_phase() {
        for phase in Phase::ALL.into_iter().filter(|p| p.is_final()) {
            assert!(TRANSITIONS.into_iter().all(|t| phase.next(t).is_err()));
            assert!(!phase.holds_room());
        }
    }
}
