//! Sessions as they come and go, and everything that can go wrong with them, with machines and with processes.

use super::*;

pub(super) const GOOD_HABITS: Habits = Habits {
    refuse: 0,
    start_fails: 0,
    start_hangs: 0,
    powers_off: 0,
    replaces: true,
    start_ms: (50, 900),
    stop_ms: (10, 800),
    save_fails: 0,
    save_ms: (20, 900),
};

pub(super) fn habits(rng: &mut Rng) -> Habits {
    Habits {
        refuse: rng.between((0, 40)),
        start_fails: rng.between((0, 20)),
        start_hangs: rng.between((0, 10)),
        powers_off: rng.between((0, 30)),
        replaces: rng.percent(50),
        start_ms: (50, rng.between((900, 9_000))),
        stop_ms: (10, rng.between((800, 9_000))),
        save_fails: rng.between((0, 30)),
        save_ms: (20, rng.between((900, 9_000))),
    }
}

impl World {
    pub(super) fn dial(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.hosts[node];
        if !host.up || host.session.is_some() {
            return;
        }
        if self.driver.engine.is_none() || host.cut_until > now {
            let ms = self.rng.between((500, 1_500));
            return self.after(ms, Next::Dial { node });
        }
        self.sessions += 1;
        let session = SessionId(self.sessions);
        host.session = Some(session);
        let registration = Box::new(host.sim.registration(session));
        let mut link = Link::new(node, now);
        let at = link.arrival(Direction::ToScheduler, now, &mut self.rng);
        self.links.insert(session, link);
        self.at(at, Next::Register { session, registration });
        self.after(HEARTBEAT_MS, Next::Beat { node, session });
    }

    pub(super) fn registers(&mut self, session: SessionId, registration: Box<NodeRegistration>) {
        let Some(link) = self.links.get(&session) else { return };
        let host = &mut self.hosts[link.node];
        if host.registered < Some(session) {
            host.registered = Some(session);
            host.heard.push(self.now);
        }
        self.step(Event::NodeJoined { node: registration });
    }

    pub(super) fn beat(&mut self, node: usize, session: SessionId) {
        let host = &self.hosts[node];
        if host.up && host.session == Some(session) {
            let sim = &host.sim;
            let list = Message::Heartbeat(sim.list(), sim.list_snapshots(), sim.list_templates());
            self.say(session, list);
            self.after(HEARTBEAT_MS, Next::Beat { node, session });
        }
    }

    /// From a node to the scheduler.
    fn say(&mut self, session: SessionId, message: Message) {
        let Some(link) = self.links.get_mut(&session) else { return };
        let mut at = link.arrival(Direction::ToScheduler, self.now, &mut self.rng);
        if self.stormy && matches!(message, Message::Report(_) | Message::Snapshot(_) | Message::Template(_))
        {
            if self.rng.percent(5) {
                return;
            }
            if self.rng.percent(10) {
                at = link.arrival_out_of_order(self.now, &mut self.rng);
            }
        }
        self.at(at, Next::ToScheduler { session, message });
    }

    pub(super) fn reaches_scheduler(&mut self, session: SessionId, message: Message) {
        let Some(link) = self.links.get(&session) else { return };
        let host = &mut self.hosts[link.node];
        let node = host.sim.id.clone();
        let event = match message {
            Message::Heartbeat(statuses, snapshots, templates) => {
                if host.registered == Some(session) {
                    host.heard.push(self.now);
                }
                Event::Heartbeat { node, session, statuses, snapshots, templates }
            }
            Message::Report(status) => {
                let (sandbox_id, epoch, running) =
                    (status.sandbox_id, status.epoch, status.phase == Phase::Running);
                self.step(Event::Report { node, session, status });
                if !running {
                    return;
                }
                Event::FirstByte { sandbox_id, epoch }
            }
            Message::Snapshot(status) => Event::SnapshotReported { node, session, status },
            Message::Template(status) => Event::TemplateReported { node, session, status },
            Message::Refused { sandbox_id, epoch, cause } => {
                Event::Refused { node, session, sandbox_id, epoch, cause }
            }
        };
        self.step(event);
    }

    /// From the scheduler to a node.
    pub(super) fn send(&mut self, session: SessionId, command: Command) {
        if let Some(link) = self.links.get_mut(&session) {
            let at = link.arrival(Direction::ToNode, self.now, &mut self.rng);
            self.at(at, Next::ToNode { session, command });
        }
    }

    pub(super) fn reaches_node(&mut self, session: SessionId, command: Command) -> Result<(), String> {
        let Some(link) = self.links.get(&session) else { return Ok(()) };
        let node = link.node;
        let host = &mut self.hosts[node];
        if !host.up || host.session != Some(session) {
            return Ok(());
        }
        let outcome = host.sim.command(self.now, command, &mut self.rng);
        self.outcome(node, outcome);
        check::instances(self.hosts.iter().map(|host| &host.sim))
    }

    pub(super) fn outcome(&mut self, node: usize, outcome: Outcome) {
        let host = &self.hosts[node];
        let (life, session) = (host.life, host.session);
        for (after, work) in outcome.work {
            self.after(after.0, Next::Work { node, life, work });
        }
        if let Some(session) = session {
            outcome.messages.into_iter().for_each(|message| self.say(session, message));
        }
    }

