//! A whole fleet in one process and in virtual time: the real engine, a simulated driver with a store, simulated nodes,
//! a network between them, clients, and faults; all drawn from one seed.
//!
//! ```text
//!   clients --calls--> driver (engine, batches, store) <--sessions over links--> nodes
//!                          ^ crash, restart                  ^ cut, slow           ^ crash, restart, refuse
//! ```
//!
//! The engine checks its own invariants after each step. The world checks what only it can see: what is answered is
//! stored, one live instance per sandbox and epoch, no node beyond its real room, the reason of an end is a true one; and,
//! after the faults have ceased, that everything comes to rest and nothing is left anywhere.

mod check;
mod client;
mod driver;
mod network;
mod node;
mod rng;
mod saved;
mod saving_clients;
mod trace;
mod world;

pub use node::{Command, Habits, Message, Outcome, SimNode, Step, Work};
pub use rng::Rng;
pub use world::{Outlook, Summary, run};
