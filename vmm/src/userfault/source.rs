//! The VMM's side: memory whose pages come from a handler, and the thread that notices when it is gone.
//!
//! ```text
//!   attached --Complete--> all pages are in place: descriptors closed, thread ended
//!      |
//!      +--closed--> end of the machine stated --device thread sleeps itself--> record written here, process ended
//! ```

use super::descriptor::Userfault;
use crate::ending::Ending;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::process;
use crate::seccomp::Binding;
use pinfold_vmm_api::control::ExitReason;
use pinfold_vmm_api::page_fault::{GREETING_TIME, HandlerWord, Layout, MAX_LINE_BYTES, Region, VERSION};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// How long the device thread has to end the machine in good order. It cannot while it waits for a page itself.
const ORDERLY_TIME: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum PageSourceError {
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("the host gives no userfaultfd: {0}")]
    Userfault(#[source] io::Error),
    #[error("the page-fault handler did not take over within {seconds} s: {0}", seconds = GREETING_TIME.as_secs())]
    Handler(#[source] io::Error),
}

/// Of the listening thread. A larger one may get a huge page of the host.
const STACK_BYTES: usize = 256 << 10;

/// The handler's connection, and the userfaultfd that keeps missing pages missing.
#[derive(Debug)]
pub struct PageSource {
    words: BufReader<UnixStream>,
    userfault: Userfault,
}

/// Memory for a guest of `bytes` whose pages the handler at `socket` has. `id`: of the machine.
pub fn attach(
    id: &str,
    bytes: u64,
    socket: UnixStream,
    device: &File,
) -> Result<(GuestMemory, PageSource), PageSourceError> {
    let guest_memory = memory::allocate(bytes)?;
    let userfault = Userfault::new(device).map_err(PageSourceError::Userfault)?;
    let layout = layout(id, &guest_memory);
    for region in &layout.regions {
        userfault.register(region.host_address, region.bytes).map_err(PageSourceError::Userfault)?;
    }
    let mut source = PageSource { words: BufReader::new(socket), userfault };
    source.greet(&layout).map_err(PageSourceError::Handler)?;
    Ok((guest_memory, source))
}

fn layout(id: &str, memory: &GuestMemory) -> Layout {
    let mut file_offset = 0;
    let region = |region: &vm_memory::GuestRegionMmap<()>| {
        let of = Region {
            guest_address: region.start_addr().0,
            host_address: region.as_ptr() as u64,
            bytes: region.len(),
            file_offset,
        };
        file_offset += region.len();
        of
    };
    Layout { version: VERSION, id: id.to_owned(), regions: memory.iter().map(region).collect() }
}

impl PageSource {
    fn greet(&mut self, layout: &Layout) -> io::Result<()> {
        let mut line = serde_json::to_vec(layout)?;
        line.push(b'\n');
        if line.len() > MAX_LINE_BYTES {
            let bytes = line.len();
            return Err(io::Error::other(format!(
                "the layout takes {bytes} bytes, its limit is {MAX_LINE_BYTES}"
            )));
        }
        let socket = self.words.get_ref();
        socket.set_write_timeout(Some(GREETING_TIME))?;
        let sent = socket
            .send_with_fds(&[&line[..]], &[self.userfault.as_raw_fd()])
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        if sent != line.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        match self.word(Some(Instant::now() + GREETING_TIME))? {
            Some(HandlerWord::Serving) => self.words.get_ref().set_read_timeout(None),
            Some(HandlerWord::Complete) => Err(io::Error::other("it was complete before it served")),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The next word of the handler, which is whole before `until`; `None` when it closed the connection.
    fn word(&mut self, until: Option<Instant>) -> io::Result<Option<HandlerWord>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") && line.len() < MAX_LINE_BYTES {
            if let Some(until) = until {
                let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                self.words.get_ref().set_read_timeout(Some(left))?;
            }
            let some = self.words.fill_buf()?;
            if some.is_empty() {
                break;
            }
            let end = some.iter().position(|byte| *byte == b'\n').map_or(some.len(), |at| at + 1);
            line.extend_from_slice(&some[..end]);
            self.words.consume(end);
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
    }

    /// Starts the thread that listens to the handler, bound by `binding`; it ends when all is in place. `exit`: where the exit
    /// record goes.
    pub fn watch(mut self, binding: Binding, ending: Arc<Ending>, exit: File) -> io::Result<JoinHandle<()>> {
        let (began, has_begun) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("pages".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || {
            let bound = binding.bind().map_err(io::Error::other);
            let is_bound = bound.is_ok();
            if began.send(bound).is_err() || !is_bound {
                return;
            }
            if let Err(why) = self.wait_until_complete() {
                end(&ending, &exit, &why);
            }
        })?;
        has_begun.recv().map_err(io::Error::other)??;
        Ok(thread)
    }

    /// Until nothing is missing any more; else why it will stay so.
    fn wait_until_complete(&mut self) -> Result<(), String> {
        match self.word(None) {
            Ok(Some(HandlerWord::Complete)) => Ok(()),
            Ok(None) => Err("the page-fault handler left before all of guest memory was in place".into()),
            Ok(Some(HandlerWord::Serving)) => Err("the page-fault handler began twice".into()),
            Err(error) => Err(format!("the page-fault handler cannot be understood: {error}")),
        }
    }
}

/// Ends the machine; the caller holds the userfaultfd meanwhile.
fn end(ending: &Ending, exit: &File, why: &str) {
    ending.state(ExitReason::PageFaultHandler, why);
    let until = Instant::now() + ORDERLY_TIME;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
    process::end_with_a_record(exit, ExitReason::PageFaultHandler, why.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    /// One byte now and then is within the time for each byte, and not within that for the word.
    #[test]
    fn a_word_that_comes_byte_by_byte_is_not_waited_for_without_end() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let null = OwnedFd::from(File::open("/dev/null").expect("null"));
        let mut source = PageSource { words: BufReader::new(ours), userfault: null.into() };
        let trickle = std::thread::spawn(move || {
            for _ in 0..100 {
                std::thread::sleep(Duration::from_millis(20));
                if theirs.write_all(b" ").is_err() {
                    return true;
                }
            }
            false
        });
        let error = source.word(Some(Instant::now() + Duration::from_millis(200))).expect_err("late");
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        drop(source);
        assert!(trickle.join().expect("no panic"), "the word was waited for to its end");
    }
}
