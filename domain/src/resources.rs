//! What a sandbox takes and a node gives.

use serde::{Deserialize, Serialize};

/// Amounts of the dimensions that placement adds up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// thousandths of a CPU
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    /// processes and threads
    pub pids: u64,
}

/// One dimension of [`Resources`], in the order in which placement filters by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    Cpu,
    Memory,
    Disk,
    Pids,
}

impl Dimension {
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Disk, Self::Pids];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Pids => "pids",
        }
    }
}

impl Resources {
    pub fn get(&self, dimension: Dimension) -> u64 {
        match dimension {
            Dimension::Cpu => self.cpu_millis,
            Dimension::Memory => self.memory_bytes,
            Dimension::Disk => self.disk_bytes,
            Dimension::Pids => self.pids,
        }
    }

    /// The first dimension in which `self` exceeds `room`.
    pub fn first_excess(&self, room: &Self) -> Option<Dimension> {
        Dimension::ALL.into_iter().find(|&d| self.get(d) > room.get(d))
    }

    /// Sum of each dimension, or `None` on overflow.
    #[must_use]
    pub fn checked_add(&self, other: &Self) -> Option<Self> {
        Some(Self {
            cpu_millis: self.cpu_millis.checked_add(other.cpu_millis)?,
            memory_bytes: self.memory_bytes.checked_add(other.memory_bytes)?,
            disk_bytes: self.disk_bytes.checked_add(other.disk_bytes)?,
            pids: self.pids.checked_add(other.pids)?,
        })
    }

    /// What is left of `self` when `other` is taken away; never below zero.
    #[must_use]
    pub fn saturating_sub(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
            pids: self.pids.saturating_sub(other.pids),
        }
    }
}
