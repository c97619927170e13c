//! The envelope of a state file.
//!
//! ```text
//!    0  magic            8 bytes
//!    8  version          u32, little endian
//!   12  zero             u32
//!   16  length of body   u64
//!   24  MAC              32 bytes: BLAKE3 keyed, over bytes 0 to 23 and the body
//!   56  body
//! ```
//!
//! Checked from the top down: a file that is too short, foreign, of another version or longer than it says is refused by
//! comparing numbers, and the body is handed out only when the MAC is right.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: [u8; 8] = *b"PINFSNAP";
/// Grows when an older VMM could not restore what a newer one saved, or the other way round.
pub const VERSION: u32 = 1;
const SIGNED_BYTES: usize = 24;
const HEADER_BYTES: usize = 56;
/// Longest body. 32 vCPUs take some 400 KiB.
pub const BODY_BYTES_MAX: u64 = 4 << 20;

/// The key of a snapshot's MAC.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("the key is not 64 hexadecimal digits")]
    Key,
    #[error("the state file cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error("the state file has {0} bytes, fewer than its header's {HEADER_BYTES}")]
    Short(u64),
    #[error("the state file is not one of Pinfold")]
    Foreign,
    #[error("the state file has version {0}, this VMM takes {VERSION}")]
    Version(u32),
    #[error(
        "the state file says that its body has {said} bytes, {found} follow its header, the limit is {BODY_BYTES_MAX}"
    )]
    Length { said: u64, found: u64 },
    #[error("the state file was changed, or was made with another key")]
    Forged,
}

impl Key {
    pub fn from_hex(text: &str) -> Result<Self, FormatError> {
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let mut key = [0; 32];
        if text.len() != 2 * key.len() {
            return Err(FormatError::Key);
        }
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let (high, low) = (digit(pair[0]), digit(pair[1]));
            *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or(FormatError::Key)?;
        }
        Ok(Self(key))
    }

    fn mac(&self, signed: &[u8], body: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.0).update(signed).update(body).finalize()
    }
}

/// Writes a whole state file; its length in bytes.
pub fn seal(file: &File, key: &Key, body: &[u8]) -> Result<u64, FormatError> {
    let length = body.len() as u64;
    if length > BODY_BYTES_MAX {
        return Err(FormatError::Length { said: length, found: length });
    }
    let mut all = Vec::with_capacity(HEADER_BYTES + body.len());
    all.extend(MAGIC);
    all.extend(VERSION.to_le_bytes());
    all.extend([0; 4]);
    all.extend(length.to_le_bytes());
    all.extend(key.mac(&all, body).as_bytes());
    all.extend(body);
    file.set_len(0)?;
    file.write_all_at(&all, 0)?;
    Ok(all.len() as u64)
}

/// The body of a state file that nobody has changed.
pub fn open(file: &File, key: &Key) -> Result<Vec<u8>, FormatError> {
    let length = file.metadata()?.len();
    let found = length.checked_sub(HEADER_BYTES as u64).ok_or(FormatError::Short(length))?;
    // bounded before anything is read
    if found > BODY_BYTES_MAX {
        return Err(FormatError::Length { said: 0, found });
    }
    let mut all = vec![0; length as usize];
    file.read_exact_at(&mut all, 0)?;
    let (header, body) = all.split_at(HEADER_BYTES);
    check(header, body, key)?;
    Ok(all.split_off(HEADER_BYTES))
}

fn check(header: &[u8], body: &[u8], key: &Key) -> Result<(), FormatError> {
    let (signed, mac) = header.split_at(SIGNED_BYTES);
    if signed[..8] != MAGIC {
        return Err(FormatError::Foreign);
    }
    let number =
        |from: usize| signed[from..].iter().take(4).rev().fold(0u32, |all, byte| all << 8 | u32::from(*byte));
    if number(8) != VERSION {
        return Err(FormatError::Version(number(8)));
    }
    let said = u64::from(number(20)) << 32 | u64::from(number(16));
    if said != body.len() as u64 || number(12) != 0 {
        return Err(FormatError::Length { said, found: body.len() as u64 });
    }
    let mac = <[u8; 32]>::try_from(mac).map_err(|_| FormatError::Foreign)?;
    // this comparison takes the same time wherever they differ
    if key.mac(signed, body) == blake3::Hash::from_bytes(mac) { Ok(()) } else { Err(FormatError::Forged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: char) -> Key {
        Key::from_hex(&byte.to_string().repeat(64)).expect("a key")
    }

    fn sealed(body: &[u8]) -> (File, Vec<u8>) {
        let file = tempfile::tempfile().expect("a temporary file");
        let length = seal(&file, &key('a'), body).expect("sealed");
        let mut all = vec![0; length as usize];
        file.read_exact_at(&mut all, 0).expect("read");
        (file, all)
    }

    fn open_bytes(bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(bytes, 0).expect("written");
        open(&file, &key('a'))
    }

    #[test]
    fn a_body_comes_back_with_its_key_alone() {
        let (file, _) = sealed(b"the state of a machine");
        assert_eq!(open(&file, &key('a')).expect("opened"), b"the state of a machine");
        assert!(matches!(open(&file, &key('b')), Err(FormatError::Forged)));
    }

    #[test]
    fn a_file_with_any_bit_turned_is_refused() {
        let (_, good) = sealed(b"body");
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(open_bytes(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_or_has_more_is_refused() {
        let (_, good) = sealed(b"body");
        for length in 0..good.len() {
            assert!(open_bytes(&good[..length]).is_err(), "{length} bytes");
        }
        let more = [&good[..], b"x"].concat();
        assert!(matches!(open_bytes(&more), Err(FormatError::Length { said: 4, found: 5 })));
    }

    #[test]
    fn another_version_and_a_foreign_file_are_named() {
        let (_, mut bytes) = sealed(b"body");
        bytes[8] = 2;
        assert!(matches!(open_bytes(&bytes), Err(FormatError::Version(2))));
        bytes[0] = b'Q';
        assert!(matches!(open_bytes(&bytes), Err(FormatError::Foreign)));
    }

    #[test]
    fn a_file_past_the_limit_is_not_even_read() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(1 << 40).expect("a sparse file");
        assert!(matches!(open(&file, &key('a')), Err(FormatError::Length { .. })));
    }

    #[test]
    fn keys_are_64_hexadecimal_digits() {
        for wrong in ["", "a", &"a".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert!(Key::from_hex(wrong).is_err(), "{wrong}");
        }
    }
}
