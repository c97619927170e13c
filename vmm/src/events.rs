//! What a host wants to know at once: counted where it happens, told by the device thread, a few a second.
//!
//! ```text
//!            first report             told
//!   quiet ----------------> due -----------------> resting --- report ---> held back
//!     ^                      ^                        |                        |
//!     |                      +---- interval over -----|------------------------+
//!     +----------------------- interval over ---------+
//! ```
//!
//! There is one slot for each kind and source, and no queue: a guest that breaks a rule a million times moves one
//! number. Whoever reports never waits and formats nothing unless the slot was quiet. While nothing is held back there is
//! no timer, so an idle machine makes no wake-ups.

use pinfold_vmm_api::control::{Event, EventCount, EventKind};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

/// Each kind of each source is told at most this often.
pub const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// ... and logged at most this often, with how many were passed over.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Sources of one machine: every device that a config may ask for, the bus, the console, the machine.
pub const MAX_SOURCES: usize = 32;

/// Every event of a machine. Whoever reports holds a [`Source`].
#[derive(Debug, Default)]
pub struct Events {
    sources: Mutex<Vec<Arc<Source>>>,
    wake: Arc<Wake>,
}

/// Wakes the device thread; without one, in tests of single devices, nobody is woken.
#[derive(Debug, Default)]
struct Wake(Mutex<Option<EventFd>>);

/// A device, a bus, or the machine: something that events are about.
#[derive(Debug)]
pub struct Source {
    name: String,
    slots: [Slot; EventKind::ALL.len()],
    wake: Arc<Wake>,
}

#[derive(Debug, Default)]
struct Slot {
    count: AtomicU64,
    due: AtomicBool,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    message: String,
    /// told last
    at: Option<Instant>,
    logged_at: Option<Instant>,
    logged_count: u64,
}

