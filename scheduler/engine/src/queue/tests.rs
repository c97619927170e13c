use super::*;
use pinfold_domain::{Resources, SandboxSpec, spec::defaults};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// One of a few kinds of requirement.
fn requirement(kind: u64) -> Requirement {
    let spec = SandboxSpec {
        name: String::new(),
        image: defaults::IMAGE.to_owned(),
        kernel: None,
        resources: Resources { cpu_millis: 1000 + kind, ..defaults::RESOURCES },
        labels: BTreeMap::new(),
        environment: BTreeMap::new(),
        ttl: defaults::TTL,
        start_timeout: defaults::START_TIMEOUT,
        node_labels: BTreeMap::new(),
        io_bytes_per_second: None,
        source: pinfold_domain::Source::Image,
    };
    Requirement::new(&spec, None, BTreeSet::new())
}

fn id(number: u64) -> SandboxId {
    SandboxId(uuid::Uuid::from_u128(u128::from(number)))
}

#[derive(Debug, Clone)]
enum Act {
    /// a sandbox of some kind that was created at some time
    Push {
        number: u64,
        kind: u64,
        created: u64,
        tried: bool,
    },
    Remove(u64),
    /// looks at the oldest class in vain
    Block,
    /// takes the oldest of the oldest class out
    Take,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..12_u64, 0..3_u64, 0..5_u64, any::<bool>())
            .prop_map(|(number, kind, created, tried)| Act::Push { number, kind, created, tried }),
        2 => (0..12_u64).prop_map(Act::Remove),
        1 => Just(Act::Block),
        2 => Just(Act::Take),
    ]
}

proptest! {
    /// Against a plain list: who waits, in which order each kind leaves, and which kinds are worth a look.
    #[test]
    fn the_queue_is_as_a_plain_list(acts in prop::collection::vec(act(), 0..120)) {
        let mut queue = Queue::default();
        let mut list: BTreeMap<SandboxId, (u64, Order)> = BTreeMap::new();
        let mut blocked: BTreeSet<u64> = BTreeSet::new();
        for act in acts {
            match act {
                Act::Push { number, kind, created, tried } => {
                    let order = (Timestamp(created), id(number));
                    let first_of_kind = list.values().all(|(other, _)| *other != kind);
                    if list.contains_key(&order.1) {
                        continue;
                    }
                    queue.push(order, requirement(kind), tried);
                    list.insert(order.1, (kind, order));
                    if first_of_kind && tried {
                        blocked.insert(kind);
                    }
                }
                Act::Remove(number) => {
                    prop_assert_eq!(queue.remove(id(number)), list.remove(&id(number)).is_some());
                }
                Act::Block => {
                    if let Some((_, class)) = queue.runnable(false).first() {
                        let kind = queue.class(*class).unwrap().0.resources().cpu_millis - 1000;
                        queue.block(*class);
                        blocked.insert(kind);
                    }
                }
                Act::Take => {
                    if let Some((order, class)) = queue.runnable(true).first() {
                        prop_assert_eq!(queue.head(*class), Some(*order));
                        let oldest = list.values().map(|(_, order)| *order).min();
                        prop_assert_eq!(Some(*order), oldest);
                        queue.remove(order.1);
                        list.remove(&order.1);
                    }
                }
            }
            let kinds: BTreeSet<u64> = list.values().map(|(kind, _)| *kind).collect();
            blocked.retain(|kind| kinds.contains(kind));
            prop_assert_eq!(queue.len(), list.len());
            prop_assert_eq!(queue.waiting_in_classes(), list.len());
            prop_assert!(list.keys().all(|id| queue.contains(*id)));
            prop_assert_eq!(queue.runnable(true).len(), kinds.len());
            prop_assert_eq!(queue.runnable(false).len(), kinds.len() - blocked.len());
            prop_assert_eq!(queue.has_fresh(), kinds.len() > blocked.len());
            prop_assert_eq!(queue.blocked().count(), blocked.len());
            for kind in 0..3 {
                prop_assert_eq!(queue.has_class(&requirement(kind)), kinds.contains(&kind));
            }
        }
    }
}
