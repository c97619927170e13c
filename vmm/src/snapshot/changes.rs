//! What a diff has to hold: all that may not be as in the snapshot before it.
//!
//! ```text
//!   tracked      written since, by the host's kernel   +  released since, by the balloon's record
//!   not tracked  written since the restore, over a     +  released since the snapshot before
//!                file that is mapped privately
//! ```
//!
//! Too much is harmless, as a diff holds what each page has *now*; a page of zeroes is a hole in an extent of it.

use super::dirty::{DirtyError, Tracker};
use super::memory::Origin;
use super::pages::{self, Runs};
use super::released::Released;
use super::save::SaveError;
use crate::memory::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// What is known of guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub origin: &'a Origin,
    pub tracker: Tracker<'a>,
    pub released: &'a Released,
}

/// Places in the memory file that may have changed since the last snapshot. `tracked`: since then every write is followed.
pub fn since_last(memory: &GuestMemory, known: Known<'_>, tracked: bool) -> Result<Runs, SaveError> {
    let mut all = Runs::new();
    let mut offset = 0;
    for (index, region) in memory.iter().enumerate() {
        let (address, bytes) = (region.as_ptr() as u64, region.len());
        let written = match known.origin {
            _ if tracked => known.tracker.changed(address, bytes)?,
            // what lies over the file was written by this machine, at some time
            Origin::File(_) => {
                let pagemap = known.tracker.pagemap.ok_or(DirtyError::Blind)?;
                pages::own(pagemap, address, bytes).map_err(DirtyError::from)?
            }
            Origin::Booted | Origin::Handler => return Err(SaveError::Untracked),
        };
        let changed = pages::union(&written, &known.released.of(index));
        all.extend(changed.into_iter().map(|run| run.start + offset..run.end + offset));
        offset += bytes;
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
