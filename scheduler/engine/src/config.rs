//! The engine's bounds and time limits.

use pinfold_domain::Millis;
use serde::{Deserialize, Serialize};

/// Which of the nodes that fit is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementPolicy {
    /// The node that is left with the least room, so that whole nodes stay free for large sandboxes.
    #[default]
    Pack,
    /// The node that is used the least, so that the loss of a node takes few sandboxes with it.
    Spread,
}

/// All values have defaults; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    pub placement: PlacementPolicy,
    /// sandboxes that may wait for room; a create beyond it is refused with `QueueFull`
    pub queue_length: usize,
    /// nodes that may be known at once; the session of one more is closed
    pub nodes: usize,
    /// assignments that a sandbox gets before it fails with `NodeRefused`
    pub assignment_attempts: u64,
    /// an assignment that the node has not accepted after this is given to another
    #[serde(rename = "assignment_timeout_ms")]
    pub assignment_timeout: Millis,
    /// assignments of a sandbox that may be refused for want of room besides; the wait before the next doubles with each, up to
    /// 16 times the first
    pub room_refusals: u64,
    /// how long a node that refused a sandbox is not asked again for it
    #[serde(rename = "refusal_backoff_ms")]
    pub refusal_backoff: Millis,
    /// added to a spec's start timeout, which the node enforces first
    #[serde(rename = "start_margin_ms")]
    pub start_margin: Millis,
    /// for stops that no caller gave a grace for
    #[serde(rename = "stop_grace_ms")]
    pub stop_grace: Millis,
    /// A sandbox that is still being saved so long after its pause was ordered is ended. Its node gives up one save after
    /// 600 s, takes up to 300 s to let it go on, and may have others to do before.
    #[serde(rename = "pause_timeout_ms")]
    pub pause_timeout: Millis,
    /// how long a sandbox may be missing from its node's lists before it counts as forgotten
    #[serde(rename = "forgotten_after_ms")]
    pub forgotten_after: Millis,
    /// silence after which a node gets nothing new
    #[serde(rename = "suspect_after_ms")]
    pub suspect_after: Millis,
    /// silence after which a node's session is closed, so that it dials again
    #[serde(rename = "disconnected_after_ms")]
    pub disconnected_after: Millis,
    /// silence after which a node's sandboxes are lost
    #[serde(rename = "lost_after_ms")]
    pub lost_after: Millis,
    /// nodes, in percent of the fleet and at least one, that may be given up within a minute: a scheduler that is cut off
    /// sees a dead fleet
    pub lost_percent_per_minute: u64,
    /// how long a lost node without sandboxes is still listed
    #[serde(rename = "lost_node_retention_ms")]
    pub lost_node_retention: Millis,
    /// after a restart nothing is called unplaceable for this long: the fleet is still dialling in
    #[serde(rename = "settle_after_restore_ms")]
    pub settle_after_restore: Millis,
    /// how long an ended sandbox can still be read
    #[serde(rename = "ended_retention_ms")]
    pub ended_retention: Millis,
    /// ended sandboxes that are kept; the oldest goes first
    pub ended_sandboxes: usize,
    /// how long the request id of a removed sandbox is remembered, and that of an operation of which nothing is kept
    #[serde(rename = "request_retention_ms")]
    pub request_retention: Millis,
    /// request ids of removed sandboxes that are remembered; the oldest goes first
    pub remembered_requests: usize,
    /// snapshots that are kept at once, those for forks too; failed and lost ones do not count
    pub snapshots: usize,
    /// of them on one node; the node has its own bound and the last word
    pub snapshots_per_node: usize,
    /// failed and lost ones that are listed besides; the oldest goes first
    pub ended_snapshots: usize,
    /// a snapshot that is not ready after this has failed
    #[serde(rename = "snapshot_timeout_ms")]
    pub snapshot_timeout: Millis,
    /// templates that are kept at once
    pub templates: usize,
    /// of them prepared on one node, the oldest first
    pub templates_per_node: usize,
    /// how long a node is not asked again to prepare what it failed to
    #[serde(rename = "template_retry_ms")]
    pub template_retry: Millis,
    /// timers and placements of one step; what is left over is due at once
    pub work_per_step: usize,
    /// check every invariant after every step: for tests and debug builds, it reads the whole state
    pub check_invariants: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            placement: PlacementPolicy::default(),
            queue_length: 10_000,
            nodes: 10_000,
            assignment_attempts: 3,
            room_refusals: 24,
            assignment_timeout: Millis::from_secs(10),
            refusal_backoff: Millis::from_secs(2),
            start_margin: Millis::from_secs(10),
            stop_grace: Millis::from_secs(5),
            pause_timeout: Millis::from_secs(1800),
            forgotten_after: Millis::from_secs(5),
            suspect_after: Millis::from_secs(12),
            disconnected_after: Millis::from_secs(30),
            lost_after: Millis::from_secs(300),
            lost_percent_per_minute: 10,
            lost_node_retention: Millis::from_secs(3600),
            settle_after_restore: Millis::from_secs(15),
            ended_retention: Millis::from_secs(3600),
            ended_sandboxes: 10_000,
            request_retention: Millis::from_secs(600),
            remembered_requests: 4_096,
            snapshots: 10_000,
            snapshots_per_node: 256,
            ended_snapshots: 1_000,
            snapshot_timeout: Millis::from_secs(300),
            templates: 256,
            templates_per_node: 16,
            template_retry: Millis::from_secs(60),
            work_per_step: 1_024,
            check_invariants: cfg!(debug_assertions),
        }
    }
}

/// A value that would break the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{field} is 0, it must be at least 1")]
    Zero { field: &'static str },
    #[error("{later} is {later_ms} ms, it must be more than {earlier}, which is {earlier_ms} ms")]
    OutOfOrder { earlier: &'static str, earlier_ms: u64, later: &'static str, later_ms: u64 },
}

impl EngineConfig {
    /// Checks what the types do not; the first value that does not hold is returned.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("queue_length", self.queue_length as u64),
            ("nodes", self.nodes as u64),
            ("assignment_attempts", self.assignment_attempts),
            ("assignment_timeout_ms", self.assignment_timeout.0),
            ("refusal_backoff_ms", self.refusal_backoff.0),
            ("suspect_after_ms", self.suspect_after.0),
            ("lost_percent_per_minute", self.lost_percent_per_minute),
            ("pause_timeout_ms", self.pause_timeout.0),
            ("snapshot_timeout_ms", self.snapshot_timeout.0),
            ("template_retry_ms", self.template_retry.0),
            ("work_per_step", self.work_per_step as u64),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { field });
        }
        let in_order = [
            ("suspect_after_ms", self.suspect_after, "disconnected_after_ms", self.disconnected_after),
            ("disconnected_after_ms", self.disconnected_after, "lost_after_ms", self.lost_after),
        ];
        for (earlier, earlier_value, later, later_value) in in_order {
            if later_value <= earlier_value {
                let (earlier_ms, later_ms) = (earlier_value.0, later_value.0);
                return Err(ConfigError::OutOfOrder { earlier, earlier_ms, later, later_ms });
            }
        }
        Ok(())
    }
}
