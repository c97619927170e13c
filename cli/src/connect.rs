//! Which scheduler to talk to.

use crate::dev::state::State;
use pinfold_sdk::{Client, Error};

const DEFAULT: &str = "http://127.0.0.1:7420";

/// The address that was given, else the one of the running dev fleet, else the default port of this machine.
pub fn address(given: Option<&str>) -> String {
    if let Some(given) = given {
        return given.to_owned();
    }
    // a dev fleet that is not there, or whose state cannot be read, is no fault of a command that does not need it
    match State::load() {
        Ok(Some(state)) => state.scheduler.map_or_else(|| DEFAULT.to_owned(), |scheduler| scheduler.endpoint),
        Ok(None) | Err(_) => DEFAULT.to_owned(),
    }
}

pub async fn client(given: Option<&str>) -> Result<Client, Error> {
    Client::connect(&address(given)).await
}
