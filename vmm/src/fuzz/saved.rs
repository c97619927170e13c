//! Snapshots that were cut, changed, or sealed by somebody who has the key and means no good.

use super::devices::{block_device, memory_file, sockets};
use super::ops::{self, Op};
use super::{balloon, net};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::driver::Driven;
use crate::devices::virtio::mmio::persist::TransportState;
use crate::devices::virtio::rng::device::Rng;
use crate::metrics::Metrics;
use crate::snapshot::format::{self, FormatError, Key};
use crate::snapshot::manifest::Wanted;
use crate::snapshot::restore;
use arbitrary::{Arbitrary, Unstructured};
use pinfold_vmm_api::CpuTemplate;
use std::sync::Arc;

fn key() -> Key {
    Key::from_hex(&"5a".repeat(32)).expect("64 digits")
}

/// An even first byte: the rest is a state file. An odd one: it is a body that is sealed with the right key.
pub fn snapshot(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    if first & 1 == 0 {
        let opened = format::open(&memory_file(rest), &key());
        assert!(opened.is_err(), "nobody guesses a key");
        return;
    }
    let file = memory_file(&[]);
    match format::seal(&file, &key(), rest) {
        Ok(bytes) => assert_eq!(bytes, file.metadata().expect("a file").len()),
        Err(FormatError::Length { .. }) => return,
        Err(error) => panic!("a body that fits is not sealed: {error}"),
    }
    let body = format::open(&file, &key()).expect("what was sealed opens");
    assert_eq!(body, rest);
    let Ok(saved) = restore::decode(&body) else { return };
    let wanted = Wanted {
        vcpus: saved.vcpus.len() as u32,
        memory_bytes: saved.manifest.memory.file_bytes(),
        cpu_template: CpuTemplate::Host,
        mmio_on_cmdline: saved.manifest.mmio_on_cmdline,
    };
    let _ = saved.fits(&wanted);
    let _ = saved.has_devices(&[2, 2, 19, 4]);
}

#[derive(Debug, Arbitrary)]
struct Rewritten {
    device: u8,
    /// before the device is saved
    before: Vec<Op>,
    /// places of the encoded state that get another byte
    patches: Vec<(u16, u8)>,
    /// after the changed state was put into a new device
    after: Vec<Op>,
}

/// The state of a device, as it was saved and then changed.
pub fn device_state(data: &[u8]) {
    let Ok(input) = Rewritten::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let mut old = device(input.device);
    ops::play(&mut old, &input.before);
    old.transport.quiesce().expect("at rest");
    let saved = old.transport.save();
    let mut wire = Vec::new();
    ciborium::into_writer(&saved, &mut wire).expect("a state can be written");
    let same: TransportState = ciborium::from_reader(wire.as_slice()).expect("and read");
    assert_eq!(same, saved);
    let bytes = wire.len();
    for (at, byte) in &input.patches {
        wire[usize::from(*at) % bytes] = *byte;
    }
    let Ok(changed) = ciborium::from_reader::<TransportState, _>(wire.as_slice()) else { return };
    let mut new = device(input.device);
    if new.transport.restore(&changed).is_ok() {
        new.transport.wake();
        ops::play(&mut new, &input.after);
    } else {
        assert!(!input.patches.is_empty(), "a state that nobody changed is refused");
    }
}

fn device(kind: u8) -> Driven {
    let metrics = Arc::new(Metrics::default());
    let device: Box<dyn VirtioDevice> = match kind % 5 {
        0 => Box::new(Rng::new(Arc::clone(&metrics))),
        1 => block_device(false, &metrics),
        2 => net::device(false, &metrics).0,
        3 => {
            let (memory, device) = balloon::device(&metrics);
            return Driven::over(memory, device, metrics);
        }
        _ => return sockets().driven,
    };
    ops::driven(device, metrics)
}
