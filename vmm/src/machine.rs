//! The machine at work: the event loop of the device thread, and the end.
//!
//! ```text
//!   built --run--> threads with filters --> running --end stated--> record written --> process gone
//!                                   |       ^     |
//!                                   |   Resume   Pause
//!                                   v       |     v
//!                          restored -+->  paused (and Snapshot, ...)
//! ```

mod token;
mod works;

use crate::control::ControlServer;
use crate::devices::bus::Bus;
use crate::devices::console::{ConsoleBuffer, FLUSH_INTERVAL};
use crate::devices::platform::PlatformEvents;
use crate::devices::virtio::mmio::Transport;
use crate::ending::Ending;
use crate::events::Teller;
use crate::memory::GuestMemory;
use crate::memory_use::MemoryMeter;
use crate::metrics::Metrics;
use crate::seccomp::{Bindings, Thread};
use crate::signals::Signals;
use crate::snapshot::save::{History, Keepsake};
use crate::vcpu::Vcpu;
use crate::vcpu::crew::Crew;
use kvm_ioctls::VmFd;
use pinfold_vmm_api::console::Writer;
use pinfold_vmm_api::control::{Confinement, ExitReason, ExitRecord, StartTiming};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;
use token::Token;
use vmm_sys_util::epoll::{Epoll, EpollEvent};
use works::Works;

/// Events taken from the kernel at once.
const EVENTS: usize = 32;

/// What the device thread keeps beside the devices.
pub struct Shared {
    pub meter: MemoryMeter,
    pub console: ConsoleBuffer,
    pub platform: PlatformEvents,
    pub ring: Writer,
    pub ending: Arc<Ending>,
    pub metrics: Arc<Metrics>,
    pub teller: Teller,
    pub signals: Signals,
    pub timing: StartTiming,
    pub confinement: Confinement,
    pub began: Instant,
}

impl Shared {
    fn record(&self, reason: ExitReason, message: String) -> ExitRecord {
        ExitRecord {
            reason,
            message,
            memory: self.meter.measure(),
            counters: self.metrics.snapshot(),
            events: self.metrics.events.counts(),
        }
    }
}

/// How the guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    Boot,
    /// it goes on where it was saved
    Restored,
    /// so, and once it is resumed
    RestoredPaused,
}

/// What a machine is made of.
pub struct Parts {
    pub vm: VmFd,
    pub memory: GuestMemory,
    pub vcpus: Vec<Vcpu>,
    pub bus: Arc<Bus>,
    pub keepsake: Keepsake,
    pub transports: Vec<Arc<Transport>>,
    pub control: ControlServer,
    pub bindings: Bindings,
    pub shared: Shared,
    pub begin: Begin,
}

pub struct Machine {
    works: Works,
    control: ControlServer,
    bindings: Bindings,
    begin: Begin,
}

impl Machine {
    pub fn new(parts: Parts) -> io::Result<Self> {
        let Parts { vm, memory, vcpus, bus, keepsake, transports, control, bindings, shared, begin } = parts;
        let works = Works {
            vm,
            memory,
            bus,
            history: History { last: keepsake.restored_from, tracked: false },
            keepsake,
            crew: Crew::new(vcpus),
            transports,
            shared,
            epoll: Epoll::new()?,
            paused: true,
        };
        Ok(Self { works, control, bindings, begin })
    }

    /// See [`crate::process::Options::once_bound`].
    pub fn call_once_bound(&mut self, call: fn(Thread)) {
        self.bindings.call_once_bound(call);
    }

    /// Runs the guest to its end and says how it came. Threads of vCPUs may still be in the guest when it returns: the
    /// caller ends the process.
    pub fn run(mut self) -> ExitRecord {
        let (reason, message) = match self.start() {
            Ok(()) => self.serve(),
            Err(error) => (ExitReason::Internal, format!("the machine cannot start: {error}")),
        };
        self.tell_events();
        let mut shared = self.works.shared;
        // a console that cannot be written loses its last words, not the record
        let _ = shared.console.flush_into(&mut shared.ring);
        shared.record(reason, message)
    }

    /// Starts the threads, binds all of them by their filters, then lets the guest go.
    fn start(&mut self) -> io::Result<()> {
        let works = &mut self.works;
        works.watch_host()?;
        works.watch(self.control.as_raw_fd(), Token::Control)?;
        works.crew.start(&self.bindings.vcpu).map_err(io::Error::other)?;
        self.bindings.devices.bind().map_err(io::Error::other)?;
        match self.begin {
            Begin::RestoredPaused => Ok(()),
            Begin::Boot => works.run_guest(false),
            Begin::Restored => works.run_guest(true),
        }
    }

    fn serve(&mut self) -> (ExitReason, String) {
        let mut events = [EpollEvent::default(); EVENTS];
        // when the console is to be flushed, if it has something
        let mut flush_at: Option<Instant> = None;
        loop {
            let timeout_ms = flush_at.map_or(-1, |_| FLUSH_INTERVAL.as_millis() as i32);
            let count = match self.works.epoll.wait(timeout_ms, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return (ExitReason::Internal, format!("the event loop failed: {error}")),
            };
            for token in events[..count].iter().filter_map(|event| Token::decode(event.data())) {
                if token == Token::Console {
                    self.works.shared.console.seen();
                    flush_at.get_or_insert_with(|| Instant::now() + FLUSH_INTERVAL);
                } else {
                    self.handle(token);
                }
            }
            if flush_at.is_some_and(|at| Instant::now() >= at) {
                // a ring that cannot be written must not stop the guest; its reader sees that nothing comes
                let _ = self.works.shared.console.flush_into(&mut self.works.shared.ring);
                flush_at = None;
            }
            if let Some(end) = self.works.shared.ending.stated() {
                return end;
            }
        }
    }

    /// To the watchers, and to the log.
    fn tell_events(&mut self) {
        let told = self.works.shared.teller.tell(&self.works.shared.metrics.events, Instant::now());
        let (events, lines): (Vec<_>, Vec<_>) = told.into_iter().unzip();
        for line in lines.into_iter().flatten() {
            eprintln!("pinfold-vmm: {line}");
        }
        self.control.publish(&events);
    }

    fn handle(&mut self, token: Token) {
        match token {
            // looked at after every round
            Token::Ending | Token::Console => {}
            Token::Signal => {
                if let Some(number) = self.works.shared.signals.take() {
                    self.works.shared.ending.state(ExitReason::Killed, format!("ended by signal {number}"));
                }
            }
            Token::Control => {
                let works = &mut self.works;
                self.control.serve(&mut |request, fds| works.answer(request, fds));
                self.control.catch_up(|| works.shared.metrics.events.latest());
            }
            Token::Events => self.tell_events(),
            // of the same round of events as the request to pause; it is not lost
            Token::Kick { .. } | Token::Host { .. } if self.works.paused => {}
            Token::Kick { device, queue } => self.works.transports[device].queue_event(queue),
            Token::Host { device, source } => self.works.transports[device].host_event(source),
        }
    }
}
