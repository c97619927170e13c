//! G11, G12 and G18: registers in every width and order.

use crate::console::say;
use crate::memory::{read8, read16, read32, read64, write8, write16, write32, write64};
use crate::virtio::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURE_VERSION_1, FEATURES_OK, WINDOW_BYTES, WINDOWS, Window, register,
    windows,
};
use crate::{Failed, Outcome};

/// Offsets of a window that are walked: all registers and the configuration space.
const WALKED: u64 = 0x200;

pub fn every_access() -> Outcome {
    let mut end = WINDOWS;
    for window in windows() {
        end = window.base + WINDOW_BYTES;
        for offset in 0..WALKED {
            let at = window.base + offset;
            let _ = (read8(at), read16(at), read32(at), read64(at));
            write8(at, 0x5a);
            write16(at, 0xa5a5);
            write32(at, 0x1234_5678);
            write64(at, u64::MAX);
        }
        say!("walked kind ", u64::from(window.kind));
    }
    // past a window's registers, across two devices, past the last one
    for at in [WINDOWS + 0x800, WINDOWS + WINDOW_BYTES - 2, end - 2, end, end + 0x10_0000, 0xfeb0_0000] {
        let _ = (read8(at), read16(at), read32(at), read64(at));
        write32(at, u32::MAX);
        write64(at, u64::MAX);
    }
    if read32(end) != u32::MAX {
        return Err(Failed("where no device is does not read all ones"));
    }
    every_device_still_starts()
}

/// What was written before must not have left a device unusable.
fn every_device_still_starts() -> Outcome {
    for window in windows() {
        if !window.start() {
            return Err(Failed("a device does not start any more"));
        }
        window.reset();
    }
    Ok(())
}

pub fn status_walk() -> Outcome {
    for window in windows() {
        orders(window)?;
        features(window)?;
        queue_registers(window)?;
        say!("walked kind ", u64::from(window.kind));
    }
    every_device_still_starts()
}

fn orders(window: Window) -> Outcome {
    for first in 0..=255 {
        window.reset();
        window.put(register::STATUS, first);
        if window.status() & DRIVER_OK != 0 {
            return Err(Failed("a device is live after one write of its status"));
        }
        for second in [0, 1, 2, 3, 4, 8, 11, 15, 64, 128, 255] {
            window.put(register::STATUS, second);
        }
    }
    if !window.negotiate(FEATURE_VERSION_1) {
        return Err(Failed("a device refuses a driver that does all right"));
    }
    // bits cannot be taken back one by one
    window.put(register::STATUS, ACKNOWLEDGE);
    if window.status() & FEATURES_OK == 0 {
        return Err(Failed("a status bit was cleared without a reset"));
    }
    Ok(())
}

fn features(window: Window) -> Outcome {
    let offered = (0..2).fold(0, |all, page| {
        window.put(register::DEVICE_FEATURES_PAGE, page);
        all | u64::from(window.get(register::DEVICE_FEATURES)) << (32 * page)
    });
    for bit in 0..64 {
        let wanted = FEATURE_VERSION_1 | 1 << bit;
        if window.negotiate(wanted) && wanted & !offered != 0 {
            return Err(Failed("a feature was accepted that was not offered"));
        }
    }
    if window.negotiate(0) {
        return Err(Failed("a legacy driver was accepted"));
    }
    Ok(())
}

fn queue_registers(window: Window) -> Outcome {
    window.negotiate(FEATURE_VERSION_1);
    for queue in [0, 1, 2, 3, 4, 1 << 16, u32::MAX] {
        window.put(register::QUEUE, queue);
        for size in [0, 3, 0x8001, 0x1_0000, u32::MAX] {
            window.put(register::QUEUE_SIZE, size);
        }
        // nothing is set up: not ready
        window.put(register::QUEUE_READY, 1);
        window.put(register::DESCRIPTORS_HIGH, u32::MAX);
        window.put(register::QUEUE_READY, 1);
        if queue >= 4 && window.get(register::QUEUE_READY) != 0 {
            return Err(Failed("a queue that does not exist is ready"));
        }
        for ready in [2, u32::MAX, 0] {
            window.put(register::QUEUE_READY, ready);
        }
    }
    // live without a single queue, then everything that is fixed by now
    window.negotiate(FEATURE_VERSION_1);
    window.put(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for queue in 0..8 {
        window.kick(queue);
    }
    if !window.start() {
        return Err(Failed("a device does not start any more"));
    }
    for value in [0, 1, 0x1000, u32::MAX] {
        for offset in [register::DESCRIPTORS_LOW, register::AVAILABLE_LOW, register::USED_LOW] {
            window.put(offset, value);
        }
        window.put(register::CONFIG, value);
        window.put(register::DRIVER_FEATURES, value);
        window.put(register::INTERRUPT_ACKNOWLEDGE, value);
        let _ = window.get(register::INTERRUPT_STATUS);
    }
    window.reset();
    Ok(())
}

/// Everything that the VMM may want to say something about, over and over.
pub fn every_log_site() -> Outcome {
    for _ in 0..40 {
        for window in windows() {
            window.put(register::STATUS, 0x100);
            let _ = read8(window.base + 1);
            window.start();
            for queue in 0..window.queues() {
                let ring = window.ring(queue);
                ring.publish(0xffff);
                ring.kick();
            }
            let _ = read32(0xfeb0_0000);
        }
    }
    for window in windows() {
        window.start();
        let ring = window.ring(0);
        ring.publish(0xffff);
        ring.kick();
        // a socket device looks at its first queue when it has something to say
        if window.kind != crate::virtio::VSOCK && !window.wants_reset() {
            return Err(Failed("a broken queue went unseen"));
        }
    }
    Ok(())
}
