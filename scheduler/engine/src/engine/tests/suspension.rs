//! Pause and resume: what they hold, what they wait for, what they do not believe.

use super::*;

impl Bench {
    pub fn pause(&mut self, request: &str, sandbox: &Sandbox) -> Result<Sandbox, Rejection> {
        let (call, request_id, sandbox_id) = (self.call(), request.parse().unwrap(), sandbox.id);
        self.step(Event::Pause { call, request_id, sandbox_id });
        self.answer(call)
    }

    pub fn resume(&mut self, request: &str, sandbox: &Sandbox) -> Result<Sandbox, Rejection> {
        let (call, request_id, sandbox_id) = (self.call(), request.parse().unwrap(), sandbox.id);
        self.step(Event::Resume { call, request_id, sandbox_id });
        self.answer(call)
    }

    /// The node says so of the sandbox as it is stored now.
    fn says(&mut self, sandbox: &Sandbox, sequence: u64, phase: Phase) {
        let sandbox = self.get(sandbox);
        self.report("n0", 1, status(&sandbox, sequence, phase));
    }

    fn orders(&self) -> Vec<(&'static str, u64)> {
        let order = |effect: &Effect| match effect {
            Effect::PauseOnNode { order, .. } => Some(("pause", *order)),
            Effect::ResumeOnNode { order, .. } => Some(("resume", *order)),
            _ => None,
        };
        self.effects.iter().filter_map(order).collect()
    }

    fn reserved(&self, node: &str) -> Resources {
        self.engine.node(&node_id(node)).expect("known").reserved
    }

    fn paused(&mut self, request: &str) -> Sandbox {
        let sandbox = self.running(request);
        self.pause(&format!("{request}-pause"), &sandbox).unwrap();
        self.says(&sandbox, 10, Phase::Pausing);
        self.says(&sandbox, 11, Phase::Paused);
        assert_eq!(self.phase(&sandbox), Phase::Paused);
        self.get(&sandbox)
    }
}

/// One node with room for so many default sandboxes and disk for more.
fn bench(sandboxes: u64) -> Bench {
    let mut bench = Bench::new();
    let allocatable = Resources { disk_bytes: 100 * GIB, ..room(sandboxes) };
    bench.join(registration("n0", 1, allocatable));
    bench
}

fn disk_only() -> Resources {
    let Resources { disk_bytes, memory_bytes, .. } = defaults::RESOURCES;
    Resources { disk_bytes: disk_bytes + memory_bytes, ..Resources::default() }
}

fn with_memory_file() -> Resources {
    let Resources { disk_bytes, memory_bytes, .. } = defaults::RESOURCES;
    Resources { disk_bytes: disk_bytes + memory_bytes, ..defaults::RESOURCES }
}

#[test]
fn a_paused_sandbox_holds_disk_only_and_a_resumed_one_its_memory_file_too() {
    let mut bench = bench(1);
    let sandbox = bench.running("a");
    let pausing = bench.pause("p", &sandbox).unwrap();
    assert_eq!((pausing.phase, bench.orders()), (Phase::Pausing, vec![("pause", 1)]));
    assert_eq!(bench.reserved("n0"), with_memory_file());
    bench.says(&sandbox, 3, Phase::Pausing);
    bench.says(&sandbox, 4, Phase::Paused);
    assert_eq!((bench.phase(&sandbox), bench.reserved("n0")), (Phase::Paused, disk_only()));
    assert_eq!(bench.get(&sandbox).epoch, sandbox.epoch, "the same incarnation");
    let resuming = bench.resume("r", &sandbox).unwrap();
    assert_eq!((resuming.phase, bench.orders()), (Phase::Resuming, vec![("resume", 2)]));
    bench.says(&sandbox, 5, Phase::Resuming);
    bench.says(&sandbox, 6, Phase::Running);
    assert_eq!((bench.phase(&sandbox), bench.reserved("n0")), (Phase::Running, with_memory_file()));
    assert!(bench.get(&sandbox).cause.is_none());
}

#[test]
fn what_waits_takes_the_room_of_a_paused_one() {
    let mut bench = bench(1);
    let sandbox = bench.running("a");
    let waiting = bench.create("b");
    assert_eq!(waiting.phase, Phase::Pending);
    bench.pause("p", &sandbox).unwrap();
    assert_eq!(bench.phase(&waiting), Phase::Pending, "it holds everything until it is saved");
    bench.says(&sandbox, 4, Phase::Paused);
    assert_eq!(bench.phase(&waiting), Phase::Assigned);
    let refused = bench.resume("r", &sandbox).unwrap_err().cause;
    assert_eq!(refused.reason, Reason::NoRoom);
    assert!(refused.message.contains("n0 has 0 of 1000 thousandths of a CPU"), "{}", refused.message);
    assert_eq!((bench.phase(&sandbox), bench.orders()), (Phase::Paused, vec![]));
    let taken = bench.get(&waiting);
    bench.report("n0", 1, status(&taken, 1, Phase::Stopped));
    assert_eq!(bench.resume("r", &sandbox).unwrap().phase, Phase::Resuming, "a refusal is not remembered");
}