    /// A session breaks. The node always notices in the end; the scheduler may never be told.
    pub(super) fn break_session(&mut self, session: SessionId, tell_scheduler: bool) {
        if tell_scheduler {
            // what was sent before may still arrive until the scheduler hears of the end
            let ms = self.rng.between((0, 3_000));
            self.after(ms, Next::SchedulerHearsEnd { session });
        } else {
            self.links.remove(&session);
        }
        let ms = self.rng.between((0, 5_000));
        self.after(ms, Next::NodeHearsEnd { session });
    }

    pub(super) fn node_hears_end(&mut self, session: SessionId) {
        let Some(node) = self.hosts.iter().position(|host| host.session == Some(session)) else { return };
        self.hosts[node].session = None;
        let ms = self.rng.between((100, 1_500));
        self.after(ms, Next::Dial { node });
    }

    pub(super) fn scheduler_starts(&mut self) {
        if self.driver.engine.is_none() {
            self.trace.add(self.now, Happening::Fault("the scheduler starts".to_owned()));
            self.driver.start(self.now);
            self.hosts.iter_mut().for_each(|host| host.heard.push(self.now));
        }
    }

    pub(super) fn fault(&mut self) -> Result<(), String> {
        if !self.stormy {
            return Ok(());
        }
        let ms = self.rng.between((100, self.fault_every_ms * 2));
        self.after(ms, Next::Fault);
        self.faults += 1;
        let node = self.rng.below(self.hosts.len() as u64) as usize;
        let session = self.hosts[node].session;
        let kind = self.rng.below(8);
        let name = self.hosts[node].sim.id.clone();
        let what = match (kind, session) {
            (0, Some(session)) => {
                self.break_session(session, true);
                format!("the session of {name} breaks")
            }
            (1, Some(session)) => {
                self.links.remove(&session);
                let ms = self.rng.between((0, 25_000));
                self.after(ms, Next::NodeHearsEnd { session });
                format!("the session of {name} is half open")
            }
            (2, Some(session)) => {
                let ms = self.rng.between((1_000, 40_000));
                if let Some(link) = self.links.get_mut(&session) {
                    link.blocked_until = self.now.after(Millis(ms));
                }
                format!("the path of {name} is blocked for {ms} ms")
            }
            (3, Some(session)) => {
                let ms = self.rng.between((5_000, 150_000));
                self.hosts[node].cut_until = self.now.after(Millis(ms));
                self.links.remove(&session);
                self.after(20_000, Next::NodeHearsEnd { session });
                format!("{name} is cut off for {ms} ms")
            }
            (4, _) if self.hosts[node].up => {
                let ms = self.rng.between((1_000, 120_000));
                self.crash_node(node, ms);
                format!("{name} crashes for {ms} ms")
            }
            (5, Some(session)) => {
                self.hosts[node].sim.restart_agent();
                self.break_session(session, true);
                self.hosts[node].session = None;
                self.after(1_000, Next::Dial { node });
                format!("the agent of {name} restarts")
            }
            (6, _) => return self.crash_scheduler(),
            (7, _) if self.rng.percent(30) => {
                let ms = self.rng.between((1_000, 90_000));
                self.stalled_until = self.now.after(Millis(ms));
                format!("the scheduler stands still for {ms} ms")
            }
            _ => return Ok(()),
        };
        self.trace.add(self.now, Happening::Fault(what));
        Ok(())
    }

    fn crash_node(&mut self, node: usize, down_ms: u64) {
        let host = &mut self.hosts[node];
        self.ledger.wiped.extend(host.sim.list().iter().map(|status| status.sandbox_id));
        host.sim.crash();
        host.up = false;
        host.life += 1;
        if let Some(session) = host.session.take() {
            if self.rng.percent(50) {
                let ms = self.rng.between((0, 3_000));
                self.after(ms, Next::SchedulerHearsEnd { session });
            } else {
                self.links.remove(&session);
            }
        }
        self.after(down_ms, Next::Boot { node });
    }

    fn crash_scheduler(&mut self) -> Result<(), String> {
        if self.driver.engine.is_none() {
            return Ok(());
        }
        self.trace.add(self.now, Happening::Fault("the scheduler crashes".to_owned()));
        self.driver.crash(&mut self.rng)?;
        self.check_stored()?;
        for session in std::mem::take(&mut self.links).into_keys() {
            let ms = self.rng.between((0, 2_000));
            self.after(ms, Next::NodeHearsEnd { session });
        }
        for op in std::mem::take(&mut self.clients.open).into_values() {
            let ms = self.rng.between((500, 3_000));
            self.after(ms, Next::Call(op));
        }
        let ms = self.rng.between((100, 20_000));
        self.after(ms, Next::SchedulerStarts);
        Ok(())
    }

    /// The storm is over: machines are up, paths are clear, nodes behave.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.trace.add(self.now, Happening::Fault("the storm is over".to_owned()));
        self.stormy = false;
        self.stalled_until = self.stalled_until.min(self.now.after(Millis::from_secs(10)));
        for node in 0..self.hosts.len() {
            let host = &mut self.hosts[node];
            host.sim.habits = GOOD_HABITS;
            host.cut_until = self.now;
            if !host.up {
                self.after(0, Next::Boot { node });
            }
        }
        Ok(())
    }
}
