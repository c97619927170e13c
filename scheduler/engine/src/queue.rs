//! Sandboxes that wait for room.
//!
//! Those with an equal requirement form a class and leave it strictly in the order of their creation. Classes do not wait
//! for each other: a small sandbox may pass a large one that nothing can hold now. A class is *fresh* until every node was
//! looked at for it in vain; then it is *blocked*, and only a node that has gained room since can unblock it. So a node
//! that gains room costs one look per class, not one per waiting sandbox.
//!
//! Invariant: a waiting sandbox is in exactly one class, and no class is empty.

use crate::placement::Requirement;
use pinfold_domain::{SandboxId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// The oldest first; a sandbox that comes back to the queue finds its old place.
pub(crate) type Order = (Timestamp, SandboxId);
pub(crate) type ClassId = u64;

#[derive(Debug)]
struct Class {
    requirement: Requirement,
    waiting: BTreeSet<Order>,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    classes: BTreeMap<ClassId, Class>,
    ids: BTreeMap<Requirement, ClassId>,
    places: BTreeMap<SandboxId, (ClassId, Order)>,
    /// classes that are fresh; all others are blocked
    fresh: BTreeSet<ClassId>,
    next_class: ClassId,
    /// a drain ran out of its budget
    pub unfinished: bool,
}

impl Queue {
    /// Adds a sandbox. `tried`: every node was just looked at for this requirement, in vain.
    pub fn push(&mut self, order: Order, requirement: Requirement, tried: bool) {
        let class_id = match self.ids.get(&requirement) {
            Some(id) => *id,
            None => {
                let id = self.next_class;
                self.next_class += 1;
                self.ids.insert(requirement.clone(), id);
                self.classes.insert(id, Class { requirement, waiting: BTreeSet::new() });
                if !tried {
                    self.fresh.insert(id);
                }
                id
            }
        };
        if let Some(class) = self.classes.get_mut(&class_id) {
            class.waiting.insert(order);
            self.places.insert(order.1, (class_id, order));
        }
    }

    /// Takes a sandbox out, wherever it is; false when it did not wait.
    pub fn remove(&mut self, id: SandboxId) -> bool {
        let Some((class_id, order)) = self.places.remove(&id) else { return false };
        if let Some(class) = self.classes.get_mut(&class_id) {
            class.waiting.remove(&order);
            if class.waiting.is_empty() {
                self.ids.remove(&class.requirement);
                self.classes.remove(&class_id);
                self.fresh.remove(&class_id);
            }
        }
        true
    }

    /// Somebody with this requirement waits: newcomers stand behind.
    pub fn has_class(&self, requirement: &Requirement) -> bool {
        self.ids.contains_key(requirement)
    }

    /// Classes worth a look, by the age of their oldest: the fresh ones, and when some node `woke` all.
    pub fn runnable(&self, woke: bool) -> BTreeSet<(Order, ClassId)> {
        let with_head = |id: &ClassId| self.head(*id).map(|order| (order, *id));
        match woke {
            true => self.classes.keys().filter_map(with_head).collect(),
            false => self.fresh.iter().filter_map(with_head).collect(),
        }
    }

    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    pub fn head(&self, class: ClassId) -> Option<Order> {
        self.classes.get(&class)?.waiting.first().copied()
    }

    /// What a class wants, and whether it is fresh.
    pub fn class(&self, class: ClassId) -> Option<(&Requirement, bool)> {
        self.classes.get(&class).map(|held| (&held.requirement, self.fresh.contains(&class)))
    }

    /// Every node was looked at for this class, in vain.
    pub fn block(&mut self, class: ClassId) {
        self.fresh.remove(&class);
    }

    pub fn contains(&self, id: SandboxId) -> bool {
        self.places.contains_key(&id)
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Requirements of blocked classes, and how many wait in each class: for the invariants.
    pub fn blocked(&self) -> impl Iterator<Item = &Requirement> {
        let blocked = self.classes.iter().filter(|(id, _)| !self.fresh.contains(id));
        blocked.map(|(_, class)| &class.requirement)
    }

    pub fn waiting_in_classes(&self) -> usize {
        self.classes.values().map(|class| class.waiting.len()).sum()
    }
}

#[cfg(test)]
mod tests;
