//! Clients at work.

use super::*;

impl World {
    pub(super) fn call(&mut self, op: Op) {
        if self.driver.engine.is_none() {
            return self.after(700, Next::Call(op));
        }
        if let Some(event) = self.clients.call(op) {
            self.step(event);
        }
    }

    /// What a client does with a sandbox that it just got.
    pub(super) fn plan(&mut self, client: usize) {
        if self.rng.percent(20) {
            let ms = self.rng.between((0, 5_000));
            self.after(ms, Next::Call(Op { client, act: Act::Create }));
        }
        if self.rng.percent(10) {
            let ms = self.rng.between((0, 5_000));
            self.after(ms, Next::Call(Op { client, act: Act::Conflict }));
        }
        self.plan_saved(client);
        for (chance, act) in [(60, Act::Stop), (25, Act::Delete), (10, Act::Delete)] {
            if self.rng.percent(chance) {
                let ms = self.rng.between((0, 90_000));
                self.after(ms, Next::Call(Op { client, act }));
            }
        }
    }

    /// Pauses and resumes, snapshots, forks, templates; some of them twice, as when an answer was lost.
    fn plan_saved(&mut self, client: usize) {
        let number = self.rng.below(8);
        let plans = [
            (35, (500, 60_000), Act::Pause(number)),
            (35, (5_000, 70_000), Act::Resume(number)),
            (15, (5_000, 90_000), Act::Pause(number + 1)),
            (15, (10_000, 90_000), Act::Resume(number + 1)),
            (25, (500, 60_000), Act::Snapshot(number)),
            (25, (500, 60_000), Act::Fork(number)),
            (15, (0, 60_000), Act::Template(number)),
            (8, (10_000, 90_000), Act::DropTemplate(number)),
        ];
        for (chance, (from, to), act) in plans {
            if self.rng.percent(chance) {
                let ms = self.rng.between((from, to));
                self.after(ms, Next::Call(Op { client, act }));
                if self.rng.percent(30) {
                    let again = ms + self.rng.between((0, 9_000));
                    self.after(again, Next::Call(Op { client, act }));
                }
            }
        }
    }

    /// Stops all forks, then drops all snapshots: whoever was to start from them has ended by then.
    pub(super) fn end_saved(&mut self) {
        for client in 0..self.clients.all.len() {
            let known = &self.clients.all[client];
            let forks: Vec<_> = known.forks.values().flatten().copied().collect();
            let snapshots: Vec<_> = known.snapshots.iter().copied().collect();
            for id in forks {
                self.after(0, Next::Call(Op { client, act: Act::StopFork(id) }));
            }
            for id in snapshots {
                self.after(60_000, Next::Call(Op { client, act: Act::DropSnapshot(id) }));
            }
        }
    }
}
