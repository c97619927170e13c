//! What an event of the device thread's epoll set is about.

/// What an event is about, as the data of an epoll entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Ending,
    Signal,
    Console,
    Control,
    Events,
    Kick { device: usize, queue: usize },
    Host { device: usize, source: usize },
}

impl Token {
    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Ending => 0,
            Self::Signal => 1,
            Self::Console => 2,
            Self::Control => 3,
            Self::Kick { device, queue } => 4 | (device as u64) << 16 | (queue as u64) << 32,
            Self::Host { device, source } => 5 | (device as u64) << 16 | (source as u64) << 32,
            Self::Events => 6,
        }
    }

    pub(super) fn decode(data: u64) -> Option<Self> {
        let device = (data >> 16 & 0xffff) as usize;
        Some(match data & 0xffff {
            0 => Self::Ending,
            1 => Self::Signal,
            2 => Self::Console,
            3 => Self::Control,
            4 => Self::Kick { device, queue: (data >> 32) as usize },
            5 => Self::Host { device, source: (data >> 32) as usize },
            6 => Self::Events,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let mut all = vec![Token::Ending, Token::Signal, Token::Console, Token::Control, Token::Events];
        for device in 0..10 {
            all.extend((0..2).map(|source| Token::Host { device, source }));
            all.extend((0..3).map(|queue| Token::Kick { device, queue }));
        }
        for token in all {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(0xffff), None);
    }
}
