//! All vCPU threads of a machine, as the device thread commands them.
//!
//! ```text
//!   waiting --start--> halted --run--> running --halt (signal)--> halted --run--> ...
//!                        |  ^             |
//!                   save +--+             +-- ended: counts as halted, and the end was stated
//! ```
//!
//! Invariant: a thread is in the guest only between an [`Order::Run`] or [`Order::Resume`] and its next
//! [`Word::Halted`], so that while all are halted nothing but the device thread touches the machine.

use super::Vcpu;
use super::state::{StateError, VcpuState};
use crate::seccomp::Binding;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::signal::{Killable, register_signal_handler};

/// How long a vCPU may take to leave the guest, or to tell its state. KVM does both in microseconds; emulated hardware
/// needs milliseconds. Past it the machine has to end.
pub const HALT_TIME: Duration = Duration::from_secs(10);
/// Interrupts KVM_RUN. From outside the process it does nothing.
pub const HALT_SIGNAL: libc::c_int = libc::SIGUSR1;
/// Orders and words of one thread that are on their way at most: it has at most one, and one more from before its end.
const QUEUED: usize = 2;

pub(super) enum Order {
    /// Go on.
    Run,
    /// Go on after a time that the guest has not seen: its watchdogs are told.
    Resume,
    Save(Arc<[u32]>),
}

pub(super) enum Word {
    Halted,
    Saved(Box<Result<VcpuState, StateError>>),
}

/// What a thread shares with its commander.
pub(super) struct Post {
    pub orders: Receiver<Order>,
    pub words: SyncSender<(u32, Word)>,
    /// every vCPU is to leave the guest
    pub halt: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
pub enum CrewError {
    #[error("a vCPU thread cannot be started or signalled: {0}")]
    Host(#[from] io::Error),
    #[error("a vCPU did not leave the guest or tell its state within {} s", HALT_TIME.as_secs())]
    Stuck,
    #[error("a vCPU thread has gone")]
    Gone,
    #[error("{0}")]
    State(#[from] StateError),
}

struct Member {
    orders: SyncSender<Order>,
    thread: JoinHandle<()>,
}

pub struct Crew {
    waiting: Vec<Vcpu>,
    members: Vec<Member>,
    words: Receiver<(u32, Word)>,
    speak: SyncSender<(u32, Word)>,
    halt: Arc<AtomicBool>,
}

impl Crew {
    pub fn new(vcpus: Vec<Vcpu>) -> Self {
        let (speak, words) = sync_channel(vcpus.len() * QUEUED);
        Self { waiting: vcpus, members: Vec::new(), words, speak, halt: Arc::default() }
    }

    /// Starts the threads. When it returns each is bound by `binding` and halted.
    pub fn start(&mut self, binding: &Binding) -> Result<(), CrewError> {
        register_signal_handler(HALT_SIGNAL, super::on_halt_signal)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        for vcpu in std::mem::take(&mut self.waiting) {
            let (orders, receiver) = sync_channel(QUEUED);
            let halt = Arc::clone(&self.halt);
            let post = Post { orders: receiver, words: self.speak.clone(), halt };
            self.members.push(Member { orders, thread: vcpu.spawn(binding.clone(), post)? });
        }
        self.hear_halted()
    }

    /// Lets halted vCPUs into the guest; `resumed`: after a time that the guest has not seen.
    pub fn run(&self, resumed: bool) -> Result<(), CrewError> {
        self.halt.store(false, Ordering::SeqCst);
        for member in &self.members {
            let order = if resumed { Order::Resume } else { Order::Run };
            member.orders.try_send(order).map_err(|_| CrewError::Gone)?;
        }
        Ok(())
    }

    /// Takes every vCPU out of the guest, at a point at which its state is whole.
    pub fn halt(&self) -> Result<(), CrewError> {
        self.halt.store(true, Ordering::SeqCst);
        for member in &self.members {
            member.thread.kill(HALT_SIGNAL).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        }
        self.hear_halted()
    }

    /// States of the halted vCPUs, in their order. `msrs`: those that are to be read.
    pub fn save(&self, msrs: &Arc<[u32]>) -> Result<Vec<VcpuState>, CrewError> {
        for member in &self.members {
            member.orders.try_send(Order::Save(Arc::clone(msrs))).map_err(|_| CrewError::Gone)?;
        }
        let mut states: Vec<Option<VcpuState>> = self.members.iter().map(|_| None).collect();
        for (id, word) in self.hear()? {
            if let (Word::Saved(state), Some(slot)) = (word, states.get_mut(id as usize)) {
                *slot = Some((*state)?);
            }
        }
        states.into_iter().collect::<Option<_>>().ok_or(CrewError::Gone)
    }

    fn hear_halted(&self) -> Result<(), CrewError> {
        self.hear().map(drop)
    }

    /// One word of each thread.
    fn hear(&self) -> Result<Vec<(u32, Word)>, CrewError> {
        let until = Instant::now() + HALT_TIME;
        let next = |_| {
            self.words.recv_timeout(until.saturating_duration_since(Instant::now())).map_err(|error| {
                match error {
                    RecvTimeoutError::Timeout => CrewError::Stuck,
                    RecvTimeoutError::Disconnected => CrewError::Gone,
                }
            })
        };
        self.members.iter().map(next).collect()
    }
}