#[test]
fn a_pause_that_finds_no_disk_is_refused() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    let refused = bench.pause("p", &sandbox).unwrap_err().cause;
    assert_eq!(refused.reason, Reason::NoRoom);
    assert!(refused.message.contains("bytes of disk"), "{}", refused.message);
    assert_eq!(bench.phase(&sandbox), Phase::Running);
}

#[test]
fn a_repeated_request_does_nothing_twice() {
    let mut bench = bench(1);
    let sandbox = bench.running("a");
    bench.pause("p", &sandbox).unwrap();
    assert_eq!(bench.pause("p", &sandbox).unwrap().phase, Phase::Pausing);
    assert_eq!(bench.pause("p2", &sandbox).unwrap().phase, Phase::Pausing, "there already");
    assert_eq!(bench.orders(), []);
    bench.says(&sandbox, 4, Phase::Paused);
    bench.resume("r", &sandbox).unwrap();
    bench.says(&sandbox, 5, Phase::Running);
    assert_eq!(bench.pause("p", &sandbox).unwrap().phase, Phase::Running, "a late repetition");
    assert_eq!(bench.orders(), []);
    bench.restart();
    bench.join(registration("n0", 2, room(9)));
    assert_eq!(bench.pause("p", &sandbox).unwrap().phase, Phase::Running, "remembered in the store");
    assert_eq!(bench.resume("p", &sandbox).unwrap_err().cause.reason, Reason::RequestIdConflict);
    assert_eq!(bench.try_create("p", spec()).unwrap_err().cause.reason, Reason::RequestIdConflict);
    assert_eq!(bench.pause("a", &sandbox).unwrap_err().cause.reason, Reason::RequestIdConflict);
}

#[test]
fn only_a_phase_that_permits_it_is_paused_or_resumed() {
    let mut bench = bench(1);
    let sandbox = bench.create("a");
    assert_eq!(bench.pause("p", &sandbox).unwrap_err().cause.reason, Reason::SandboxStarting);
    assert_eq!(bench.resume("r", &sandbox).unwrap_err().cause.reason, Reason::SandboxStarting);
    bench.says(&sandbox, 2, Phase::Running);
    assert_eq!(bench.resume("r", &sandbox).unwrap().phase, Phase::Running, "it runs already");
    bench.pause("p", &sandbox).unwrap();
    assert_eq!(bench.resume("r2", &sandbox).unwrap_err().cause.reason, Reason::WrongPhase);
    bench.stop(&sandbox).unwrap();
    assert_eq!(bench.pause("p2", &sandbox).unwrap_err().cause.reason, Reason::SandboxEnded);
    let nobody = Sandbox { id: SandboxId(uuid(99)), ..sandbox };
    assert_eq!(bench.pause("p3", &nobody).unwrap_err().cause.reason, Reason::SandboxNotFound);
}

#[test]
fn a_late_report_of_the_time_before_moves_nothing() {
    let mut bench = bench(1);
    let sandbox = bench.running("a");
    bench.pause("p", &sandbox).unwrap();
    // on its way when the pause was sent
    bench.report("n0", 1, status(&sandbox, 3, Phase::Running));
    assert_eq!(bench.phase(&sandbox), Phase::Pausing);
    bench.heartbeat("n0", 1, vec![status(&sandbox, 3, Phase::Running)]);
    assert_eq!((bench.phase(&sandbox), bench.orders()), (Phase::Pausing, vec![("pause", 1)]), "said again");
    bench.says(&sandbox, 4, Phase::Paused);
    let paused = bench.get(&sandbox);
    bench.resume("r", &sandbox).unwrap();
    bench.report("n0", 1, status(&paused, 5, Phase::Paused));
    assert_eq!(bench.phase(&sandbox), Phase::Resuming);
    // an end is an end, whatever the node has heard
    bench.report("n0", 1, status(&paused, 6, Phase::Failed));
    assert_eq!(bench.phase(&sandbox), Phase::Failed);
}

