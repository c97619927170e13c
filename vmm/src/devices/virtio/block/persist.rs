//! What of a block device outlives the process: nothing but what the transport keeps, and a promise.
//!
//! A saved device has no request on the way ([`VirtioDevice::quiesce`]) and no write of it waits in a cache of ours. The
//! file itself, its size and its rate come from the config of the machine that is restored.

use super::device::Block;
use crate::devices::virtio::VirtioDevice;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// the disk's length: a driver has read it
    pub sectors: u64,
    pub read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockStateError {
    #[error("the saved disk has {saved} sectors, the one given has {given}")]
    Sectors { saved: u64, given: u64 },
    #[error("the saved disk and the one given differ in being read-only")]
    ReadOnly,
    #[error("requests are on the way")]
    Busy,
}

impl Block {
    pub fn save(&self) -> Result<BlockState, BlockStateError> {
        if self.is_busy() {
            return Err(BlockStateError::Busy);
        }
        Ok(BlockState { sectors: self.geometry.sectors, read_only: self.geometry.read_only })
    }

    /// Checks that this is a disk that the saved driver can go on with.
    pub fn restore(&mut self, state: &BlockState) -> Result<(), BlockStateError> {
        let given = self.geometry;
        if state.sectors != given.sectors {
            return Err(BlockStateError::Sectors { saved: state.sectors, given: given.sectors });
        }
        if state.read_only != given.read_only {
            return Err(BlockStateError::ReadOnly);
        }
        Ok(())
    }
}
