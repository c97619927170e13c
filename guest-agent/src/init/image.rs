//! What file system a root image holds, and whether all of it is there, from its first 4 KiB.
//!
//! erofs mounts a truncated image and fails later, in the middle of somebody's work; so the size that the image claims is
//! compared with the device's. Layouts: Linux `fs/erofs/erofs_fs.h`, `fs/ext4/ext4.h`, `fs/squashfs/squashfs_fs.h`.

/// Bytes that are looked at.
pub const HEAD_BYTES: usize = 4096;
const SUPERBLOCK: usize = 1024;
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
const EXT4_MAGIC: u16 = 0xEF53;
const SQUASHFS_MAGIC: &[u8; 4] = b"hsqs";

/// A kind of file system, by the name that mount(2) takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Erofs,
    Ext4,
    Squashfs,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }

    /// Mount options for a device that cannot be written: ext4 must not look at its journal.
    pub fn options(self) -> Option<&'static str> {
        match self {
            Self::Ext4 => Some("noload"),
            Self::Erofs | Self::Squashfs => None,
        }
    }
}

/// The kind of the image that begins with `head` on a device of `device_bytes`; or, in words, what is wrong with it.
pub fn identify(head: &[u8; HEAD_BYTES], device_bytes: u64) -> Result<Kind, String> {
    let Some((kind, claimed)) = kind_and_size(head) else {
        return Err("it holds no erofs, ext4 or squashfs".to_owned());
    };
    if claimed > device_bytes {
        let name = kind.name();
        return Err(format!(
            "it is truncated: its {name} has {claimed} bytes, the device has {device_bytes}"
        ));
    }
    Ok(kind)
}

fn kind_and_size(head: &[u8; HEAD_BYTES]) -> Option<(Kind, u64)> {
    if u32_at(head, SUPERBLOCK) == EROFS_MAGIC {
        // u8 blkszbits at 12, u32 blocks at 36
        return Some((Kind::Erofs, shifted(u32_at(head, SUPERBLOCK + 36), head[SUPERBLOCK + 12].into())));
    }
    if u16_at(head, SUPERBLOCK + 56) == EXT4_MAGIC {
        // u32 s_blocks_count_lo at 4, u32 s_log_block_size at 24: the block has 1024 << that
        let block_bits = u32_at(head, SUPERBLOCK + 24).saturating_add(10);
        return Some((Kind::Ext4, shifted(u32_at(head, SUPERBLOCK + 4), block_bits)));
    }
    // u64 bytes_used at 40
    head.starts_with(SQUASHFS_MAGIC).then(|| {
        let bytes = u64::from(u32_at(head, 40)) | u64::from(u32_at(head, 44)) << 32;
        (Kind::Squashfs, bytes)
    })
}

fn shifted(count: u32, bits: u32) -> u64 {
    // a block size that no file system has makes an image that no device holds
    if bits > 32 { u64::MAX } else { u64::from(count) << bits }
}

fn u16_at(head: &[u8; HEAD_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([head[at], head[at + 1]])
}

fn u32_at(head: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        for (at, bytes) in parts {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    fn erofs(blocks: u32) -> [u8; HEAD_BYTES] {
        head(&[(1024, &EROFS_MAGIC.to_le_bytes()), (1036, &[12]), (1060, &blocks.to_le_bytes())])
    }

    #[test]
    fn each_kind_is_known_by_its_superblock() {
        assert_eq!(identify(&erofs(10), 40_960), Ok(Kind::Erofs));
        let ext4 = head(&[(1028, &16_384_u32.to_le_bytes()), (1048, &[0]), (1080, &[0x53, 0xEF])]);
        assert_eq!(identify(&ext4, 16 << 20), Ok(Kind::Ext4));
        let squashfs = head(&[(0, b"hsqs"), (40, &5000_u64.to_le_bytes())]);
        assert_eq!(identify(&squashfs, 8192), Ok(Kind::Squashfs));
    }

    #[test]
    fn a_truncated_image_is_told_from_a_whole_one() {
        let why = identify(&erofs(10), 40_448).unwrap_err();
        assert_eq!(why, "it is truncated: its erofs has 40960 bytes, the device has 40448");
        let odd = head(&[(1024, &EROFS_MAGIC.to_le_bytes()), (1036, &[255]), (1060, &[1])]);
        assert!(identify(&odd, u64::MAX - 1).unwrap_err().contains("truncated"));
    }

    #[test]
    fn what_is_no_image_is_named_so() {
        assert_eq!(identify(&[0; HEAD_BYTES], 1 << 30).unwrap_err(), "it holds no erofs, ext4 or squashfs");
        assert!(identify(&[0xFF; HEAD_BYTES], 1 << 30).is_err());
    }
}
