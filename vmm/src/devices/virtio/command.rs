//! What the host asks of a running device over the control socket: rates and the balloon.

use super::mmio::Transport;
use super::{TYPE_BALLOON, TYPE_BLOCK, TYPE_NET, kind_name};
use pinfold_vmm_api::RateLimit;
use pinfold_vmm_api::control::{RateDevice, Request, Response, SetRate};
use std::sync::Arc;

/// Which requests a limit is for, from the guest's view. A disk has one limit for all of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Receive,
    Transmit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    SetRate {
        direction: Direction,
        limit: RateLimit,
    },
    /// bytes that the guest is to give back
    SetBalloon {
        target_bytes: u64,
    },
    /// the host wants to know how the guest does
    Refresh,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// the driver must look at the configuration space
    ConfigChanged,
    Unsupported,
    Refused(String),
}

/// The answer to a request that is about devices; none when it is not.
pub fn answer(transports: &[Arc<Transport>], request: &Request) -> Option<Response> {
    let (kind, index, command) = match request {
        Request::SetRate(rate) => match rate.limit.validate() {
            Ok(()) => set_rate(rate),
            Err(error) => return Some(Response::Error { message: error.to_string() }),
        },
        Request::SetBalloon { target_bytes } => {
            (TYPE_BALLOON, 0, Command::SetBalloon { target_bytes: *target_bytes })
        }
        _ => return None,
    };
    let found = transports.iter().filter(|transport| transport.kind() == kind).nth(index);
    let outcome = found.map(|transport| transport.command(command));
    Some(match outcome {
        Some(Outcome::Done | Outcome::ConfigChanged) => Response::Done,
        Some(Outcome::Refused(message)) => Response::Error { message },
        Some(Outcome::Unsupported) | None => {
            Response::Error { message: format!("the machine has no {} {index}", kind_name(kind).0) }
        }
    })
}

/// Asks the guest how it does. What it says is in the counters when it has answered.
pub fn refresh(transports: &[Arc<Transport>]) {
    for transport in transports.iter().filter(|transport| transport.kind() == TYPE_BALLOON) {
        transport.command(Command::Refresh);
    }
}

fn set_rate(rate: &SetRate) -> (u32, usize, Command) {
    let command = |direction| Command::SetRate { direction, limit: rate.limit };
    match rate.device {
        RateDevice::Disk(index) => (TYPE_BLOCK, index, command(Direction::Transmit)),
        RateDevice::NetReceive(index) => (TYPE_NET, index, command(Direction::Receive)),
        RateDevice::NetTransmit(index) => (TYPE_NET, index, command(Direction::Transmit)),
    }
}
