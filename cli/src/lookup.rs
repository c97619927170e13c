//! From what a person types to a sandbox: its id, a part of its id, or its name.

use crate::failure::advised;
use anyhow::Result;
use pinfold_domain::{SandboxId, SnapshotId};
use pinfold_sdk::{Client, Sandbox, SandboxFilter};

/// Shortest part of an id.
const MIN_PART: usize = 4;

/// Finds the id. A whole id is not looked up: the call itself tells whether it exists.
pub async fn id(client: &Client, text: &str) -> Result<SandboxId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let (all, _) = client.list_all(SandboxFilter::default()).await?;
    choose(text, &all)
}

/// Finds a snapshot, by its name or a part of its id too.
pub async fn snapshot(client: &Client, text: &str) -> Result<SnapshotId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let all = client.snapshots(None).await?;
    let part = text.to_ascii_lowercase();
    let mut found: Vec<SnapshotId> = all.iter().filter(|s| s.name == text).map(|s| s.id).collect();
    if found.is_empty() && text.len() >= MIN_PART {
        let ids = all.iter().map(|snapshot| snapshot.id);
        let fits = |id: &SnapshotId| {
            let id = id.to_string();
            id.starts_with(&part) || id.ends_with(&part)
        };
        found = ids.filter(fits).collect();
    }
    match found.as_slice() {
        [one] => Ok(*one),
        several => Err(advised(
            format!("{text:?} names {} snapshots, it must name one", several.len()),
            "`pinfold snapshot ls` shows what there is",
        )),
    }
}

/// A name wins over a part of an id; of several with one name the only one that has not ended is meant.
fn choose(text: &str, all: &[Sandbox]) -> Result<SandboxId> {
    let mut found: Vec<&Sandbox> = all.iter().filter(|sandbox| sandbox.spec.name == text).collect();
    if found.len() > 1 && found.iter().any(|sandbox| !sandbox.phase.is_final()) {
        found.retain(|sandbox| !sandbox.phase.is_final());
    }
    if found.is_empty() && text.len() >= MIN_PART {
        // ids begin with their time, so those of one minute differ at their end
        let part = text.to_ascii_lowercase();
        found = all
            .iter()
            .filter(|sandbox| {
                let id = sandbox.id.to_string();
                id.starts_with(&part) || id.ends_with(&part)
            })
            .collect();
    }
    match found.as_slice() {
        [one] => Ok(one.id),
        [] if text.len() < MIN_PART => Err(advised(
            format!("no sandbox is named {text:?}, and a part of an id has at least {MIN_PART} characters"),
            "`pinfold ls` shows what there is",
        )),
        [] => Err(advised(
            format!("no sandbox has the name {text:?} or an id that begins or ends so"),
            "`pinfold ls` shows what there is",
        )),
        several => {
            let ids: Vec<String> = several.iter().take(5).map(|sandbox| sandbox.id.to_string()).collect();
            let more = if several.len() > 5 { ", ..." } else { "" };
            Err(advised(
                format!("{text:?} fits {} sandboxes: {}{more}", several.len(), ids.join(", ")),
                "give more characters; the end of an id tells sandboxes of one minute apart",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::sandbox;
    use pinfold_domain::Phase;

    fn all() -> Vec<Sandbox> {
        let mut all = vec![
            sandbox("0190b3f0-5a00-7000-8000-00000000aaaa"),
            sandbox("0190b3f0-5a00-7000-8000-00000000bbbb"),
            sandbox("0190b3f0-5a01-7000-8000-00000000cccc"),
        ];
        all[0].phase = Phase::Stopped;
        all[1].phase = Phase::Running;
        all
    }

    #[test]
    fn by_start_end_and_name() {
        let all = all();
        assert_eq!(choose("0190b3f0-5a01", &all).unwrap(), all[2].id);
        assert_eq!(choose("CCCC", &all).unwrap(), all[2].id);
        // the one that still lives
        assert_eq!(choose("web", &all).unwrap(), all[1].id);
    }

    #[test]
    fn what_is_not_unique_names_the_candidates() {
        let error = choose("0190b3f0-5a00", &all()).unwrap_err().to_string();
        assert_eq!(
            error,
            "\"0190b3f0-5a00\" fits 2 sandboxes: 0190b3f0-5a00-7000-8000-00000000aaaa, \
             0190b3f0-5a00-7000-8000-00000000bbbb"
        );
        assert!(choose("abc", &all()).unwrap_err().to_string().contains("at least 4 characters"));
        assert!(choose("dddd", &all()).is_err());
    }
}
