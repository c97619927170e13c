//! Templates: who is asked to prepare them, and what that means for a create.

use super::*;
use crate::templates::TemplateStatus;
use pinfold_domain::{Preparation, Source, TemplateReport};

impl Bench {
    fn template(&mut self, request: &str, name: &str, resources: Resources) -> Result<Template, Rejection> {
        let call = self.call();
        let template = Template {
            id: TemplateId(uuid(self.calls)),
            tenant: Default::default(),
            request_id: request.parse().unwrap(),
            name: name.to_owned(),
            image: defaults::IMAGE.to_owned(),
            kernel: None,
            resources,
            environment: BTreeMap::from([("A".to_owned(), "template".to_owned())]),
            created_at: Timestamp(0),
        };
        self.step(Event::CreateTemplate { call, template: Box::new(template) });
        self.template_answer(call)
    }

    fn delete_template(&mut self, request: &str, name: &str) -> Result<Template, Rejection> {
        let (call, request_id, name) = (self.call(), request.parse().unwrap(), name.to_owned());
        self.step(Event::DeleteTemplate { call, tenant: Default::default(), request_id, name });
        self.template_answer(call)
    }

    fn template_answer(&self, call: CallId) -> Result<Template, Rejection> {
        self.answered(call).map(|answered| match answered {
            Answered::Template(template) => *template,
            other => panic!("not a template: {other:?}"),
        })
    }

    fn prepares(&mut self, node: &str, session: u64, id: TemplateId, preparation: Preparation) {
        let (node, session, status) = (node_id(node), SessionId(session), said(id, preparation));
        self.step(Event::TemplateReported { node, session, status });
    }

    fn list_templates(&mut self, node: &str, session: u64, list: &[(TemplateId, Preparation)]) {
        let templates = list.iter().map(|(id, preparation)| said(*id, *preparation)).collect();
        let (node, session) = (node_id(node), SessionId(session));
        let (statuses, snapshots) = (Vec::new(), Vec::new());
        self.step(Event::Heartbeat { node, session, statuses, snapshots, templates });
    }

    /// Nodes that were asked, and for what.
    fn asked(&self) -> Vec<(String, String)> {
        let ask = |effect: &Effect| match effect {
            Effect::PrepareTemplate { node, template, .. } => Some((node.to_string(), template.name.clone())),
            _ => None,
        };
        self.effects.iter().filter_map(ask).collect()
    }

    fn dropped_templates(&self) -> Vec<(String, TemplateId)> {
        let drop = |effect: &Effect| match effect {
            Effect::DropTemplate { node, template_id, .. } => Some((node.to_string(), *template_id)),
            _ => None,
        };
        self.effects.iter().filter_map(drop).collect()
    }

    fn fleet_of(&self, name: &str) -> TemplateStatus {
        self.engine.template(&Default::default(), name).expect("known")
    }
}

fn said(template_id: TemplateId, preparation: Preparation) -> TemplateReport {
    let failed = preparation == Preparation::Failed;
    let cause = failed.then(|| Cause::new(Reason::GuestPanic, "not syncing"));
    TemplateReport { template_id, preparation, cause, sizes: Default::default() }
}

fn asked_for(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(node, name)| ((*node).to_owned(), (*name).to_owned())).collect()
}

fn from_template(name: &str) -> SandboxSpec {
    SandboxSpec { source: Source::Template(name.to_owned()), ..spec() }
}

#[test]
fn every_node_that_could_hold_it_prepares_one_template_at_a_time() {
    let mut bench = Bench::fleet(&[1, 4, 4]);
    let large = bench.template("a", "large", room(2)).unwrap();
    assert_eq!(bench.asked(), asked_for(&[("n1", "large"), ("n2", "large")]), "n0 is too small");
    let small = bench.template("b", "small", room(1)).unwrap();
    assert_eq!(bench.asked(), asked_for(&[("n0", "small")]), "the others are busy");
    bench.prepares("n1", 2, large.id, Preparation::Preparing);
    assert_eq!(bench.asked(), []);
    bench.prepares("n1", 2, large.id, Preparation::Prepared);
    assert_eq!(bench.asked(), asked_for(&[("n1", "small")]));
    bench.join(registration("n3", 4, room(9)));
    assert_eq!(bench.asked(), asked_for(&[("n3", "large")]), "a node that joins later");
    let status = bench.fleet_of("large");
    assert_eq!((status.eligible, status.preparing, status.prepared, status.failed), (3, 2, 1, 0));
    assert_eq!(bench.engine.templates(&Default::default(), None, 9).len(), 2);
    assert_eq!(bench.engine.templates(&Default::default(), Some("large"), 9)[0].template, small);
}

