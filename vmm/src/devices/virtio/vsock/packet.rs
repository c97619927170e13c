//! Packet headers (virtio 1.2, 5.10.6).

/// `struct virtio_vsock_hdr`, little endian, packed.
pub const HEADER_BYTES: usize = 44;
/// Context id of the host (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;
/// Type of stream sockets.
pub const TYPE_STREAM: u16 = 1;

/// Flags of [`Operation::Shutdown`]: the sender receives no more, the sender sends no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
pub const SHUTDOWN_SEND: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    /// payload
    ReadWrite,
    CreditUpdate,
    CreditRequest,
}

impl Operation {
    pub fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    pub fn from_number(number: u16) -> Option<Self> {
        let all = [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::ReadWrite,
            Self::CreditUpdate,
            Self::CreditRequest,
        ];
        all.into_iter().find(|operation| operation.number() == number)
    }
}

/// A header as it is on the wire; nothing in it is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub source_cid: u64,
    pub destination_cid: u64,
    pub source_port: u32,
    pub destination_port: u32,
    pub bytes: u32,
    pub kind: u16,
    pub operation: u16,
    pub flags: u32,
    pub buffer_bytes: u32,
    pub forwarded: u32,
}

impl Header {
    pub fn decode(wire: &[u8; HEADER_BYTES]) -> Self {
        let four = |at: usize| u32::from_le_bytes([wire[at], wire[at + 1], wire[at + 2], wire[at + 3]]);
        let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
        let two = |at: usize| u16::from_le_bytes([wire[at], wire[at + 1]]);
        Self {
            source_cid: eight(0),
            destination_cid: eight(8),
            source_port: four(16),
            destination_port: four(20),
            bytes: four(24),
            kind: two(28),
            operation: two(30),
            flags: four(32),
            buffer_bytes: four(36),
            forwarded: four(40),
        }
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut wire = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            wire[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.destination_cid.to_le_bytes());
        put(&self.source_port.to_le_bytes());
        put(&self.destination_port.to_le_bytes());
        put(&self.bytes.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.operation.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buffer_bytes.to_le_bytes());
        put(&self.forwarded.to_le_bytes());
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn operations_have_the_numbers_of_the_specification() {
        for number in 1..=7 {
            assert_eq!(Operation::from_number(number).map(Operation::number), Some(number));
        }
        assert_eq!(Operation::from_number(0), None);
        assert_eq!(Operation::from_number(8), None);
    }

    proptest! {
        #[test]
        fn every_wire_form_decodes_and_encodes_to_itself(wire in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform12(any::<u8>())) {
            let mut all = [0; HEADER_BYTES];
            all[..32].copy_from_slice(&wire);
            all[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::decode(&all).encode(), all);
        }
    }
}
