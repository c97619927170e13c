//! The machine beside the hostile one: it answers what it is sent, and the time that takes is the harm that is done to it.

use crate::host::{PORT_ECHO, listener};
use crate::machine::{Machine, Shape};
use anyhow::{Context as _, Result, ensure};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// A neighbour that has not answered for so long does not answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

pub struct Neighbour {
    machine: Machine,
    answers: Arc<Mutex<Vec<(Instant, Duration)>>>,
}

impl Neighbour {
    pub fn start() -> Result<Self> {
        let directory = Machine::directory()?;
        let listener = listener(&Machine::vsock_prefix(directory.path()), PORT_ECHO)?;
        let shape =
            Shape { case: "neighbour", vcpus: 1, memory_mib: 96, disks: &[false], balloon: false, tap: None };
        let machine = Machine::start(&shape, directory)?;
        let stream = accept(listener)?;
        let answers = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&answers);
        std::thread::spawn(move || {
            // an end of the neighbour ends it too: then the answers stop
            let _ = question(stream, &log);
        });
        let neighbour = Self { machine, answers };
        neighbour
            .slowest_since(Instant::now(), ANSWER_LIMIT)
            .context("the neighbour does not answer at all")?;
        Ok(neighbour)
    }

    /// The slowest answer to a question that was put after `began`; waits for at least one.
    pub fn slowest_since(&self, began: Instant, limit: Duration) -> Result<Duration> {
        let until = Instant::now() + limit;
        loop {
            let answers: Vec<Duration> = {
                let all = self.answers.lock().expect("nobody panics with it");
                all.iter().filter(|(asked, _)| *asked >= began).map(|(_, took)| *took).collect()
            };
            if let Some(slowest) = answers.iter().max() {
                return Ok(*slowest);
            }
            ensure!(Instant::now() < until, "the neighbour has not answered for {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// It has broken no rule, and nobody else's events are its.
    pub fn is_untouched(&self) -> Result<()> {
        let (status, _) = self.machine.status()?;
        let told: Vec<_> = status.events.iter().filter(|event| event.device != "bus").collect();
        ensure!(told.is_empty(), "events of the neighbour: {told:?}");
        Ok(())
    }
}

fn accept(listener: UnixListener) -> Result<UnixStream> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(listener.accept()));
    let (stream, _) = receiver.recv_timeout(ANSWER_LIMIT).context("the neighbour does not connect")??;
    Ok(stream)
}

fn question(mut stream: UnixStream, answers: &Mutex<Vec<(Instant, Duration)>>) -> Result<()> {
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    for number in 0u64.. {
        let asked = Instant::now();
        stream.write_all(&number.to_le_bytes())?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        ensure!(answer == number.to_le_bytes(), "{answer:?} is the answer to {number}");
        answers.lock().expect("nobody panics with it").push((asked, asked.elapsed()));
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