#[test]
fn a_create_prefers_the_node_that_has_prepared_its_template() {
    let mut bench = Bench::fleet(&[2, 3]);
    let template = bench.template("t", "python", room(1)).unwrap();
    let cold = bench.try_create("cold", from_template("python")).unwrap();
    assert_eq!(cold.node, Some(node_id("n0")), "the best fit, prepared or not");
    assert_eq!(
        cold.explanation.unwrap().sentence(),
        "2 of 2 nodes fit; template python is not prepared on n0, where it boots instead"
    );
    bench.prepares("n0", 1, template.id, Preparation::Failed);
    bench.prepares("n1", 2, template.id, Preparation::Prepared);
    let own = BTreeMap::from([("B".to_owned(), "own".to_owned())]);
    let warm = SandboxSpec { environment: own, ..from_template("python") };
    let warm = bench.try_create("warm", warm).unwrap();
    assert_eq!((warm.node, warm.explanation.unwrap().note), (Some(node_id("n1")), String::new()));
    assert_eq!(warm.origin.as_ref().unwrap().template, Some(template.id));
    let warm = bench.engine.sandbox(warm.id).unwrap().effective_spec();
    assert_eq!((warm.resources, warm.environment.len()), (room(1), 2));
    let plain = bench.create("plain");
    assert_eq!(plain.node, Some(node_id("n0")), "of no concern to others");
    let full = bench.try_create("x", from_template("python")).unwrap();
    let last = bench.try_create("y", from_template("python")).unwrap();
    assert_eq!((full.node, last.node), (Some(node_id("n1")), Some(node_id("n1"))));
    assert_eq!(bench.try_create("z", from_template("python")).unwrap().phase, Phase::Pending);
}

#[test]
fn a_name_belongs_to_one_template() {
    let mut bench = Bench::fleet(&[2]);
    let first = bench.template("a", "python", room(1)).unwrap();
    assert_eq!(bench.template("a", "python", room(1)).unwrap(), first, "a repetition");
    assert_eq!(bench.template("a", "python", room(2)).unwrap_err().cause.reason, Reason::RequestIdConflict);
    assert_eq!(bench.template("b", "python", room(1)).unwrap_err().cause.reason, Reason::TemplateExists);
    assert_eq!(
        bench.try_create("c", from_template("none")).unwrap_err().cause.reason,
        Reason::TemplateNotFound
    );
    assert_eq!(bench.delete_template("d", "none").unwrap_err().cause.reason, Reason::TemplateNotFound);
}

#[test]
fn a_deleted_template_is_dropped_and_its_sandboxes_go_on() {
    let mut bench = Bench::fleet(&[1]);
    let template = bench.template("t", "python", room(1)).unwrap();
    bench.prepares("n0", 1, template.id, Preparation::Prepared);
    let made = bench.try_create("a", from_template("python")).unwrap();
    let waits = bench.try_create("b", from_template("python")).unwrap();
    assert_eq!(bench.delete_template("d", "python").unwrap().id, template.id);
    assert_eq!(bench.dropped_templates(), [("n0".to_owned(), template.id)]);
    assert_eq!(bench.delete_template("d", "python").unwrap().id, template.id, "a repetition");
    assert_eq!(bench.try_create("a", from_template("python")).unwrap().id, made.id, "a repetition");
    bench.report("n0", 1, status(&made, 2, Phase::Stopped));
    assert_eq!(bench.phase(&waits), Phase::Assigned, "it boots");
    let again = bench.template("t2", "python", room(1)).unwrap();
    bench.list_templates("n0", 1, &[(template.id, Preparation::Prepared)]);
    assert_eq!(bench.dropped_templates(), [("n0".to_owned(), template.id)], "the old one, by its id");
    assert_eq!(bench.fleet_of("python").prepared, 0);
    bench.list_templates("n0", 1, &[(again.id, Preparation::Prepared)]);
    assert_eq!(bench.fleet_of("python").prepared, 1);
}

#[test]
fn a_node_that_failed_is_asked_again_after_a_while() {
    let mut bench = Bench::fleet(&[1]);
    let (bad, good) =
        (bench.template("a", "bad", room(1)).unwrap(), bench.template("b", "good", room(1)).unwrap());
    bench.prepares("n0", 1, bad.id, Preparation::Failed);
    assert_eq!(bench.asked(), asked_for(&[("n0", "good")]), "it does not hold the others up");
    let failed = bench.fleet_of("bad");
    assert_eq!((failed.failed, failed.last_failure.unwrap().reason), (1, Reason::GuestPanic));
    bench.prepares("n0", 1, good.id, Preparation::Prepared);
    let list = [(bad.id, Preparation::Failed), (good.id, Preparation::Prepared)];
    for _ in 0..(bench.config.template_retry.0 / 3_000 - 1) {
        bench.advance(Millis(3_000));
        bench.list_templates("n0", 1, &list);
        assert_eq!(bench.asked(), []);
    }
    bench.advance(Millis(3_000));
    bench.list_templates("n0", 1, &list);
    assert_eq!(bench.asked(), asked_for(&[("n0", "bad")]));
    bench.list_templates("n0", 1, &list);
    assert_eq!(bench.fleet_of("bad").preparing, 1, "that list was made before");
}

