//! The scheduler over real gRPC on loopback, with nodes that speak `pinfold.node.v1` and have no machines.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "all of it is test code, also what is not in a test function")]

mod bad_input;
mod exec;
mod files;
mod lifecycle;
mod nodes;
mod reading;
mod relays;
mod restart;
mod saved;
mod surface;
mod watching;

use pinfold_sdk::domain::{Reason, Resources, SandboxId};
use pinfold_sdk::{Client, NewSandbox, Sandbox};
use pinfold_tests::fake_agent::FakeAgent;
use pinfold_tests::harness::{LIMIT, Scheduler};

/// A scheduler, one node, a client.
struct Fleet {
    scheduler: Scheduler,
    agent: FakeAgent,
    client: Client,
}

impl Fleet {
    async fn new() -> Self {
        let scheduler = Scheduler::start(|_| {}).await;
        let agent = FakeAgent::join(&scheduler.endpoint(), "node-1").await;
        let client = scheduler.client().await;
        Self { scheduler, agent, client }
    }

    /// A sandbox that runs.
    async fn running(&self) -> Sandbox {
        running(&self.client).await
    }
}

async fn running(client: &Client) -> Sandbox {
    let created = client.create(NewSandbox::default()).await.unwrap();
    client.wait_running(created.id, LIMIT).await.unwrap()
}

fn with_request_id(request_id: &str) -> NewSandbox {
    NewSandbox { request_id: Some(request_id.to_owned()), ..NewSandbox::default() }
}

fn with_cpu_millis(cpu_millis: u64) -> NewSandbox {
    let resources = Resources { cpu_millis, memory_bytes: 256 << 20, disk_bytes: 1 << 30, pids: 64 };
    NewSandbox { resources: Some(resources), ..NewSandbox::default() }
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, pinfold_sdk::Error>) -> Reason {
    outcome.unwrap_err().cause().reason
}

/// An id that no sandbox has.
fn nobody() -> SandboxId {
    "0190b3f0-5a00-7000-8000-000000000001".parse().unwrap()
}
