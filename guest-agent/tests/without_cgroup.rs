//! What cannot be frozen is not suspended. In a process of its own: it has an agent of its own.
#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use pinfold_guest_agent::agent::{Agent, Role};
use pinfold_guest_agent::cgroup::Workload;
use pinfold_guest_agent::suspension;

#[tokio::test]
async fn without_a_cgroup_a_suspend_is_refused_and_the_guest_is_awake() {
    let agent = Agent::new(Role::Plain, Workload::in_process_groups(), 1 << 30, None).unwrap();
    let refused = suspension::suspend(&agent).await.unwrap_err();
    assert!(refused.message.contains("no cgroup v2"), "{refused:?}");
    drop(agent.exec_slot().await.unwrap());
}
