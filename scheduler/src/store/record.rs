//! The form of a record: one byte of version, then JSON.

use super::StoreError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Of every record that is written now. A new form gets the next number, and `decode` keeps reading the old one.
const VERSION: u8 = 1;

pub fn encode<T: Serialize>(table: &'static str, value: &T) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, value).map_err(|source| StoreError::Record { table, source })?;
    Ok(bytes)
}

pub fn decode<T: DeserializeOwned>(table: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    match bytes.split_first() {
        None => Err(StoreError::EmptyRecord { table }),
        Some((&VERSION, json)) => {
            serde_json::from_slice(json).map_err(|source| StoreError::Record { table, source })
        }
        Some((&found, _)) => Err(StoreError::RecordVersion { table, found, known: VERSION }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_version_is_refused_and_named() {
        let mut bytes = encode("sandboxes", &7_u32).unwrap();
        assert_eq!(decode::<u32>("sandboxes", &bytes).unwrap(), 7);
        bytes[0] = 9;
        let error = decode::<u32>("sandboxes", &bytes).unwrap_err().to_string();
        assert_eq!(error, "a record of the table sandboxes has version 9, this version reads 1");
        assert!(decode::<u32>("sandboxes", &[]).is_err());
        assert!(decode::<u32>("sandboxes", &[VERSION, b'x']).is_err());
    }
}
