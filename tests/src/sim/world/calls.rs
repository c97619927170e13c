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
        for (chance, act) in [(60, Act::Stop), (25, Act::Delete), (10, Act::Delete)] {
            if self.rng.percent(chance) {
                let ms = self.rng.between((0, 90_000));
                self.after(ms, Next::Call(Op { client, act }));
            }
        }
    }
}