#[test]
fn a_node_that_no_longer_has_it_is_asked_again() {
    let mut bench = Bench::fleet(&[1]);
    let template = bench.template("a", "python", room(1)).unwrap();
    bench.list_templates("n0", 1, &[]);
    assert_eq!(bench.asked(), [], "it may not have heard yet");
    bench.advance(bench.config.forgotten_after);
    bench.list_templates("n0", 1, &[]);
    assert_eq!(bench.asked(), asked_for(&[("n0", "python")]));
    bench.prepares("n0", 1, template.id, Preparation::Prepared);
    bench.list_templates("n0", 1, &[]);
    assert_eq!(bench.asked(), asked_for(&[("n0", "python")]));
    bench.prepares("n0", 1, template.id, Preparation::Prepared);
    bench.restart();
    let mut back = registration("n0", 2, room(1));
    back.templates = vec![said(template.id, Preparation::Prepared)];
    bench.join(back);
    assert_eq!((bench.asked(), bench.fleet_of("python").prepared), (vec![], 1));
}

#[test]
fn templates_are_bounded() {
    let config = EngineConfig { templates: 2, ..EngineConfig::default() };
    let mut bench = Bench::with(config);
    bench.template("a", "a", room(1)).unwrap();
    bench.template("b", "b", room(1)).unwrap();
    let refused = bench.template("c", "c", room(1)).unwrap_err().cause;
    assert_eq!(refused, Cause::new(Reason::LimitReached, "there are 2 templates already, the limit is 2"));
}

#[test]
fn a_template_that_no_node_may_prepare_is_refused_and_one_that_waits_says_why() {
    let config = EngineConfig { templates_per_node: 2, ..EngineConfig::default() };
    let mut bench = Bench::with(config);
    bench.join_all(&[1]);
    let first = bench.template("a", "a", room(1)).unwrap();
    let second = bench.template("b", "b", room(1)).unwrap();
    let refused = bench.template("c", "c", room(1)).unwrap_err().cause;
    let message = "every node that could hold it has 2 templates to prepare already, templates_per_node is 2";
    assert_eq!(refused, Cause::new(Reason::LimitReached, message));
    // one that failed there leaves its place to others
    bench.prepares("n0", 1, first.id, Preparation::Failed);
    bench.prepares("n0", 1, second.id, Preparation::Prepared);
    let third = bench.template("c", "c", room(1)).unwrap();
    assert_eq!(bench.asked(), asked_for(&[("n0", "c")]));
    bench.prepares("n0", 1, third.id, Preparation::Prepared);
    // a node that joins later has no place for all of them
    bench.join(registration("n1", 2, room(1)));
    bench.prepares("n1", 2, first.id, Preparation::Prepared);
    bench.prepares("n1", 2, second.id, Preparation::Prepared);
    let waiting = bench.fleet_of("c");
    assert_eq!((waiting.eligible, waiting.preparing, waiting.prepared, waiting.failed), (2, 0, 1, 1));
    let message = "node n1 has prepared 2 templates, templates_per_node is 2";
    assert_eq!(waiting.last_failure, Some(Cause::new(Reason::LimitReached, message)));
    bench.delete_template("d", "b").unwrap();
    assert_eq!(bench.asked(), asked_for(&[("n1", "c")]), "a place came free");
}

/// What the fleet sees as taken on `n0`.
fn taken(bench: &Bench) -> Resources {
    bench.engine.node(&node_id("n0")).unwrap().reserved
}

#[test]
fn the_room_of_a_preparation_is_held_until_the_node_is_done() {
    let mut bench = Bench::fleet(&[2]);
    let template = bench.template("t", "python", room(2)).unwrap();
    assert_eq!((bench.asked().len(), taken(&bench)), (1, room(2)));
    let waits = bench.create("a");
    assert_eq!(waits.phase, Phase::Pending, "the node would refuse it");
    assert_eq!(waits.explanation.unwrap().sentence(), "0 of 1 nodes fit: 1 rejected by cpu");
    bench.prepares("n0", 1, template.id, Preparation::Preparing);
    bench.list_templates("n0", 1, &[(template.id, Preparation::Preparing)]);
    assert_eq!(bench.assigns(), []);
    bench.prepares("n0", 1, template.id, Preparation::Prepared);
    assert_eq!((bench.assigns().len(), taken(&bench)), (1, room(1)), "in the same step");
    // the node itself says how far it is after a restart of the scheduler
    bench.restart();
    let mut back = registration("n0", 2, room(4));
    back.templates = vec![said(template.id, Preparation::Preparing)];
    bench.join(back);
    assert_eq!(taken(&bench), room(3));
    bench.prepares("n0", 2, template.id, Preparation::Failed);
    assert_eq!(taken(&bench), room(1));
}

