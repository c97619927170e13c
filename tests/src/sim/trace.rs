//! The last things that happened, kept as they are and put in words only when a run fails.

use pinfold_domain::Timestamp;
use pinfold_engine::{Effect, Event};
use std::collections::VecDeque;
use std::fmt;

/// Things that are kept.
const TAIL: usize = 120;

#[derive(Debug, Clone)]
pub enum Happening {
    Event(Event),
    Effect(Effect),
    Fault(String),
}

#[derive(Debug, Default)]
pub struct Trace {
    tail: VecDeque<(Timestamp, Happening)>,
    /// of everything that ever happened, for the comparison of two runs (FNV-1a)
    pub digest: Option<u64>,
}

impl Trace {
    /// With a digest: slower, since everything is put in words.
    pub fn with_digest() -> Self {
        Self { digest: Some(0xcbf2_9ce4_8422_2325), ..Self::default() }
    }

    pub fn add(&mut self, now: Timestamp, happening: Happening) {
        if let Some(digest) = &mut self.digest {
            for byte in format!("{now:?} {happening:?}").bytes() {
                *digest = (*digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back((now, happening));
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, happening) in &self.tail {
            let text = match happening {
                Happening::Event(event) => format!("-> {event:?}"),
                Happening::Effect(effect) => format!("   <- {effect:?}"),
                Happening::Fault(fault) => format!("!! {fault}"),
            };
            let end = text.char_indices().nth(400).map_or(text.len(), |(end, _)| end);
            writeln!(f, "{:>9} {}", at.0, &text[..end])?;
        }
        Ok(())
    }
}
