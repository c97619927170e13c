//! Generated gRPC code, the conversion between wire and domain types, and the table of reasons.
//!
//! A wire value is checked exactly once, on its way in ([`convert`]); behind it only domain types are passed on.
#![forbid(unsafe_code)]

pub mod convert;
pub mod limits;
pub mod reasons;

/// The public API.
pub mod api {
    #[allow(clippy::all, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("pinfold.api.v1");
    }
}

/// Between node agent and guest.
pub mod guest {
    #[allow(clippy::all, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("pinfold.guest.v1");
    }
}

/// Between node agent and scheduler.
pub mod node {
    #[allow(clippy::all, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("pinfold.node.v1");
    }
}

/// Encoded `FileDescriptorSet` of everything above, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pinfold.fds"));
