//! What may happen, and how it is made up.

use super::*;

#[derive(Debug, Clone)]
pub(super) enum Act {
    Create {
        request: u8,
        size: u64,
        ttl_secs: u64,
        of: Of,
    },
    Pause {
        request: u8,
        sandbox: u8,
    },
    Resume {
        request: u8,
        sandbox: u8,
    },
    Fork {
        request: u8,
        of: Of,
        count: u8,
    },
    Snapshot {
        request: u8,
        sandbox: u8,
    },
    DropSnapshot {
        request: u8,
        snapshot: u8,
    },
    Template {
        request: u8,
        name: u8,
        size: u64,
    },
    DropTemplate {
        request: u8,
        name: u8,
    },
    Saved {
        node: u8,
        session: u64,
        said: SavedSaid,
    },
    Stop(u8),
    Delete(u8),
    Join {
        node: u8,
        session: u64,
        size: u64,
        list: Vec<Said>,
        saved: Vec<SavedSaid>,
    },
    Heartbeat {
        node: u8,
        session: u64,
        list: Vec<Said>,
        saved: Vec<SavedSaid>,
    },
    Report {
        node: u8,
        session: u64,
        said: Said,
    },
    Refuse {
        node: u8,
        session: u64,
        sandbox: u8,
        epoch: u64,
    },
    Gone {
        node: u8,
        session: u64,
    },
    FirstByte {
        sandbox: u8,
        epoch: u64,
    },
    Advance(u64),
    Jump(i64),
    /// the node lists what is stored of it, each sandbox one step further
    Truth {
        node: u8,
        session: u64,
        saved: Vec<SavedSaid>,
    },
    Restart,
}

/// What a create or a fork begins from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    Nothing,
    Sandbox(u8),
    Snapshot(u8),
    Template(u8),
}

/// What a node says of the so-manieth snapshot or template.
#[derive(Debug, Clone)]
pub(super) enum SavedSaid {
    Snapshot(u8, SnapshotState),
    Template(u8, Preparation),
}

fn of() -> impl Strategy<Value = Of> {
    prop_oneof![
        4 => Just(Of::Nothing),
        2 => (0..12_u8).prop_map(Of::Sandbox),
        2 => (0..6_u8).prop_map(Of::Snapshot),
        2 => (0..4_u8).prop_map(Of::Template),
    ]
}

fn saved_said() -> impl Strategy<Value = SavedSaid> {
    let state = prop::sample::select(SnapshotState::ALL.to_vec());
    let preparation = prop::sample::select(Preparation::ALL.to_vec());
    prop_oneof![
        (0..6_u8, state).prop_map(|(id, state)| SavedSaid::Snapshot(id, state)),
        (0..4_u8, preparation).prop_map(|(id, preparation)| SavedSaid::Template(id, preparation)),
    ]
}

/// What a node says of the sandbox that was created as the so-manieth.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) sandbox: u8,
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    pub(super) phase: Phase,
    pub(super) with_cause: bool,
    pub(super) since_us: u64,
    pub(super) order: u64,
}

fn said() -> impl Strategy<Value = Said> {
    let since = prop_oneof![0..2_000_000_u64, Just(u64::MAX)];
    let phase = prop::sample::select(Phase::ALL.to_vec());
    let sequence = prop_oneof![0..6_u64, Just(u64::MAX)];
    let epoch = prop_oneof![5 => 0..4_u64, 1 => Just(u64::MAX)];
    (0..12_u8, epoch, sequence, phase, any::<bool>(), since, 0..4_u64).prop_map(
        |(sandbox, epoch, sequence, phase, with_cause, since_us, order)| Said {
            sandbox,
            epoch,
            sequence,
            phase,
            with_cause,
            since_us,
            order,
        },
    )
}

/// What goes on in a fleet that works: a node that says the truth, most of the time.
fn truth() -> impl Strategy<Value = Act> {
    (0..3_u8, 0..6_u64, prop::collection::vec(saved_said(), 0..6))
        .prop_map(|(node, session, saved)| Act::Truth { node, session, saved })
}

fn saving() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..40_u8, 0..12_u8).prop_map(|(request, sandbox)| Act::Pause { request, sandbox }),
        12 => (0..40_u8, 0..12_u8).prop_map(|(request, sandbox)| Act::Resume { request, sandbox }),
        3 => (0..40_u8, of(), 0..4_u8).prop_map(|(request, of, count)| Act::Fork { request, of, count }),
        3 => (0..40_u8, 0..12_u8).prop_map(|(request, sandbox)| Act::Snapshot { request, sandbox }),
        1 => (0..40_u8, 0..6_u8).prop_map(|(request, snapshot)| Act::DropSnapshot { request, snapshot }),
        2 => (0..40_u8, 0..4_u8, 1..3_u64)
            .prop_map(|(request, name, size)| Act::Template { request, name, size }),
        1 => (0..40_u8, 0..4_u8).prop_map(|(request, name)| Act::DropTemplate { request, name }),
        4 => (0..3_u8, 0..6_u64, saved_said())
            .prop_map(|(node, session, said)| Act::Saved { node, session, said }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let (node, session) = (0..3_u8, 0..6_u64);
    let list = || prop::collection::vec(said(), 0..5);
    let saved = || prop::collection::vec(saved_said(), 0..5);
    let size = prop_oneof![8 => 0..9_u64, 1 => Just(1_000_000)];
    prop_oneof![
        8 => (0..8_u8, 1..4_u64, prop_oneof![Just(3_600), 1..60_u64], of())
            .prop_map(|(request, size, ttl_secs, of)| Act::Create { request, size, ttl_secs, of }),
        24 => saving(),
        20 => truth(),
        2 => (0..12_u8).prop_map(Act::Stop),
        2 => (0..12_u8).prop_map(Act::Delete),
        5 => (node.clone(), session.clone(), size, list(), saved())
            .prop_map(|(node, session, size, list, saved)| Act::Join { node, session, size, list, saved }),
        4 => (node.clone(), session.clone(), list(), saved())
            .prop_map(|(node, session, list, saved)| Act::Heartbeat { node, session, list, saved }),
        8 => (node.clone(), session.clone(), said())
            .prop_map(|(node, session, said)| Act::Report { node, session, said }),
        2 => (node.clone(), session.clone(), 0..12_u8, 0..4_u64)
            .prop_map(|(node, session, sandbox, epoch)| Act::Refuse { node, session, sandbox, epoch }),
        1 => (node, session).prop_map(|(node, session)| Act::Gone { node, session }),
        1 => (0..12_u8, 0..4_u64).prop_map(|(sandbox, epoch)| Act::FirstByte { sandbox, epoch }),
        3 => (0..400_000_u64).prop_map(Act::Advance),
        1 => (-100_000..1_000_000_i64).prop_map(Act::Jump),
        1 => Just(Act::Restart),
    ]
}

pub(super) fn acts() -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec(act(), 0..120)
}
