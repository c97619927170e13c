//! One list of saved machines and its bounds.
//!
//! The list is under a lock that is never held while the disk works; acts on names of files take one turn after the other, and
//! look at the list again when it is theirs.

use super::{Bounds, Held};
use crate::host::snapshots::{Draft, Found, Mapped, Saved, SnapshotKey, SnapshotStore};
use crate::host::{HostError, blocking};
use pinfold_domain::{Cause, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Notify;

/// Failed ones without files that are listed; the oldest make room.
pub const MAX_FAILED: usize = 256;

pub struct Shelf<Id> {
    store: SnapshotStore,
    bounds: Bounds,
    kind: &'static str,
    list: Mutex<List<Id>>,
    /// who changes names on the disk
    turn: tokio::sync::Mutex<()>,
    notify: Notify,
}

struct List<Id> {
    entries: BTreeMap<Id, Entry>,
    changed: BTreeSet<Id>,
    /// memory files without a name that machines may still map
    gone: Vec<Weak<Mapped>>,
    /// of the next failure
    failures: u64,
}

struct Entry {
    held: Held,
    /// bytes that it takes, or may come to take
    bytes: u64,
    /// its working set is being recorded, or has been
    recorded: bool,
    /// to be removed; if it is being made, as soon as it is
    unwanted: bool,
    /// the order in which they failed
    failure: u64,
    /// its memory file, which machines may map
    mapped: Weak<Mapped>,
}

impl<Id: Copy + Ord + Display + FromStr + Send + 'static> Shelf<Id> {
    /// Looks at the disk; what is damaged there is listed as failed.
    pub(super) fn open(
        kind: &'static str,
        (store, bounds): (SnapshotStore, Bounds),
    ) -> Result<Self, HostError> {
        let mut list =
            List { entries: BTreeMap::new(), changed: BTreeSet::new(), gone: Vec::new(), failures: 0 };
        for (id, found) in store.list::<Id>()? {
            match found {
                Found::Whole(saved) => list.put(id, Entry::ready(*saved)),
                Found::Damaged { why, bytes } => {
                    list.fail(id, Cause::new(Reason::SnapshotInvalid, why), bytes);
                }
            }
        }
        Ok(Self {
            store,
            bounds,
            kind,
            list: Mutex::new(list),
            turn: tokio::sync::Mutex::default(),
            notify: Notify::new(),
        })
    }

    pub(super) fn key(&self) -> &SnapshotKey {
        self.store.key()
    }

    /// A place for one more that may take `bytes`; [`Self::draft`] fills it, [`Self::finish`] ends it. `None`: it is there
    /// already, or is being made; its state is told again.
    pub fn begin(&self, id: Id, bytes: u64) -> Option<Result<(), Cause>> {
        let mut list = self.lock();
        if list.entries.get(&id).is_some_and(|entry| entry.unwanted || !entry.is_failed()) {
            drop(list);
            self.changed(id);
            return None;
        }
        let begun = match self.refusal(&mut list, id, bytes) {
            Some(why) => {
                // what is damaged goes on to take its room
                let kept = list.entries.get(&id).map_or(0, |entry| entry.bytes);
                let cause = Cause::new(Reason::LimitReached, why);
                list.fail(id, cause.clone(), kept);
                Err(cause)
            }
            None => {
                list.put(id, Entry { bytes, ..Entry::of(Held::Making) });
                Ok(())
            }
        };
        drop(list);
        self.changed(id);
        Some(begun)
    }

    /// Why there is no place for it.
    fn refusal(&self, list: &mut List<Id>, id: Id, bytes: u64) -> Option<String> {
        let others = || list.entries.iter().filter(|(other, _)| **other != id).map(|(_, entry)| entry);
        let number = others().filter(|entry| !entry.is_failed()).count();
        let taken = others().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
        let gone = list.gone.iter().filter_map(Weak::upgrade);
        let taken = gone.fold(taken, |sum, mapped| sum.saturating_add(mapped.bytes));
        let Bounds { number: most, bytes: most_bytes } = self.bounds;
        if number >= most {
            Some(format!("this node holds {number} {}s, its limit is {most}", self.kind))
        } else if taken.saturating_add(bytes) > most_bytes {
            Some(format!(
                "the {}s of this node take {taken} bytes, and up to {bytes} more are past its limit of {most_bytes}",
                self.kind
            ))
        } else {
            None
        }
    }

    /// Where the files of one that has a place are to be made.
    pub async fn draft(&self, id: Id) -> Result<Draft, Cause> {
        let _turn = self.turn.lock().await;
        let store = self.store.clone();
        let draft = blocking(move || store.draft(id)).await;
        draft.map_err(|error| Cause::new(Reason::SnapshotFailed, error.sentence()))
    }

    /// The making has ended.
    pub async fn finish(&self, id: Id, made: Result<Saved, Cause>) {
        let unwanted = {
            let mut list = self.lock();
            let unwanted = list.entries.get(&id).is_none_or(|entry| entry.unwanted);
            match made {
                // what machines may map is charged until they have ended
                Ok(saved) => list.put(id, Entry { unwanted, ..Entry::ready(saved) }),
                Err(_) if unwanted => {}
                Err(cause) => list.fail(id, cause, 0),
            }
            unwanted
        };
        if unwanted {
            self.delete(id).await;
        }
        self.changed(id);
    }

    /// What fails before there is anything to make. What is there, or is being made, stays.
    pub fn refuse(&self, id: Id, cause: Cause) {
        let mut list = self.lock();
        let there = list.entries.get(&id);
        if there.is_none_or(|entry| entry.is_failed() && !entry.unwanted) {
            let kept = there.map_or(0, |entry| entry.bytes);
            list.fail(id, cause, kept);
        }
        drop(list);
        self.changed(id);
    }

    /// Not what is to be removed.
    pub fn get(&self, id: Id) -> Option<Held> {
        let list = self.lock();
        list.entries.get(&id).filter(|entry| !entry.unwanted).map(|entry| entry.held.clone())
    }

    /// It was found damaged when it was used: it stays on the disk, for a person, and takes its room until it is dropped.
    pub async fn spoil(&self, id: Id, cause: Cause) {
        self.withdraw(id, cause, true).await;
    }

    /// It is whole, and of no use any more.
    pub async fn outdate(&self, id: Id, cause: Cause) {
        self.withdraw(id, cause, false).await;
    }

    async fn withdraw(&self, id: Id, cause: Cause, keep: bool) {
        let _turn = self.turn.lock().await;
        {
            let mut list = self.lock();
            let Some(Entry { held: Held::Ready(saved), unwanted: false, .. }) = list.entries.get(&id) else {
                return;
            };
            let kept = if keep { saved.data_bytes() } else { 0 };
            list.fail(id, cause.clone(), kept);
        }
        self.changed(id);
        let store = self.store.clone();
        if keep {
            let set_aside = blocking(move || Ok(store.set_aside(id, cause.message))).await;
            drop(set_aside);
        } else {
            self.remove_files(id).await;
        }
    }

    /// `true` for the first who asks, who then records its working set.
    pub fn records_working_set(&self, id: Id) -> bool {
        let mut list = self.lock();
        list.entries.get_mut(&id).is_some_and(|entry| !std::mem::replace(&mut entry.recorded, true))
    }

    /// Nobody is given it from now on; it is listed until it is gone. Machines that were restored from it go on: what they have
    /// open or mapped stays theirs, and is charged.
    pub async fn remove(&self, id: Id) {
        {
            let mut list = self.lock();
            match list.entries.get_mut(&id) {
                Some(Entry { held: Held::Making, unwanted, .. }) => {
                    *unwanted = true;
                    return;
                }
                Some(Entry { unwanted: true, .. }) | None => return,
                Some(entry) => entry.unwanted = true,
            }
        }
        self.delete(id).await;
    }

    async fn delete(&self, id: Id) {
        {
            let _turn = self.turn.lock().await;
            self.remove_files(id).await;
        }
        let mut list = self.lock();
        if let Some(Entry { mapped, .. }) = list.entries.remove(&id) {
            list.let_go(mapped);
        }
    }

    async fn remove_files(&self, id: Id) {
        let store = self.store.clone();
        match blocking(move || store.remove(id)).await {
            Ok(()) => tracing::info!(%id, kind = self.kind, "a saved machine was removed"),
            Err(error) => {
                tracing::error!(%id, kind = self.kind, error = error.sentence(), "a saved machine cannot be removed");
            }
        }
    }

    /// The memory file that a machine maps which an earlier agent has started: that of an entry, or one without a name.
    pub(super) fn adopt(&self, mapped: Mapped) -> Arc<Mapped> {
        let mut list = self.lock();
        let listed = list.entries.values().map(|entry| &entry.mapped);
        if let Some(known) =
            listed.chain(&list.gone).filter_map(Weak::upgrade).find(|known| **known == mapped)
        {
            return known;
        }
        let adopted = Arc::new(mapped);
        list.let_go(Arc::downgrade(&adopted));
        adopted
    }

    pub(super) fn list(&self) -> Vec<(Id, Held)> {
        self.lock().entries.iter().map(|(id, entry)| (*id, entry.held.clone())).collect()
    }

    fn changed(&self, id: Id) {
        self.lock().changed.insert(id);
        self.notify.notify_one();
    }

    pub(super) async fn changed_again(&self) {
        self.notify.notified().await;
    }

    pub(super) fn changes(&self) -> Vec<(Id, Held)> {
        let changed = std::mem::take(&mut self.lock().changed);
        self.list().into_iter().filter(|(id, _)| changed.contains(id)).collect()
    }

    /// A panic elsewhere leaves the list whole: every change is one call.
    fn lock(&self) -> std::sync::MutexGuard<'_, List<Id>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Id: Copy + Ord> List<Id> {
    /// A memory file without a name is charged for as long as a machine maps it.
    fn let_go(&mut self, mapped: Weak<Mapped>) {
        self.gone.push(mapped);
        self.gone.retain(|mapped| mapped.strong_count() > 0);
    }

    /// In the place of what is there, whose files go.
    fn put(&mut self, id: Id, entry: Entry) {
        if let Some(Entry { mapped, .. }) = self.entries.insert(id, entry) {
            self.let_go(mapped);
        }
    }

    /// `bytes`: of files that stay.
    fn fail(&mut self, id: Id, cause: Cause, bytes: u64) {
        self.failures += 1;
        let mut entry =
            Entry { bytes, recorded: true, failure: self.failures, ..Entry::of(Held::Failed(cause)) };
        if let Some(before) = self.entries.get_mut(&id).filter(|_| bytes > 0) {
            entry.mapped = std::mem::take(&mut before.mapped);
        }
        self.put(id, entry);
        let without_files = || self.entries.iter().filter(|(_, entry)| entry.is_failed() && entry.bytes == 0);
        if without_files().count() > MAX_FAILED
            && let Some((&oldest, _)) = without_files().min_by_key(|(_, entry)| entry.failure)
        {
            self.entries.remove(&oldest);
            self.changed.remove(&oldest);
        }
    }
}

impl Entry {
    fn of(held: Held) -> Self {
        Self { held, bytes: 0, recorded: false, unwanted: false, failure: 0, mapped: Weak::new() }
    }

    fn ready(saved: Saved) -> Self {
        let (bytes, recorded) = (saved.data_bytes(), saved.working_set().is_some());
        let mapped = Arc::downgrade(saved.mapped());
        Self { bytes, recorded, mapped, ..Self::of(Held::Ready(Arc::new(saved))) }
    }

    fn is_failed(&self) -> bool {
        matches!(self.held, Held::Failed(_))
    }
}
