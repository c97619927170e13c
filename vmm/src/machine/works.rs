//! What the device thread works with, and what it does on request.
//!
//! Invariant: while `paused` no vCPU is in the guest, no device has a request in flight, and the event loop hears no
//! device. Kicks that came before stay in their eventfds, so nothing is lost.

use super::Shared;
use super::token::Token;
use crate::builder::micros_since;
use crate::devices::bus::Bus;
use crate::devices::virtio::command;
use crate::devices::virtio::mmio::Transport;
use crate::memory::GuestMemory;
use crate::snapshot::format::Key;
use crate::snapshot::save::{self, History, Keepsake, Subject, Written};
use crate::snapshot::working_set;
use crate::vcpu::crew::Crew;
use kvm_ioctls::VmFd;
use pinfold_vmm_api::control::{
    ExitReason, MachineState, Request, Response, SnapshotKind, SnapshotRequest, SnapshotTaken, Status,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub(super) struct Works {
    pub vm: VmFd,
    pub memory: GuestMemory,
    pub bus: Arc<Bus>,
    pub keepsake: Keepsake,
    pub history: History,
    pub crew: Crew,
    pub transports: Vec<Arc<Transport>>,
    pub shared: Shared,
    pub epoll: Epoll,
    /// so it begins
    pub paused: bool,
}

impl Works {
    pub fn watch(&self, fd: RawFd, token: Token) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token.encode()))
    }

    /// What concerns the device thread whether or not the guest runs.
    pub fn watch_host(&self) -> io::Result<()> {
        self.watch(self.shared.ending.as_raw_fd(), Token::Ending)?;
        self.watch(self.shared.signals.as_raw_fd(), Token::Signal)?;
        self.watch(self.shared.console.as_raw_fd(), Token::Console)?;
        self.watch(self.shared.teller.as_raw_fd(), Token::Events)
    }

    fn watch_guest(&self) -> io::Result<()> {
        self.for_guest_events(&mut |fd, events, token| {
            self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token.encode()))
        })
    }

    fn leave_guest(&self) -> io::Result<()> {
        self.for_guest_events(&mut |fd, _, _| {
            self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
        })
    }

    fn for_guest_events(
        &self,
        act: &mut dyn FnMut(RawFd, EventSet, Token) -> io::Result<()>,
    ) -> io::Result<()> {
        for (device, transport) in self.transports.iter().enumerate() {
            for (queue, kick) in transport.kicks().iter().enumerate() {
                act(kick.as_raw_fd(), EventSet::IN, Token::Kick { device, queue })?;
            }
            for (source, host) in transport.host_sources().iter().enumerate() {
                act(host.fd, host.events, Token::Host { device, source })?;
            }
        }
        Ok(())
    }

    /// Lets the guest run; `resumed`: after a time that it has not seen.
    pub fn run_guest(&mut self, resumed: bool) -> io::Result<()> {
        if self.shared.timing.first_run_us == 0 {
            self.shared.timing.first_run_us = micros_since(self.shared.began);
            self.shared.timing.first_run_cpu_us = crate::process::cpu_us();
        }
        self.crew.run(resumed).map_err(io::Error::other)?;
        self.watch_guest()?;
        if resumed {
            // at rest, devices have put back what they had taken from their queues
            self.transports.iter().for_each(|transport| transport.kick_all());
        }
        self.paused = false;
        Ok(())
    }

    /// A device that does not come to rest lets the guest go on, and the answer says so.
    fn pause(&mut self) -> io::Result<Response> {
        if self.paused {
            return Ok(Response::Done);
        }
        self.crew.halt().map_err(io::Error::other)?;
        self.leave_guest()?;
        if let Err(busy) = self.transports.iter().try_for_each(|transport| transport.quiesce()) {
            self.run_guest(true)?;
            return Ok(Response::Error { message: format!("the machine cannot pause, and goes on: {busy}") });
        }
        self.paused = true;
        Ok(Response::Done)
    }

    fn resume(&mut self) -> io::Result<Response> {
        if self.paused {
            self.run_guest(true)?;
        }
        Ok(Response::Done)
    }

    /// `fds`: descriptors that came with the request; those that it does not want are closed.
    pub fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Response {
        if let Some(response) = command::answer(&self.transports, &request) {
            return response;
        }
        match request {
            Request::Status => Response::Status(self.status()),
            Request::Kill => {
                self.shared.ending.state(ExitReason::Killed, "killed by a request on the control socket");
                Response::Killed
            }
            Request::PowerButton => match self.shared.platform.press_power_button() {
                Ok(()) => Response::Done,
                Err(error) => Response::Error { message: format!("the button cannot be pressed: {error}") },
            },
            Request::Pause => self.or_end("pause", Self::pause),
            Request::Resume => self.or_end("resume", Self::resume),
            Request::WorkingSet => match self.working_set(fds) {
                Ok(()) => Response::Done,
                Err(message) => Response::Error { message },
            },
            Request::Snapshot(request) => match self.snapshot(&request, fds) {
                Ok(taken) => Response::Snapshot(taken),
                Err(message) => Response::Error { message },
            },
            // answered by the devices, above, or by the control server
            Request::SetRate(_) | Request::SetBalloon { .. } | Request::Watch => {
                Response::Error { message: "this machine cannot do that here".into() }
            }
        }
    }

    fn working_set(&self, fds: Vec<OwnedFd>) -> Result<(), String> {
        let [file]: [OwnedFd; 1] = fds
            .try_into()
            .map_err(|fds: Vec<_>| format!("a working set takes one descriptor; {} came", fds.len()))?;
        working_set::write(&self.memory, self.keepsake.pagemap.as_ref(), &File::from(file))
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// The machine goes on as it was, whether or not that was possible.
    fn snapshot(&mut self, request: &SnapshotRequest, fds: Vec<OwnedFd>) -> Result<SnapshotTaken, String> {
        if !self.paused {
            return Err("a machine is saved while it is paused, and this one is not".into());
        }
        let [state, memory]: [File; 2] =
            fds.into_iter().map(File::from).collect::<Vec<_>>().try_into().map_err(|fds: Vec<_>| {
                format!("a snapshot takes two descriptors, state and memory; {} came", fds.len())
            })?;
        let began = Instant::now();
        let subject = Subject {
            vm: &self.vm,
            memory: &self.memory,
            crew: &self.crew,
            bus: &self.bus,
            transports: &self.transports,
            keepsake: &self.keepsake,
            over: &self.shared.meter.guest_files(),
        };
        let key = Key::from_hex(&request.key).map_err(|error| error.to_string())?;
        let written = match request.kind {
            SnapshotKind::Full => save::full(&subject, &key, &state, &memory, false),
            SnapshotKind::FullTracked => save::full(&subject, &key, &state, &memory, true),
            SnapshotKind::Diff => save::diff(&subject, &key, &state, &memory, self.history),
        };
        if written.is_err() {
            self.history = self.history.after_failure(request.kind);
        }
        let (Written { state_bytes, memory_data_bytes }, history) =
            written.map_err(|error| error.to_string())?;
        self.history = history;
        Ok(SnapshotTaken { state_bytes, memory_data_bytes, took_us: micros_since(began) })
    }

    /// A machine that can neither be stopped nor set going is none any more.
    fn or_end(&mut self, what: &str, act: fn(&mut Self) -> io::Result<Response>) -> Response {
        match act(self) {
            Ok(response) => response,
            Err(error) => {
                let message = format!("the machine cannot {what}: {error}");
                self.shared.ending.state(ExitReason::Internal, message.clone());
                Response::Error { message }
            }
        }
    }

    fn status(&self) -> Status {
        let state = match (self.shared.ending.stated(), self.paused) {
            (Some(_), _) => MachineState::Ending,
            (None, true) => MachineState::Paused,
            (None, false) => MachineState::Running,
        };
        command::refresh(&self.transports);
        Status {
            state,
            version: env!("CARGO_PKG_VERSION").into(),
            timing: self.shared.timing,
            memory: self.shared.meter.measure(),
            counters: self.shared.metrics.snapshot(),
            events: self.shared.metrics.events.counts(),
            confinement: self.shared.confinement,
        }
    }
}
