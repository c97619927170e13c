//! Identifiers. Each kind is its own type, so that one cannot be passed for another.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{field} is empty")]
    Empty { field: &'static str },
    #[error("{field} is {length} bytes long, the limit is {max}")]
    TooLong { field: &'static str, length: usize, max: usize },
    #[error("{field} {value:?} holds {found:?}; allowed are {allowed}")]
    Character { field: &'static str, value: String, found: char, allowed: &'static str },
    #[error("{field} {value:?} is not a UUID")]
    NotUuid { field: &'static str, value: String },
}

/// Longest name of a node or tenant: the bound of a DNS label (RFC 1123, 2.1).
pub const MAX_NAME_BYTES: usize = 63;
/// Longest request id.
pub const MAX_REQUEST_ID_BYTES: usize = 64;

/// Checks a name against the DNS label alphabet: lower-case letters, digits, `-` not at either end.
pub fn check_name(field: &'static str, value: &str) -> Result<(), IdError> {
    const ALLOWED: &str = "a-z, 0-9 and, not at either end, `-`";
    if value.is_empty() {
        return Err(IdError::Empty { field });
    }
    if value.len() > MAX_NAME_BYTES {
        return Err(IdError::TooLong { field, length: value.len(), max: MAX_NAME_BYTES });
    }
    let wrong = |found| IdError::Character { field, value: value.to_owned(), found, allowed: ALLOWED };
    if let Some(found) = value.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(wrong(found));
    }
    if value.starts_with('-') || value.ends_with('-') {
        return Err(wrong('-'));
    }
    Ok(())
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| {
                    let value = text.chars().take(MAX_NAME_BYTES).collect();
                    IdError::NotUuid { field: $field, value }
                })
            }
        }
    };
}

uuid_id!(
    /// A sandbox: UUID version 7 (RFC 9562, 5.7), so ids sort by creation.
    SandboxId,
    "sandbox_id"
);
uuid_id!(
    /// A snapshot: UUID version 7.
    SnapshotId,
    "snapshot_id"
);
uuid_id!(
    /// A template: UUID version 7. Its name may be given to another one after it was deleted, its id never is.
    TemplateId,
    "template_id"
);

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check_name($field, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

name_id!(
    /// A worker node, by the name that its operator gave it.
    NodeId,
    "node_id"
);
name_id!(
    /// The owner of sandboxes.
    TenantId,
    "tenant"
);

impl Default for TenantId {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// Chosen by the caller: the same id with the same content gives the same answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(String);

impl RequestId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let field = "request_id";
        if text.is_empty() {
            return Err(IdError::Empty { field });
        }
        if text.len() > MAX_REQUEST_ID_BYTES {
            return Err(IdError::TooLong { field, length: text.len(), max: MAX_REQUEST_ID_BYTES });
        }
        match text.chars().find(|c| !c.is_ascii_graphic()) {
            Some(found) => Err(IdError::Character {
                field,
                value: text.to_owned(),
                found,
                allowed: "printable ASCII without space",
            }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Counts a sandbox's assignments. At most one epoch of a sandbox is live; 0 means never assigned.
    Epoch
);
counter!(
    /// Counts changes of the stored state; a watch resumes from one.
    Revision
);
counter!(
    /// Counts leaderships of the scheduler; a node refuses commands of an older term.
    Term
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_the_dns_label() {
        for good in ["a", "node-1", "0", &"a".repeat(63)] {
            assert!(good.parse::<NodeId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", "../x", &"a".repeat(64)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_field_value_and_limit() {
        let error = "a".repeat(64).parse::<TenantId>().unwrap_err().to_string();
        assert_eq!(error, "tenant is 64 bytes long, the limit is 63");
        let error = "Upper".parse::<NodeId>().unwrap_err().to_string();
        assert!(error.contains("node_id") && error.contains("Upper") && error.contains('U'), "{error}");
    }

    #[test]
    fn request_ids_are_printable_ascii() {
        assert!("9b1c/retry-3".parse::<RequestId>().is_ok());
        for bad in ["", "a b", "a\n", "é", &"x".repeat(65)] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }
}
