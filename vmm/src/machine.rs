//! The machine at work: the event loop of the device thread, and the end.
//!
//! ```text
//!   built --run--> threads with filters --gate--> running --end stated--> record written --> process gone
//! ```

use crate::builder::micros_since;
use crate::control::ControlServer;
use crate::devices::console::{ConsoleBuffer, FLUSH_INTERVAL};
use crate::devices::virtio::command;
use crate::devices::virtio::mmio::Transport;
use crate::ending::Ending;
use crate::events::Teller;
use crate::memory::GuestMemory;
use crate::memory_use::MemoryMeter;
use crate::metrics::Metrics;
use crate::seccomp::{Bindings, Thread};
use crate::signals::Signals;
use crate::vcpu::Vcpu;
use kvm_ioctls::VmFd;
use pinfold_vmm_api::console::Writer;
use pinfold_vmm_api::control::{
    Confinement, ExitReason, ExitRecord, MachineState, Request, Response, StartTiming, Status,
};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Barrier};
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken from the kernel at once.
const EVENTS: usize = 32;

/// What an event is about, as the data of an epoll entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Ending,
    Signal,
    Console,
    Control,
    Events,
    Kick { device: usize, queue: usize },
    Host { device: usize, source: usize },
}

impl Token {
    fn encode(self) -> u64 {
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

    fn decode(data: u64) -> Option<Self> {
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

/// What the device thread keeps beside the devices.
pub struct Shared {
    pub meter: MemoryMeter,
    pub console: ConsoleBuffer,
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
    fn status(&self) -> Status {
        Status {
            state: if self.ending.stated().is_some() { MachineState::Ending } else { MachineState::Running },
            version: env!("CARGO_PKG_VERSION").into(),
            timing: self.timing,
            memory: self.meter.measure(),
            counters: self.metrics.snapshot(),
            events: self.metrics.events.counts(),
            confinement: self.confinement,
        }
    }

    fn answer(&self, transports: &[Arc<Transport>], request: Request) -> Response {
        if let Some(response) = command::answer(transports, &request) {
            return response;
        }
        match request {
            Request::Status => Response::Status(self.status()),
            Request::Kill => {
                self.ending.state(ExitReason::Killed, "killed by a request on the control socket");
                Response::Killed
            }
            other => Response::Error { message: format!("this machine cannot do {other:?} yet") },
        }
    }

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

pub struct Machine {
    // the virtual machine and its memory live as long as the vCPUs run
    _vm: VmFd,
    _memory: GuestMemory,
    vcpus: Vec<Vcpu>,
    transports: Vec<Arc<Transport>>,
    control: ControlServer,
    bindings: Bindings,
    shared: Shared,
}

impl Machine {
    pub fn new(
        vm: VmFd,
        memory: GuestMemory,
        vcpus: Vec<Vcpu>,
        transports: Vec<Arc<Transport>>,
        control: ControlServer,
        bindings: Bindings,
        shared: Shared,
    ) -> Self {
        Self { _vm: vm, _memory: memory, vcpus, transports, control, bindings, shared }
    }

    /// See [`crate::process::Options::once_bound`].
    pub fn call_once_bound(&mut self, call: fn(Thread)) {
        self.bindings.call_once_bound(call);
    }

    /// Runs the guest to its end and says how it came. Threads of vCPUs may still be in the guest when it returns: the
    /// caller ends the process.
    pub fn run(mut self) -> ExitRecord {
        let (reason, message) = match self.start() {
            Ok(epoll) => self.serve(&epoll),
            Err(error) => (ExitReason::Internal, format!("the machine cannot start: {error}")),
        };
        self.tell_events();
        // a console that cannot be written loses its last words, not the record
        let _ = self.shared.console.flush_into(&mut self.shared.ring);
        self.shared.record(reason, message)
    }

    /// Starts the threads, binds all of them by their filters, then lets the guest go.
    fn start(&mut self) -> io::Result<Epoll> {
        let epoll = self.watch()?;
        let vcpus = std::mem::take(&mut self.vcpus);
        let ready = Arc::new(Barrier::new(vcpus.len() + 1));
        let gate = Arc::new(Barrier::new(vcpus.len() + 1));
        for each in vcpus {
            each.spawn(self.bindings.vcpu.clone(), Arc::clone(&ready), Arc::clone(&gate))?;
        }
        ready.wait();
        self.bindings.devices.bind().map_err(io::Error::other)?;
        self.shared.timing.first_run_us = micros_since(self.shared.began);
        gate.wait();
        Ok(epoll)
    }

    fn watch(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        let add = |fd: RawFd, token: Token| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token.encode()))
        };
        add(self.shared.ending.as_raw_fd(), Token::Ending)?;
        add(self.shared.signals.as_raw_fd(), Token::Signal)?;
        add(self.shared.console.as_raw_fd(), Token::Console)?;
        add(self.control.as_raw_fd(), Token::Control)?;
        add(self.shared.teller.as_raw_fd(), Token::Events)?;
        for (device, transport) in self.transports.iter().enumerate() {
            for (queue, kick) in transport.kicks().iter().enumerate() {
                add(kick.as_raw_fd(), Token::Kick { device, queue })?;
            }
            for (source, host) in transport.host_sources().iter().enumerate() {
                let token = Token::Host { device, source };
                epoll.ctl(ControlOperation::Add, host.fd, EpollEvent::new(host.events, token.encode()))?;
            }
        }
        Ok(epoll)
    }

    fn serve(&mut self, epoll: &Epoll) -> (ExitReason, String) {
        let mut events = [EpollEvent::default(); EVENTS];
        // when the console is to be flushed, if it has something
        let mut flush_at: Option<Instant> = None;
        loop {
            let timeout_ms = flush_at.map_or(-1, |_| FLUSH_INTERVAL.as_millis() as i32);
            let count = match epoll.wait(timeout_ms, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return (ExitReason::Internal, format!("the event loop failed: {error}")),
            };
            for token in events[..count].iter().filter_map(|event| Token::decode(event.data())) {
                if token == Token::Console {
                    self.shared.console.seen();
                    flush_at.get_or_insert_with(|| Instant::now() + FLUSH_INTERVAL);
                } else {
                    self.handle(token);
                }
            }
            if flush_at.is_some_and(|at| Instant::now() >= at) {
                // a ring that cannot be written must not stop the guest; its reader sees that nothing comes
                let _ = self.shared.console.flush_into(&mut self.shared.ring);
                flush_at = None;
            }
            if let Some(end) = self.shared.ending.stated() {
                return end;
            }
        }
    }

    /// To the watchers, and to the log.
    fn tell_events(&mut self) {
        let told = self.shared.teller.tell(&self.shared.metrics.events, Instant::now());
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
                if let Some(number) = self.shared.signals.take() {
                    self.shared.ending.state(ExitReason::Killed, format!("ended by signal {number}"));
                }
            }
            Token::Control => {
                let (shared, transports) = (&self.shared, &self.transports);
                self.control.serve(&mut |request| shared.answer(transports, request));
                self.control.catch_up(|| shared.metrics.events.latest());
            }
            Token::Events => self.tell_events(),
            Token::Kick { device, queue } => self.transports[device].queue_event(queue),
            Token::Host { device, source } => self.transports[device].host_event(source),
        }
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