impl Wake {
    fn wake(&self) {
        if let Some(wake) = &*lock(&self.0) {
            // a full counter wakes all the same
            let _ = wake.write(1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Events {
    /// The source of that name, made when it is new. At the bound, the last one is shared.
    pub fn source(&self, name: &str) -> Arc<Source> {
        let mut sources = lock(&self.sources);
        if let Some(known) = sources.iter().find(|source| source.name == name) {
            return Arc::clone(known);
        }
        if sources.len() >= MAX_SOURCES
            && let Some(last) = sources.last()
        {
            return Arc::clone(last);
        }
        let source =
            Source { name: name.to_owned(), slots: Default::default(), wake: Arc::clone(&self.wake) };
        sources.push(Arc::new(source));
        Arc::clone(&sources[sources.len() - 1])
    }

    /// A new source, `prefix` and its number among those of this prefix.
    pub fn numbered(&self, prefix: &str) -> Arc<Source> {
        let number = lock(&self.sources).iter().filter(|source| source.name.starts_with(prefix)).count();
        self.source(&format!("{prefix}{number}"))
    }

    /// How often each was seen; those never seen are left out.
    pub fn counts(&self) -> Vec<EventCount> {
        self.seen()
            .map(|(kind, source, count)| EventCount { kind, device: source.name.clone(), count })
            .collect()
    }

    /// The latest of each, for a watcher that comes late.
    pub fn latest(&self) -> Vec<Event> {
        self.seen().map(|(kind, source, _)| source.event(kind)).collect()
    }

    fn seen(&self) -> impl Iterator<Item = (EventKind, Arc<Source>, u64)> + use<> {
        let sources = lock(&self.sources).clone();
        sources
            .into_iter()
            .flat_map(|source| {
                EventKind::ALL
                    .map(|kind| (kind, Arc::clone(&source), source.slot(kind).count.load(Ordering::Relaxed)))
            })
            .filter(|(_, _, count)| *count > 0)
    }
}

impl Source {
    /// Counts one, and says `why` if nothing of this kind is waiting to be told.
    pub fn report(&self, kind: EventKind, why: impl FnOnce() -> String) {
        self.report_many(kind, 1, why);
    }

    /// Counts `number`, which may be zero.
    pub fn report_many(&self, kind: EventKind, number: u64, why: impl FnOnce() -> String) {
        if number == 0 {
            return;
        }
        let slot = self.slot(kind);
        slot.count.fetch_add(number, Ordering::Relaxed);
        if !slot.due.swap(true, Ordering::AcqRel) {
            lock(&slot.told).message = why();
            self.wake.wake();
        }
    }

    fn slot(&self, kind: EventKind) -> &Slot {
        &self.slots[kind as usize]
    }

    fn event(&self, kind: EventKind) -> Event {
        let slot = self.slot(kind);
        Event {
            kind,
            device: self.name.clone(),
            count: slot.count.load(Ordering::Relaxed),
            message: lock(&slot.told).message.clone(),
        }
    }

    /// The event if it is due and has rested; otherwise when it will have.
    fn tell(&self, kind: EventKind, now: Instant) -> Option<Result<Event, Instant>> {
        let slot = self.slot(kind);
        if !slot.due.load(Ordering::Acquire) {
            return None;
        }
        let rested = lock(&slot.told).at.map(|at| at + TELL_INTERVAL).filter(|rested| *rested > now);
        if let Some(rested) = rested {
            return Some(Err(rested));
        }
        slot.due.store(false, Ordering::Release);
        lock(&slot.told).at = Some(now);
        Some(Ok(self.event(kind)))
    }

    /// A line for the log, if the last one is long enough ago.
    fn log_line(&self, event: &Event, now: Instant) -> Option<String> {
        let mut told = lock(&self.slot(event.kind).told);
        if told.logged_at.is_some_and(|at| now < at + LOG_INTERVAL) {
            return None;
        }
        let more = event.count.saturating_sub(told.logged_count + 1);
        told.logged_at = Some(now);
        told.logged_count = event.count;
        let suppressed = if more == 0 { String::new() } else { format!(", and {more} more like it") };
        Some(format!("{} of {}: {}{suppressed}", event.kind.as_str(), event.device, event.message))
    }
}

/// The device thread's end.
#[derive(Debug)]
pub struct Teller {
    wake: EventFd,
    timer: TimerFd,
    timer_runs: bool,
    epoll: Epoll,
}

impl Teller {
    /// From now on reports wake the holder.
    pub fn new(events: &Events) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let timer = TimerFd::new()?;
        let epoll = Epoll::new()?;
        for fd in [wake.as_raw_fd(), timer.as_raw_fd()] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))?;
        }
        *lock(&events.wake.0) = Some(wake.try_clone()?);
        Ok(Self { wake, timer, timer_runs: false, epoll })
    }

    /// What is due and has rested, each with its line for the log if that is due too. Sets the timer for what is held back.
    pub fn tell(&mut self, events: &Events, now: Instant) -> Vec<(Event, Option<String>)> {
        let _ = self.wake.read();
        let sources = lock(&events.sources).clone();
        let (mut told, mut held_back): (Vec<_>, Option<Instant>) = (Vec::new(), None);
        for source in sources {
            for kind in EventKind::ALL {
                match source.tell(kind, now) {
                    None => {}
                    Some(Ok(event)) => {
                        let line = source.log_line(&event, now);
                        told.push((event, line));
                    }
                    Some(Err(at)) => held_back = Some(held_back.map_or(at, |first| first.min(at))),
                }
            }
        }
        self.set_timer(held_back.map(|at| at.saturating_duration_since(now)));
        told
    }

    fn set_timer(&mut self, wait: Option<Duration>) {
        let result = match wait {
            Some(wait) => self.timer.reset(wait.max(Duration::from_millis(1)), None),
            None if self.timer_runs => self.timer.clear(),
            None => return,
        };
        self.timer_runs = wait.is_some() && result.is_ok();
    }
}

impl AsRawFd for Teller {
    /// Readable when [`Teller::tell`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
