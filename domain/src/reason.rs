//! Why something was refused or ended: one closed list, with stable strings.
//!
//! `docs/REASONS.md` is this list for readers; the gRPC code and "may I retry" of each are in the proto crate.

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A stable reason. Its string never changes its meaning and is never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable string: the variant's own name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            pub fn from_str_exact(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    // a call was refused
    /// a field is missing, malformed or outside its limits
    InvalidArgument = "InvalidArgument",
    /// no such sandbox, or not the caller's
    SandboxNotFound = "SandboxNotFound",
    /// no node holds the image (or kernel) that was asked for
    ImageUnknown = "ImageUnknown",
    /// the request id was used before, for something else
    RequestIdConflict = "RequestIdConflict",
    /// no node of the fleet could hold this, even when empty
    Unplaceable = "Unplaceable",
    /// too many sandboxes wait already
    QueueFull = "QueueFull",
    /// the sandbox is not running yet
    SandboxStarting = "SandboxStarting",
    /// the sandbox has ended or is about to
    SandboxEnded = "SandboxEnded",
    /// the phase of the sandbox does not permit this
    WrongPhase = "WrongPhase",
    /// the node cannot be reached now
    NodeUnreachable = "NodeUnreachable",
    /// a bound on concurrent streams was reached
    TooManyStreams = "TooManyStreams",
    /// a watch asked for a revision that is no longer kept
    RevisionCompacted = "RevisionCompacted",
    /// the store cannot be written
    StoreUnavailable = "StoreUnavailable",
    /// the caller's deadline passed
    DeadlineExceeded = "DeadlineExceeded",
    /// the guest's agent does not answer
    GuestUnresponsive = "GuestUnresponsive",
    /// a path does not exist in the guest
    FileNotFound = "FileNotFound",
    /// a path is not what the call needs (a directory, a FIFO, ...)
    FileWrongType = "FileWrongType",
    /// the guest's user may not do this
    FilePermission = "FilePermission",
    /// the sandbox's disk is full
    DiskFull = "DiskFull",
    /// no such snapshot, or not the caller's
    SnapshotNotFound = "SnapshotNotFound",
    /// the snapshot failed, was lost or is being deleted
    SnapshotUnusable = "SnapshotUnusable",
    /// sandboxes that are to start from the snapshot have not started yet
    SnapshotInUse = "SnapshotInUse",
    /// no such template, or not the caller's
    TemplateNotFound = "TemplateNotFound",
    /// the name belongs to another template
    TemplateExists = "TemplateExists",
    /// the one node that could do it has no room for it now
    NoRoom = "NoRoom",
    /// a bound on stored snapshots or templates, or on orders that wait for a sandbox, was reached
    LimitReached = "LimitReached",
    /// a fault of Pinfold
    Internal = "Internal",

    // a sandbox ended
    /// a caller stopped it
    StopRequested = "StopRequested",
    /// a caller deleted it
    DeleteRequested = "DeleteRequested",
    /// its time to live ran out
    TtlExpired = "TtlExpired",
    /// it was not ready within its start limit
    StartTimeout = "StartTimeout",
    /// the node's disk, cgroup or files could not be set up
    HostResources = "HostResources",
    /// the jail could not be set up
    JailFailed = "JailFailed",
    /// the kernel image cannot be booted
    KernelInvalid = "KernelInvalid",
    /// the root file system cannot be mounted
    RootImageInvalid = "RootImageInvalid",
    /// the guest's kernel panicked
    GuestPanic = "GuestPanic",
    /// the guest powered itself off
    GuestPowerOff = "GuestPowerOff",
    /// the guest reset itself
    GuestReset = "GuestReset",
    /// the VMM hit its memory limit
    OutOfMemory = "OutOfMemory",
    /// the VMM failed
    VmmFailed = "VmmFailed",
    /// the machine could not be saved
    SnapshotFailed = "SnapshotFailed",
    /// what was saved is damaged, of another version, or of another kind of machine
    SnapshotInvalid = "SnapshotInvalid",
    /// the saved machine could not be brought back
    RestoreFailed = "RestoreFailed",
    /// every node that was tried refused it
    NodeRefused = "NodeRefused",
    /// its node did not come back
    NodeLost = "NodeLost",
    /// the node no longer has it
    NodeForgot = "NodeForgot",
}

/// A reason with a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub reason: Reason,
    pub message: String,
}

impl Cause {
    /// `message` is cut at [`MAX_MESSAGE_BYTES`].
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE_BYTES {
            let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
            message.truncate(end);
        }
        Self { reason, message }
    }
}

/// Longest message of a [`Cause`]: it travels in gRPC trailers.
pub const MAX_MESSAGE_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_unique_and_round_trip() {
        let mut seen = std::collections::BTreeSet::new();
        for &reason in Reason::ALL {
            assert!(seen.insert(reason.as_str()));
            assert_eq!(Reason::from_str_exact(reason.as_str()), Some(reason));
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let cause = Cause::new(Reason::Internal, "é".repeat(MAX_MESSAGE_BYTES));
        assert!(cause.message.len() <= MAX_MESSAGE_BYTES);
        assert!(cause.message.ends_with('é'));
    }
}
