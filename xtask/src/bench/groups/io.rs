//! Block, network and channel beside QEMU's virtio devices: the same stock kernel and guest program, in turns, one microVM at
//! a time; the ratio of the medians counts.

use super::{IMAGES, QEMU, SERVE_INITRD, VMM, cmdline};
use crate::bench::lab::{Lab, at};
use crate::bench::table::{Goal, Row, median};
use anyhow::Result;
use serde_json::Value;

const MIB: f64 = 1_048_576.0;

/// What of a sample is counted by the second.
#[derive(Clone, Copy)]
enum Rate {
    Mib,
    Operations,
    /// from the microseconds of a round trip
    Trips,
}

impl Rate {
    fn of(self, sample: &Value, key: &str) -> Result<f64> {
        let us = at(sample, &format!("{key}.us"))?;
        Ok(match self {
            Self::Mib => at(sample, &format!("{key}.bytes"))? / MIB / us * 1e6,
            Self::Operations => at(sample, &format!("{key}.operations"))? / us * 1e6,
            Self::Trips => 1e6 / us,
        })
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Mib => "MiB/s",
            Self::Operations | Self::Trips => "/s",
        }
    }
}

type Loop = (&'static str, &'static str, Rate);

pub fn block(lab: &mut Lab<'_>, runs: u32) -> Result<Vec<Row>> {
    let loops: &[Loop] = &[
        ("block-read", "sequential read, 128 KiB", Rate::Mib),
        ("block-write", "sequential write, 128 KiB", Rate::Mib),
        ("block-random-read", "random read, 4 KiB, one at a time", Rate::Operations),
        ("block-random-write", "random write, 4 KiB, one at a time", Rate::Operations),
        ("block-deep-read", "random read, 4 KiB, 8 at a time", Rate::Operations),
        ("block-deep-write", "random write, 4 KiB, 8 at a time", Rate::Operations),
        ("block-flush", "write of 4 KiB and a flush", Rate::Operations),
    ];
    compared(lab, runs, &["--what", "block", "--data-mib", "256"], loops, "QEMU virtio-blk")
}

pub fn net(lab: &mut Lab<'_>, runs: u32) -> Result<Vec<Row>> {
    let loops: &[Loop] = &[
        ("net-out", "TCP from the guest", Rate::Mib),
        ("net-in", "TCP to the guest", Rate::Mib),
        ("net-echo", "TCP round trips, one byte", Rate::Operations),
    ];
    compared(lab, runs, &["--what", "net", "--tap"], loops, "QEMU virtio-net, the same tap, no vhost")
}

pub fn channel(lab: &mut Lab<'_>, runs: u32) -> Result<Vec<Row>> {
    let loops: &[Loop] = &[
        ("channel-ping", "round trips of a line", Rate::Trips),
        ("channel-exec", "round trips with an exec in the guest", Rate::Trips),
        ("channel-in", "bulk from the guest", Rate::Mib),
        ("channel-out", "bulk to the guest", Rate::Mib),
    ];
    compared(lab, runs, &["--what", "channel"], loops, "QEMU virtio-serial")
}

fn compared(lab: &mut Lab<'_>, runs: u32, what: &[&str], loops: &[Loop], peer: &str) -> Result<Vec<Row>> {
    let kernel = format!("{IMAGES}/kernels/stock/vmlinuz");
    let line = format!("{} bench=serve", cmdline());
    let common = ["--kernel", &kernel, "--initrd", SERVE_INITRD, "--cmdline", &line];
    let ours = [&["io", "--program", VMM][..], &common, what].concat();
    let qemu = [&["io", "--vmm", "qemu", "--program", QEMU][..], &common, what].concat();
    let (mut our_samples, mut qemu_samples) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        our_samples.push(lab.real("ours", &ours)?);
        qemu_samples.push(lab.real("QEMU microvm", &qemu)?);
    }
    let middle = |samples: &[Value], key: &str, rate: Rate| -> Result<f64> {
        let values: Result<Vec<f64>> = samples.iter().map(|sample| rate.of(sample, key)).collect();
        Ok(median(&values?))
    };
    let mut rows = Vec::new();
    for (key, what, rate) in loops {
        let measured = middle(&our_samples, key, *rate)?;
        let beside = middle(&qemu_samples, key, *rate)?;
        rows.push(Row::ratio(*what, Goal::RatioAtLeast(1.0), measured, rate.unit(), beside).beside(peer));
    }
    Ok(rows)
}
