//! What system calls each thread may make once the guest runs. Everything else ends the process.
//!
//! A filter is a table of rules, each with its reason and with conditions on arguments as tight as the call allows. The
//! filters are compiled before the threads start and installed by each thread for itself, before the first guest
//! instruction; no thread starts after that.
//!
//! ```text
//!   common   allocator, locks, the end            every thread
//!   devices  the event loop and all devices       the main thread
//!   vcpu     KVM_RUN                              one for each vCPU
//!   worker   one file by position                 one for each disk, where the host has no io_uring
//!   pages    words of a page-fault handler        one, where guest memory comes from such a process
//! ```

mod common;
mod compile;
mod devices;
mod kept;
mod kvm;
pub mod listing;
mod pages;
mod vcpu;
mod worker;

use seccompiler::BpfProgram;
use std::sync::Arc;

/// A kind of thread, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    Devices,
    Vcpu,
    Worker,
    Pages,
}

/// A system call, under which conditions on its arguments, and why. No condition means always.
struct Rule {
    call: i64,
    when: &'static [When],
    why: &'static str,
}

/// A condition on one argument. All but [`When::Null`] look at the low 32 bits, which is what the kernel takes there.
#[derive(PartialEq, Eq)]
enum When {
    /// this value
    Is { argument: u8, value: u64 },
    /// none of these bits is set
    Without { argument: u8, bits: u64 },
    /// of these bits exactly those of `value` are set
    Of { argument: u8, bits: u64, value: u64 },
    /// a null pointer, in all 64 bits
    Null { argument: u8 },
}

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("the seccomp filter of {thread:?} threads has {instructions} instructions, the limit is {max}")]
    TooLong { thread: Thread, instructions: usize, max: usize },
    #[error("the seccomp filter cannot be installed")]
    Install(#[source] seccompiler::Error),
}

impl Thread {
    pub const ALL: [Self; 4] = [Self::Devices, Self::Vcpu, Self::Worker, Self::Pages];

    /// As the rules are listed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Vcpu => "vcpu",
            Self::Worker => "worker",
            Self::Pages => "pages",
        }
    }

    /// The rules that hold there.
    fn rules(self) -> impl Iterator<Item = &'static Rule> {
        let own = match self {
            Self::Devices => devices::RULES,
            Self::Vcpu => vcpu::RULES,
            Self::Worker => worker::RULES,
            Self::Pages => pages::RULES,
        };
        common::RULES.iter().chain(own)
    }
}

/// What binds one kind of thread.
#[derive(Debug, Clone)]
pub struct Binding {
    thread: Thread,
    program: Option<Arc<BpfProgram>>,
    once_bound: Option<fn(Thread)>,
}

/// One for each kind of thread.
#[derive(Debug)]
pub struct Bindings {
    pub devices: Binding,
    pub vcpu: Binding,
}

fn binding(thread: Thread, with_filters: bool) -> Result<Binding, SeccompError> {
    let program = if with_filters { Some(Arc::new(compile::compile(thread)?)) } else { None };
    Ok(Binding { thread, program, once_bound: None })
}

/// What binds the worker thread of a disk. Compiled where one is needed: most hosts need none.
pub fn worker(with_filters: bool) -> Result<Binding, SeccompError> {
    binding(Thread::Worker, with_filters)
}

/// What binds the thread that listens to a page-fault handler.
pub fn pages(with_filters: bool) -> Result<Binding, SeccompError> {
    binding(Thread::Pages, with_filters)
}

/// Compiles the filters, unless the threads are to go without.
pub fn bindings(with_filters: bool) -> Result<Bindings, SeccompError> {
    let bind = |thread| binding(thread, with_filters);
    Ok(Bindings { devices: bind(Thread::Devices)?, vcpu: bind(Thread::Vcpu)? })
}

impl Bindings {
    pub fn call_once_bound(&mut self, call: fn(Thread)) {
        for binding in [&mut self.devices, &mut self.vcpu] {
            binding.once_bound = Some(call);
        }
    }
}

impl Binding {
    /// Binds the calling thread for ever.
    pub fn bind(&self) -> Result<(), SeccompError> {
        if let Some(program) = &self.program {
            seccompiler::apply_filter(program).map_err(SeccompError::Install)?;
        }
        if let Some(call) = self.once_bound {
            call(self.thread);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