#[test]
fn what_could_not_be_saved_goes_on_and_says_why() {
    let mut bench = bench(1);
    let sandbox = bench.running("a");
    bench.pause("p", &sandbox).unwrap();
    let mut failed = status(&bench.get(&sandbox), 3, Phase::Running);
    failed.cause = Some(Cause::new(Reason::SnapshotFailed, "no space left"));
    bench.report("n0", 1, failed);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Running, Reason::SnapshotFailed));
    assert_eq!(bench.reserved("n0"), defaults::RESOURCES);
    bench.pause("p2", &sandbox).unwrap();
    assert!(bench.get(&sandbox).cause.is_none(), "of the time before");
}

#[test]
fn what_could_not_be_brought_back_is_still_saved() {
    let mut bench = bench(1);
    let sandbox = bench.paused("a");
    bench.resume("r", &sandbox).unwrap();
    bench.says(&sandbox, 12, Phase::Resuming);
    bench.says(&sandbox, 13, Phase::Paused);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Paused, Reason::RestoreFailed));
    assert_eq!(bench.reserved("n0"), disk_only());
    bench.resume("r2", &sandbox).unwrap();
    assert_eq!(bench.phase(&sandbox), Phase::Resuming);
}

#[test]
fn a_resume_that_never_ends_is_ended() {
    let mut bench = bench(1);
    let sandbox = bench.paused("a");
    bench.resume("r", &sandbox).unwrap();
    let list = vec![status(&bench.get(&sandbox), 12, Phase::Resuming)];
    let limit = Millis(sandbox.spec.start_timeout.0 + bench.config.start_margin.0 + 3_000);
    bench.advance_with_heartbeats(limit, &[("n0", 1, list)]);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Stopping, Reason::StartTimeout));
    bench.says(&sandbox, 13, Phase::Stopped);
    assert_eq!(bench.phase(&sandbox), Phase::Failed);
}

#[test]
fn a_resume_whose_node_is_away_keeps_what_was_saved() {
    let mut bench = bench(1);
    let sandbox = bench.paused("a");
    bench.resume("r", &sandbox).unwrap();
    bench.step(Event::NodeGone { node: node_id("n0"), session: SessionId(1) });
    let limit = Millis(sandbox.spec.start_timeout.0 + bench.config.start_margin.0 + 3_000);
    assert!(limit < bench.config.lost_after, "the node is not given up yet");
    bench.advance(limit);
    assert_eq!(bench.phase(&sandbox), Phase::Resuming);
    // it is back, and has the whole time again, but no more
    let mut node = registration("n0", 2, Resources { disk_bytes: 100 * GIB, ..room(1) });
    node.statuses = vec![status(&bench.get(&sandbox), 12, Phase::Resuming)];
    bench.join(node);
    let list = vec![status(&bench.get(&sandbox), 12, Phase::Resuming)];
    bench.advance_with_heartbeats(Millis(sandbox.spec.start_timeout.0), &[("n0", 2, list.clone())]);
    assert_eq!(bench.phase(&sandbox), Phase::Resuming);
    bench.advance_with_heartbeats(limit, &[("n0", 2, list)]);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Stopping, Reason::StartTimeout));
}

#[test]
fn a_stop_a_delete_and_the_time_to_live_reach_every_phase() {
    for phase in [Phase::Pausing, Phase::Paused, Phase::Resuming] {
        for how in ["stop", "delete", "ttl"] {
            let mut bench = bench(1);
            let sandbox = if phase == Phase::Pausing { bench.running("a") } else { bench.paused("a") };
            match phase {
                Phase::Pausing => drop(bench.pause("p", &sandbox).unwrap()),
                Phase::Resuming => drop(bench.resume("r", &sandbox).unwrap()),
                _ => {}
            }
            match how {
                "stop" => drop(bench.stop(&sandbox).unwrap()),
                "delete" => drop(bench.delete(&sandbox).unwrap()),
                _ => {
                    let entry = bench.engine.state.sandboxes.get_mut(&sandbox.id).unwrap();
                    entry.sandbox.expires_at = Some(bench.now.after(Millis(500)));
                    bench.engine.state.retime(crate::timers::TimerKey::Sandbox(sandbox.id));
                    bench.step(Event::Tick);
                    bench.advance(Millis(1_000));
                }
            }
            assert_eq!(bench.phase(&sandbox), Phase::Stopping, "{how} while {phase}");
            assert_eq!(bench.stops().len(), 1, "{how} while {phase}");
            // the node had done the order before it heard of the stop
            bench.says(&sandbox, 20, Phase::Paused);
            assert_eq!(bench.phase(&sandbox), Phase::Stopping, "{how} while {phase}");
            bench.says(&sandbox, 21, Phase::Stopped);
            let ended = bench.engine.sandbox(sandbox.id).map(|sandbox| sandbox.phase);
            assert_eq!(ended, (how != "delete").then_some(Phase::Stopped), "{how} while {phase}");
            assert_eq!(bench.reserved("n0"), Resources::default(), "{how} while {phase}");
        }
    }
}

