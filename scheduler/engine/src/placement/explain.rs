//! The count per filter, for people.

use super::filter::Filter;
use pinfold_domain::{Explanation, FilterCount, Verdict};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    considered: u64,
    /// in the order of [`Filter::ALL`]
    rejected: [u64; Filter::ALL.len()],
}

impl Counts {
    /// Counts a node that `rejection` turned away, or that fits.
    pub fn add(&mut self, rejection: Option<Filter>) {
        self.considered += 1;
        if let Some(filter) = rejection {
            self.rejected[filter as usize] += 1;
        }
    }

    /// Takes back what `add` did.
    pub fn remove(&mut self, rejection: Option<Filter>) {
        self.considered -= 1;
        if let Some(filter) = rejection {
            self.rejected[filter as usize] -= 1;
        }
    }

    pub fn considered(&self) -> u64 {
        self.considered
    }

    /// Filters that turned nobody away are left out.
    pub fn explanation(&self, verdict: Verdict) -> Explanation {
        let counted = Filter::ALL.into_iter().zip(self.rejected).filter(|(_, rejected)| *rejected > 0);
        let filters = counted
            .map(|(filter, rejected)| FilterCount { filter: filter.name().to_owned(), rejected })
            .collect();
        Explanation { verdict, nodes_considered: self.considered, filters, note: String::new() }
    }
}
