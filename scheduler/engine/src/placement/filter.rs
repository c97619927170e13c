//! The filters, in the order in which they are asked. A node counts at the first one that turns it away.

use super::Requirement;
use crate::cluster::node::NodeEntry;
use pinfold_domain::resources::Dimension;
use pinfold_domain::{NodeState, Resources};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Filter {
    /// it is not ready
    NodeState,
    /// it refused this sandbox a moment ago
    Refused,
    /// it does not hold the snapshot
    Snapshot,
    NodeLabels,
    Image,
    Kernel,
    Cpu,
    Memory,
    Disk,
    Pids,
}

impl Filter {
    pub const ALL: [Self; 10] = [
        Self::NodeState,
        Self::Refused,
        Self::Snapshot,
        Self::NodeLabels,
        Self::Image,
        Self::Kernel,
        Self::Cpu,
        Self::Memory,
        Self::Disk,
        Self::Pids,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NodeState => "node_state",
            Self::Refused => "refused",
            Self::Snapshot => "snapshot",
            Self::NodeLabels => "node_labels",
            Self::Image => "image",
            Self::Kernel => "kernel",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Pids => "pids",
        }
    }
}

/// The first filter that turns `entry` away as it is now.
pub(crate) fn first_rejection(entry: &NodeEntry, requirement: &Requirement) -> Option<Filter> {
    if entry.node.state != NodeState::Ready {
        return Some(Filter::NodeState);
    }
    if requirement.refused_by.contains(&entry.node.id) {
        return Some(Filter::Refused);
    }
    by_kind(entry, requirement).or_else(|| by_room(requirement, &entry.free()))
}

/// The first filter that would turn `entry` away if it were ready and empty.
pub(crate) fn first_rejection_when_empty(entry: &NodeEntry, requirement: &Requirement) -> Option<Filter> {
    by_kind(entry, requirement).or_else(|| by_room(requirement, &entry.node.allocatable))
}

pub(crate) fn has_image(entry: &NodeEntry, requirement: &Requirement) -> bool {
    entry.node.images.contains(&requirement.image)
}

/// A sandbox that names no kernel takes the node's own.
pub(crate) fn has_kernel(entry: &NodeEntry, requirement: &Requirement) -> bool {
    requirement.kernel.as_ref().is_none_or(|kernel| entry.node.kernels.contains(kernel))
}

fn by_kind(entry: &NodeEntry, requirement: &Requirement) -> Option<Filter> {
    if requirement.snapshot.is_some_and(|snapshot| !entry.snapshots.contains(&snapshot)) {
        return Some(Filter::Snapshot);
    }
    let labels = &entry.node.labels;
    if !requirement.node_labels.iter().all(|(key, value)| labels.get(key) == Some(value)) {
        return Some(Filter::NodeLabels);
    }
    if !has_image(entry, requirement) {
        return Some(Filter::Image);
    }
    (!has_kernel(entry, requirement)).then_some(Filter::Kernel)
}

fn by_room(requirement: &Requirement, room: &Resources) -> Option<Filter> {
    requirement.resources().first_excess(room).map(|dimension| match dimension {
        Dimension::Cpu => Filter::Cpu,
        Dimension::Memory => Filter::Memory,
        Dimension::Disk => Filter::Disk,
        Dimension::Pids => Filter::Pids,
    })
}