#[test]
fn a_lost_node_loses_what_was_paused_there() {
    let mut bench = bench(2);
    let sandbox = bench.running("a");
    let paused = bench.paused("b");
    bench.pause("p", &sandbox).unwrap();
    bench.advance(Millis(bench.config.lost_after.0 + 60_000));
    for lost in [&sandbox, &paused] {
        assert_eq!((bench.phase(lost), bench.reason(lost)), (Phase::Lost, Reason::NodeLost));
    }
    assert_eq!(bench.reserved("n0"), Resources::default());
}

#[test]
fn a_node_without_a_session_is_told_nothing_new() {
    let mut bench = bench(1);
    let sandbox = bench.running("a");
    bench.step(Event::NodeGone { node: node_id("n0"), session: SessionId(1) });
    assert_eq!(bench.pause("p", &sandbox).unwrap_err().cause.reason, Reason::NodeUnreachable);
    assert_eq!(bench.phase(&sandbox), Phase::Running);
}

#[test]
fn a_restart_finds_phase_order_and_room_again() {
    let mut bench = bench(2);
    let paused = bench.paused("a");
    let running = bench.running("b");
    bench.pause("p", &running).unwrap();
    bench.restart();
    let mut back = registration("n0", 2, Resources { disk_bytes: 100 * GIB, ..room(2) });
    back.statuses = vec![status(&paused, 1, Phase::Paused), status(&running, 1, Phase::Running)];
    bench.join(back);
    assert_eq!((bench.phase(&paused), bench.phase(&running)), (Phase::Paused, Phase::Pausing));
    assert_eq!(bench.orders(), [("pause", 1)], "the node has not heard of it");
    let both = disk_only().checked_add(&with_memory_file()).unwrap();
    assert_eq!(bench.reserved("n0"), both);
}

#[test]
fn a_node_that_forgets_a_paused_sandbox_ends_it() {
    let mut bench = bench(1);
    let sandbox = bench.paused("a");
    bench.advance_with_heartbeats(Millis(bench.config.forgotten_after.0 + 3_001), &[("n0", 1, vec![])]);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Failed, Reason::NodeForgot));
}

/// Its disk was there before: a resume takes none, and what it takes is free.
#[test]
fn a_node_that_came_back_with_a_smaller_disk_resumes_what_is_paused_there() {
    let mut bench = bench(2);
    let (paused, running) = (bench.paused("a"), bench.running("b"));
    let mut back = registration("n0", 2, Resources { disk_bytes: 1, ..room(2) });
    back.statuses = vec![
        status(&bench.get(&paused), 50, Phase::Paused),
        status(&bench.get(&running), 50, Phase::Running),
    ];
    bench.join(back);
    bench.resume("r", &paused).unwrap();
    assert_eq!(bench.phase(&paused), Phase::Resuming);
    assert_eq!(bench.resume("s", &running).map(|sandbox| sandbox.phase), Ok(Phase::Running));
    let refused = bench.pause("t", &running).unwrap_err();
    assert_eq!(refused.cause.reason, Reason::NoRoom);
}

#[test]
fn a_pause_that_never_ends_ends_the_sandbox() {
    let mut bench = bench(1);
    let sandbox = bench.running("a");
    bench.pause("p", &sandbox).unwrap();
    let pausing = |bench: &Bench, sequence| status(&bench.get(&sandbox), sequence, Phase::Pausing);
    let list = vec![pausing(&bench, 10)];
    let limit = bench.config.pause_timeout;
    bench.advance_with_heartbeats(Millis(limit.0 - 3_000), &[("n0", 1, list.clone())]);
    assert_eq!(bench.phase(&sandbox), Phase::Pausing);
    // the agent was replaced: it has its whole time in the new session
    let mut back = registration("n0", 2, room(9));
    back.statuses = list.clone();
    bench.join(back);
    bench.advance_with_heartbeats(Millis(limit.0 - 3_000), &[("n0", 2, list.clone())]);
    assert_eq!(bench.phase(&sandbox), Phase::Pausing);
    bench.advance_with_heartbeats(Millis(3_000), &[("n0", 2, list)]);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Stopping, Reason::SnapshotFailed));
    let ended = bench.get(&sandbox);
    bench.report("n0", 2, status(&ended, 11, Phase::Stopped));
    let cause = bench.get(&sandbox).cause.unwrap();
    assert_eq!(
        (bench.phase(&sandbox), cause.message.as_str()),
        (Phase::Failed, "it was not saved within 1800000 ms")
    );
}
