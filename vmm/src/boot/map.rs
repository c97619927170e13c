//! The memory map that the guest is told: RAM and what is reserved.

use crate::{layout, memory};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ram,
    Reserved,
}

impl Kind {
    /// Type number of E820 and, equally, of PVH's `hvm_memmap_table_entry`.
    pub fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub bytes: u64,
    pub kind: Kind,
}

/// Ascending, without overlap, at most four ranges.
pub fn ranges(memory_bytes: u64) -> Vec<Range> {
    let mut map = vec![
        Range { start: 0, bytes: layout::LOW_RAM_END, kind: Kind::Ram },
        Range {
            start: layout::LOW_RAM_END,
            bytes: layout::HIGH_RAM_START - layout::LOW_RAM_END,
            kind: Kind::Reserved,
        },
    ];
    for (start, bytes) in memory::ranges(memory_bytes) {
        let skipped = if start == 0 { layout::HIGH_RAM_START } else { 0 };
        map.push(Range { start: start + skipped, bytes: bytes - skipped, kind: Kind::Ram });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_ascending_and_within_memory() {
        for mib in [96, 256, 3072, 3073, 8192] {
            let bytes = mib << 20;
            let map = ranges(bytes);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].bytes <= pair[1].start, "{map:x?}");
            }
            let total: u64 = map.iter().map(|range| range.bytes).sum();
            assert_eq!(total, bytes, "every byte is described once");
            assert!(map.iter().all(|range| range.bytes > 0));
        }
    }
}
