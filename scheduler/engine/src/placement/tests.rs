//! A small mixed fleet, asked for many things: what is decided and why, as text. To change the text on purpose, set
//! `PINFOLD_BLESS=1` and read the difference.

use super::*;
use crate::cluster::node::NodeEntry;
use crate::cluster::reservation::Reservation;
use crate::event::{NodeRegistration, SessionId};
use pinfold_domain::resources::Dimension;
use pinfold_domain::{Epoch, NodeState, SandboxId, Timestamp, spec::defaults};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn amounts(cpu_millis: u64, memory_gib: u64, disk_gib: u64, pids: u64) -> Resources {
    Resources { cpu_millis, memory_bytes: memory_gib * GIB, disk_bytes: disk_gib * GIB, pids }
}

fn node(cluster: &mut Cluster, name: &str, allocatable: Resources, used: Resources, images: &[&str]) {
    let id: NodeId = name.parse().unwrap();
    let entry = cluster.entry(&id, Timestamp(0));
    entry.register(
        NodeRegistration {
            id,
            session: SessionId(1),
            version: String::new(),
            allocatable,
            labels: BTreeMap::new(),
            zone: String::new(),
            images: images.iter().map(|image| (*image).to_owned()).collect(),
            kernels: BTreeSet::new(),
            statuses: Vec::new(),
            snapshots: Vec::new(),
            templates: Vec::new(),
        },
        Timestamp(0),
    );
    if used != Resources::default() {
        let sandbox = SandboxId(uuid::Uuid::from_u128(1));
        entry.reserve(sandbox, Reservation::new(Epoch(1), used, Timestamp(0)));
    }
}

fn change(cluster: &mut Cluster, name: &str, how: impl FnOnce(&mut NodeEntry)) {
    how(cluster.get_mut(&name.parse().unwrap()).unwrap());
}

/// Five nodes, each with something of its own.
fn fleet() -> Cluster {
    let mut cluster = Cluster::default();
    let none = Resources::default();
    node(&mut cluster, "large", amounts(32_000, 128, 1_000, 30_000), none, &["base", "gpu"]);
    node(&mut cluster, "half", amounts(8_000, 32, 200, 8_000), amounts(4_000, 16, 100, 4_000), &["base"]);
    node(&mut cluster, "full", amounts(8_000, 32, 200, 8_000), amounts(8_000, 4, 20, 1_000), &["base"]);
    node(&mut cluster, "tight", amounts(4_000, 4, 50, 2_000), none, &["base"]);
    node(&mut cluster, "away", amounts(64_000, 256, 2_000, 60_000), none, &["base", "rare"]);
    change(&mut cluster, "away", |entry| entry.node.state = NodeState::Suspect);
    change(&mut cluster, "half", |entry| {
        entry.node.labels.insert("disk".to_owned(), "nvme".to_owned());
        entry.node.kernels.insert("own".to_owned());
    });
    cluster
}

fn want(resources: Resources) -> Requirement {
    Requirement {
        amounts: Dimension::ALL.map(|dimension| resources.get(dimension)),
        image: defaults::IMAGE.to_owned(),
        kernel: None,
        node_labels: BTreeMap::new(),
        snapshot: None,
        template: None,
        refused_by: BTreeSet::new(),
    }
}