#[test]
fn a_template_is_prepared_where_there_is_room_and_after_those_who_wait() {
    let mut bench = Bench::fleet(&[2]);
    let first = bench.running("a");
    let second = bench.running("b");
    let template = bench.template("t", "python", room(1)).unwrap();
    assert_eq!(bench.asked(), [], "the node is full");
    let status_now = bench.fleet_of("python");
    assert_eq!((status_now.eligible, status_now.preparing, status_now.failed), (1, 0, 1));
    let cause = status_now.last_failure.unwrap();
    assert_eq!(
        (cause.reason, cause.message.as_str()),
        (Reason::NoRoom, "node n0 has no room to prepare it: cpu")
    );
    let waits = bench.create("c");
    bench.report("n0", 1, status(&first, 3, Phase::Stopped));
    bench.heartbeat("n0", 1, vec![status(&second, 2, Phase::Running)]);
    assert_eq!((bench.phase(&waits), bench.asked()), (Phase::Assigned, vec![]), "the sandbox goes first");
    bench.report("n0", 1, status(&second, 3, Phase::Stopped));
    bench.heartbeat("n0", 1, vec![status(&waits, 1, Phase::Starting)]);
    assert_eq!(bench.asked(), asked_for(&[("n0", "python")]));
    bench.prepares("n0", 1, template.id, Preparation::Prepared);
    assert_eq!(bench.fleet_of("python").last_failure, None);
}

#[test]
fn what_is_deleted_while_it_is_prepared_holds_its_room_until_the_node_let_go() {
    let mut bench = Bench::fleet(&[1]);
    let template = bench.template("t", "python", room(1)).unwrap();
    bench.list_templates("n0", 1, &[(template.id, Preparation::Preparing)]);
    bench.delete_template("d", "python").unwrap();
    assert_eq!(bench.dropped_templates(), [("n0".to_owned(), template.id)]);
    let waits = bench.create("a");
    assert_eq!(waits.phase, Phase::Pending);
    bench.template("t2", "next", room(1)).unwrap();
    for _ in 0..4 {
        bench.advance(bench.config.forgotten_after);
        bench.list_templates("n0", 1, &[(template.id, Preparation::Preparing)]);
        assert_eq!((bench.phase(&waits), bench.asked()), (Phase::Pending, vec![]), "its machine is still up");
        assert_eq!(bench.dropped_templates(), [("n0".to_owned(), template.id)], "told again");
    }
    bench.list_templates("n0", 1, &[]);
    assert_eq!(bench.phase(&waits), Phase::Assigned);
    assert_eq!(taken(&bench), room(1));
}

#[test]
fn a_lost_node_prepares_nothing() {
    let mut bench = Bench::fleet(&[1, 1]);
    bench.template("t", "python", room(1)).unwrap();
    for _ in 0..200 {
        bench.advance(Millis::from_secs(3));
        bench.heartbeat("n1", 2, vec![]);
    }
    assert_eq!((bench.state("n0"), taken(&bench)), (NodeState::Lost, Resources::default()));
    bench.join(registration("n0", 3, room(1)));
    assert_eq!(bench.asked(), asked_for(&[("n0", "python")]));
}

#[test]
fn what_was_prepared_and_is_of_no_use_any_more_is_prepared_again_at_once() {
    let mut bench = Bench::fleet(&[1]);
    let template = bench.template("t", "python", room(1)).unwrap();
    bench.prepares("n0", 1, template.id, Preparation::Prepared);
    // its root image was replaced
    bench.prepares("n0", 1, template.id, Preparation::Failed);
    assert_eq!(bench.asked(), asked_for(&[("n0", "python")]));
    bench.list_templates("n0", 1, &[(template.id, Preparation::Failed)]);
    assert_eq!((bench.fleet_of("python").preparing, bench.asked()), (1, vec![]), "that list was made before");
    bench.prepares("n0", 1, template.id, Preparation::Preparing);
    bench.prepares("n0", 1, template.id, Preparation::Failed);
    assert_eq!((bench.fleet_of("python").failed, bench.asked()), (1, vec![]), "in vain: after a while");
}
