//! How many creates a second the engine decides on a fleet of 1,523 nodes, beside a plain scan of the same fleet.
//!
//! `cargo bench -p pinfold-engine`. Times are of one machine on one day: the ratio is what to look at. The plain scan does
//! the least that any scheduler must: look at each node, skip those without room, keep the best fit.

use pinfold_domain::{
    Millis, NodeId, Phase, Resources, SandboxId, SandboxSpec, Timestamp, resources::Dimension, spec::defaults,
};
use pinfold_engine::{
    CallId, Effect, Engine, EngineConfig, Event, NodeRegistration, NodeReport, PlacementPolicy, SessionId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

const NODES: u64 = 1_523;
const GIB: u64 = 1 << 30;

/// Three sizes of machine, as fleets grow over the years.
fn allocatable(index: u64) -> Resources {
    let (cpu, memory) = [(64, 256), (96, 384), (128, 512)][usize::try_from(index % 3).unwrap_or(0)];
    Resources { cpu_millis: cpu * 1_000, memory_bytes: memory * GIB, disk_bytes: 2_000 * GIB, pids: 100_000 }
}

/// A few common sizes of sandbox.
fn spec(number: u64) -> SandboxSpec {
    let (cpu, memory) = [(1, 1), (2, 4), (1, 2), (4, 8), (2, 2)][usize::try_from(number % 5).unwrap_or(0)];
    SandboxSpec {
        name: String::new(),
        image: defaults::IMAGE.to_owned(),
        kernel: None,
        resources: Resources {
            cpu_millis: cpu * 1_000,
            memory_bytes: memory * GIB,
            disk_bytes: GIB,
            pids: 512,
        },
        labels: BTreeMap::new(),
        environment: BTreeMap::new(),
        ttl: defaults::TTL,
        start_timeout: defaults::START_TIMEOUT,
        node_labels: BTreeMap::new(),
        io_bytes_per_second: None,
        source: pinfold_domain::Source::Image,
    }
}

fn registration(index: u64) -> NodeRegistration {
    NodeRegistration {
        id: format!("node-{index:04}").parse().expect("a DNS label"),
        session: SessionId(index + 1),
        version: "bench".to_owned(),
        allocatable: allocatable(index),
        labels: BTreeMap::from([("zone".to_owned(), format!("z{}", index % 3))]),
        zone: format!("z{}", index % 3),
        images: (0..8).map(|image| format!("image-{image}")).chain([defaults::IMAGE.to_owned()]).collect(),
        kernels: BTreeSet::new(),
        statuses: Vec::new(),
        snapshots: Vec::new(),
        templates: Vec::new(),
    }
}

fn fleet(placement: PlacementPolicy) -> Engine {
    let config = EngineConfig { placement, check_invariants: false, ..EngineConfig::default() };
    let mut engine = Engine::new(config);
    for index in 0..NODES {
        engine.step(Timestamp(0), Event::NodeJoined { node: Box::new(registration(index)) });
    }
    engine
}

fn create(number: u64) -> Event {
    Event::Create {
        call: CallId(number),
        tenant: Default::default(),
        request_id: format!("r{number}").parse().expect("printable ASCII without space"),
        sandbox_id: SandboxId(uuid::Uuid::from_u128(u128::from(number))),
        spec: Box::new(spec(number)),
    }
}

/// Seconds per call of `work`, which is done `count` times. The one place where the engine's crate reads a clock.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time; the engine itself never does")]
fn time(count: u64, mut work: impl FnMut(u64)) -> f64 {
    let start = std::time::Instant::now();
    (0..count).for_each(&mut work);
    start.elapsed().as_secs_f64() / count as f64
}

fn line(name: &str, seconds: f64, baseline: f64) {
    println!("{name:<44} {:>12.0} /s {:>9.2} us {:>7.2} x", 1.0 / seconds, seconds * 1e6, baseline / seconds);
}

/// The plain scan: a list of rooms, best fit by the sum of what is left.
fn plain_scan(count: u64) -> f64 {
    let mut rooms: Vec<(NodeId, Resources, Resources)> =
        (0..NODES).map(|index| (registration(index).id, allocatable(index), allocatable(index))).collect();
    time(count, |number| {
        let wanted = spec(number).resources;
        let left = |(_, free, whole): &(NodeId, Resources, Resources)| -> u64 {
            Dimension::ALL.map(|d| (free.get(d) - wanted.get(d)) * 1_000 / whole.get(d)).iter().sum()
        };
        let fits = |(_, free, _): &&mut (NodeId, Resources, Resources)| wanted.first_excess(free).is_none();
        if let Some(best) = rooms.iter_mut().filter(fits).min_by_key(|room| left(room)) {
            best.1 = best.1.saturating_sub(&wanted);
            black_box(&best.0);
        }
    })
}

/// Creates only: the fleet fills up.
fn creates(placement: PlacementPolicy, count: u64) -> f64 {
    let mut engine = fleet(placement);
    let seconds = time(count, |number| {
        black_box(engine.step(Timestamp(0), create(number)));
    });
    assert!(engine.sandboxes().all(|sandbox| sandbox.phase == Phase::Assigned), "the fleet was too small");
    seconds
}

/// Whole lives on a fleet with 20,000 sandboxes: create, two reports, stop, end, forgotten.
fn lives(count: u64) -> f64 {
    let mut engine = fleet(PlacementPolicy::Pack);
    (0..20_000).for_each(|number| drop(engine.step(Timestamp(0), create(number))));
    time(count, |number| {
        let effects = engine.step(Timestamp(0), create(20_000 + number));
        let assigned = effects.into_iter().find_map(|effect| match effect {
            Effect::Assign { node, session, sandbox, .. } => Some((node, session, sandbox)),
            _ => None,
        });
        let (node, session, sandbox) = assigned.expect("there is room");
        let report = |sequence, phase| Event::Report {
            node: node.clone(),
            session,
            status: NodeReport {
                sandbox_id: sandbox.id,
                epoch: sandbox.epoch,
                sequence,
                phase,
                cause: None,
                milestones: Vec::new(),
                order: 0,
            },
        };
        engine.step(Timestamp(0), report(1, Phase::Starting));
        engine.step(Timestamp(0), report(2, Phase::Running));
        let (call, request_id) = (CallId(number), sandbox.request_id.clone());
        let sandbox_id = sandbox.id;
        engine.step(Timestamp(0), Event::Stop { call, request_id, sandbox_id, grace: Millis(0) });
        black_box(engine.step(Timestamp(0), report(3, Phase::Stopped)));
    })
}

fn main() {
    println!("{NODES} nodes; per create, except where said otherwise");
    let baseline = plain_scan(20_000);
    line("plain scan (fit and score only)", baseline, baseline);
    line("engine, pack", creates(PlacementPolicy::Pack, 20_000), baseline);
    line("engine, spread", creates(PlacementPolicy::Spread, 20_000), baseline);
    line("engine, whole lives (create to stopped)", lives(20_000), baseline);
}
