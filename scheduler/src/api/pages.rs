//! Pages: their size in entries, asked for by the caller, and in bytes, so that an answer fits a gRPC message.

use pinfold_proto::convert::WireError;
use pinfold_proto::limits::{MESSAGE_BYTES, PAGE_SIZE};
use prost::Message;

/// Half a message: the entries of a page together. One entry alone always fits.
const PAGE_BYTES: usize = MESSAGE_BYTES / 2;

/// 0 is the default.
pub fn size(page_size: u32) -> Result<usize, WireError> {
    let (default, max) = PAGE_SIZE;
    match page_size {
        0 => Ok(default as usize),
        size if size <= max => Ok(size as usize),
        size => {
            let (value, max) = (u64::from(size), u64::from(max));
            Err(WireError::OutOfRange { field: "page_size", value, min: 1, max })
        }
    }
}

/// The part of `entries` that fits; true when something was left out.
pub fn fit<T: Message>(entries: impl Iterator<Item = T>) -> (Vec<T>, bool) {
    let mut fitting = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.encoded_len();
        if bytes > PAGE_BYTES && !fitting.is_empty() {
            return (fitting, true);
        }
        fitting.push(entry);
    }
    (fitting, false)
}

/// A page token that no answer held.
pub fn not_ours(text: &str) -> WireError {
    WireError::NotAllowed {
        field: "page_token",
        value: text.chars().take(80).collect(),
        why: "it is not from an answer to this call",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_size_is_bounded() {
        assert_eq!(size(0), Ok(100));
        assert_eq!(size(1000), Ok(1000));
        assert_eq!(size(1001).unwrap_err().to_string(), "page_size is 1001, outside 1 to 1000");
    }

    #[test]
    fn a_page_is_cut_where_a_message_would_get_too_large() {
        let entry = || "x".repeat(600 * 1024);
        let (fitting, cut) = fit((0..5).map(|_| entry()));
        assert_eq!((fitting.len(), cut), (3, true));
        let (fitting, cut) = fit(std::iter::once("x".repeat(3 * 1024 * 1024)));
        assert_eq!((fitting.len(), cut), (1, false));
    }
}