fn label(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn answer(cluster: &Cluster, requirement: &Requirement) -> String {
    let mut text = String::new();
    for policy in [PlacementPolicy::Pack, PlacementPolicy::Spread] {
        let Decision { node, explanation, possible } = scan(cluster, policy, requirement);
        assert_eq!(possible, never(cluster, requirement).is_none() && cluster.not_lost().count() > 0);
        let node = node.map_or("waits".to_owned(), |node| node.to_string());
        text.push_str(&format!(
            "  {:<7}{node:<6} {}\n",
            format!("{policy:?}").to_lowercase(),
            explanation.sentence()
        ));
    }
    match never(cluster, requirement) {
        Some((reason, explanation)) => {
            text.push_str(&format!("  never: {reason:?}, {}\n", explanation.sentence()));
        }
        None => text.push_str("  some node could hold it, or may yet join\n"),
    }
    text
}

#[test]
fn decisions_and_their_explanations() {
    let cluster = fleet();
    let small = amounts(1_000, 1, 1, 100);
    let cases = [
        ("small", want(small)),
        ("half of the small nodes' cpu", want(amounts(4_000, 1, 1, 100))),
        ("a lot of memory", want(amounts(1_000, 64, 1, 100))),
        ("more disk than any ready node has", want(amounts(1_000, 1, 1_500, 100))),
        ("more pids than any ready node has", want(amounts(1_000, 1, 1, 40_000))),
        ("more cpu than there is", want(amounts(65_000, 1, 1, 100))),
        ("a different limit on each node", want(amounts(64_000, 256, 2_001, 60_000))),
        ("an image of one node", Requirement { image: "gpu".to_owned(), ..want(small) }),
        ("an image of a node that is away", Requirement { image: "rare".to_owned(), ..want(small) }),
        ("an image of no node", Requirement { image: "none".to_owned(), ..want(small) }),
        ("a kernel of one node", Requirement { kernel: Some("own".to_owned()), ..want(small) }),
        ("a kernel of no node", Requirement { kernel: Some("none".to_owned()), ..want(small) }),
        ("a label of one node", Requirement { node_labels: label("disk", "nvme"), ..want(small) }),
        ("a label with another value", Requirement { node_labels: label("disk", "slow"), ..want(small) }),
        (
            "an image and a label that no node has both of",
            Requirement { image: "gpu".to_owned(), node_labels: label("disk", "nvme"), ..want(small) },
        ),
        (
            "refused by two a moment ago",
            Requirement {
                refused_by: BTreeSet::from(["large".parse().unwrap(), "tight".parse().unwrap()]),
                ..want(small)
            },
        ),
    ];
    let mut text = String::new();
    for (name, requirement) in cases {
        text.push_str(&format!("{name}\n{}", answer(&cluster, &requirement)));
    }
    text.push_str(&format!("small, in a fleet without nodes\n{}", answer(&Cluster::default(), &want(small))));
    let mut lost = Cluster::default();
    node(&mut lost, "gone", small, Resources::default(), &["base"]);
    change(&mut lost, "gone", |entry| entry.node.state = NodeState::Lost);
    text.push_str(&format!("small, when the only node is lost\n{}", answer(&lost, &want(small))));

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/placement/goldens/decisions.txt");
    if std::env::var_os("PINFOLD_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, include_str!("goldens/decisions.txt"));
}

proptest! {
    /// Whatever the fleet: the chosen node fits, the counts add up, and never is said of nothing that fits somewhere.
    #[test]
    fn what_is_chosen_fits(
        nodes in prop::collection::vec((1..10_u64, 1..10_u64, 0..10_u64, 0..4_u8), 0..8),
        wanted in (1..10_u64, 1..10_u64),
        policy in prop_oneof![Just(PlacementPolicy::Pack), Just(PlacementPolicy::Spread)],
    ) {
        let mut cluster = Cluster::default();
        for (index, (cpu, memory, used, kind)) in nodes.iter().enumerate() {
            let used = amounts((*used).min(*cpu) * 1_000, (*used).min(*memory), 0, 0);
            let images: &[&str] = if *kind == 0 { &[] } else { &["base"] };
            node(&mut cluster, &format!("n{index}"), amounts(*cpu * 1_000, *memory, 9, 9), used, images);
            if *kind == 1 {
                change(&mut cluster, &format!("n{index}"), |entry| entry.node.state = NodeState::Suspect);
            }
        }
        let requirement = want(amounts(wanted.0 * 1_000, wanted.1, 1, 1));
        let Decision { node, explanation, .. } = scan(&cluster, policy, &requirement);
        let fitting = cluster.registered().filter(|e| filter::first_rejection(e, &requirement).is_none()).count();
        let rejected: u64 = explanation.filters.iter().map(|filter| filter.rejected).sum();
        prop_assert_eq!(explanation.nodes_considered, nodes.len() as u64);
        prop_assert_eq!(rejected, (nodes.len() - fitting) as u64);
        prop_assert_eq!(node.is_some(), fitting > 0);
        if let Some(node) = node {
            let entry = cluster.get(&node).unwrap();
            prop_assert_eq!(requirement.resources().first_excess(&entry.free()), None);
            prop_assert!(never(&cluster, &requirement).is_none());
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Join {
        node: u8,
        cpu: u64,
    },
    State {
        node: u8,
        state: NodeState,
    },
    Reserve {
        node: u8,
        sandbox: u8,
    },
    Release {
        node: u8,
        sandbox: u8,
    },
    Remove {
        node: u8,
    },
    /// more requirements than there are views
    Decide {
        kind: u64,
    },
}

fn any_change() -> impl Strategy<Value = Change> {
    let node = 0..6_u8;
    let states = vec![NodeState::Ready, NodeState::Ready, NodeState::Suspect, NodeState::Lost];
    prop_oneof![
        2 => (node.clone(), 1..9_u64).prop_map(|(node, cpu)| Change::Join { node, cpu }),
        1 => (node.clone(), prop::sample::select(states)).prop_map(|(node, state)| Change::State { node, state }),
        4 => (node.clone(), 0..20_u8).prop_map(|(node, sandbox)| Change::Reserve { node, sandbox }),
        2 => (node.clone(), 0..20_u8).prop_map(|(node, sandbox)| Change::Release { node, sandbox }),
        1 => node.prop_map(|node| Change::Remove { node }),
        6 => (1..25_u64).prop_map(|kind| Change::Decide { kind }),
    ]
}

proptest! {
    /// However the fleet changes, a view says what a scan says.
    #[test]
    fn a_view_is_a_scan(changes in prop::collection::vec(any_change(), 0..200), spread in any::<bool>()) {
        let policy = if spread { PlacementPolicy::Spread } else { PlacementPolicy::Pack };
        let mut cluster = Cluster::default();
        let mut views = views::Views::default();
        let id = |node: u8| format!("n{node}").parse::<NodeId>().unwrap();
        for change in changes {
            match change {
                Change::Join { node: name, cpu } => {
                    node(&mut cluster, &format!("n{name}"), amounts(cpu * 1_000, 9, 9, 99), amounts(0, 0, 0, 0), &["base"]);
                }
                Change::State { node, state } => {
                    if let Some(entry) = cluster.get_mut(&id(node)) {
                        entry.node.state = state;
                    }
                }
                Change::Reserve { node, sandbox } => {
                    let sandbox = SandboxId(uuid::Uuid::from_u128(u128::from(sandbox)));
                    if cluster.get(&id(node)).is_some_and(|entry| !entry.reservations.contains_key(&sandbox)) {
                        let held = Reservation::new(Epoch(1), amounts(500, 1, 1, 1), Timestamp(0));
                        cluster.reserve(&id(node), sandbox, held);
                    }
                }
                Change::Release { node, sandbox } => {
                    cluster.release(&id(node), SandboxId(uuid::Uuid::from_u128(u128::from(sandbox))));
                }
                Change::Remove { node } => cluster.remove(&id(node)),
                Change::Decide { kind } => {
                    let requirement = want(amounts(kind * 300, 1, 1, 1));
                    let scanned = scan(&cluster, policy, &requirement);
                    prop_assert_eq!(views.decide(&cluster, policy, &requirement), scanned);
                }
            }
        }
    }
}
