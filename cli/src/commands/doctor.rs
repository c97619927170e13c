//! `doctor`: the pre-flight as a table, with what to do.

use crate::args::Format;
use crate::dev::artifacts::{self, NodeFiles};
use crate::dev::fleet;
use crate::dev::preflight::{self, Verdict};
use crate::output::{self, table};
use anyhow::Result;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    /// something else can take its place
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Row {
    check: String,
    outcome: Outcome,
    detail: String,
    /// empty when nothing needs to be done
    advice: String,
}

#[derive(Debug, Serialize)]
struct View {
    sentence: String,
    checks: Vec<Row>,
}

/// Exit code 0 when a fleet can run here, one way or the other; 1 otherwise.
pub async fn run(format: Format) -> Result<i32> {
    let mut rows = Vec::new();
    let (mut usable, mut sentence) = (false, "the probe could not be run".to_owned());
    match preflight::probe().await {
        Ok(preflight) => {
            usable = preflight.verdict == Verdict::Usable;
            sentence = preflight.sentence;
            let kvm = preflight.checks.into_iter().map(|check| {
                // a machine without KVM of its own still has virtual nodes
                let outcome = if check.ok { Outcome::Ok } else { Outcome::Warn };
                let advice = if check.ok { "" } else { "virtual nodes do without: `pinfold dev up`" };
                row(format!("kvm: {}", check.name), outcome, check.detail, advice)
            });
            rows.extend(kvm);
        }
        Err(error) => {
            let advice = "build it (`cargo build`), or set PINFOLD_BIN_DIR";
            rows.push(row("kvm: probe".into(), Outcome::Fail, format!("{error:#}"), advice));
        }
    }
    rows.extend(virtual_nodes(usable));
    // a virtual node brings its own agent and jailer
    let in_nodes = if usable { Outcome::Fail } else { Outcome::Warn };
    for (name, missing) in
        [("pinfold-scheduler", Outcome::Fail), ("pinfold-node-agent", in_nodes), ("pinfold-jailer", in_nodes)]
    {
        rows.push(found(format!("program: {name}"), artifacts::program(name), missing));
    }
    let failed = rows.iter().any(|row| row.outcome == Outcome::Fail);
    let view = View { sentence, checks: rows };
    output::show(format, &view, || text(&view))?;
    Ok(i32::from(failed))
}

/// What virtual nodes need: a must only where KVM cannot be used.
fn virtual_nodes(usable: bool) -> Vec<Row> {
    let missing = if usable { Outcome::Warn } else { Outcome::Fail };
    let files = NodeFiles::find(None).map(|files| files.images);
    vec![
        found("virtual node: qemu".into(), artifacts::qemu(), missing),
        found("virtual node: files".into(), files, missing),
        memory(),
    ]
}

fn memory() -> Row {
    let name = "virtual node: memory".to_owned();
    match fleet::available_memory_mib().and_then(|free| Ok((free, fleet::default_memory_mib(1)?))) {
        Ok((free, node)) if free > node => {
            row(name, Outcome::Ok, format!("{free} MiB are free, a node takes {node} MiB"), "")
        }
        Ok((free, node)) => {
            let detail = format!("{free} MiB are free, a node takes at least {node} MiB");
            row(name, Outcome::Warn, detail, "end what takes memory")
        }
        Err(error) => row(name, Outcome::Warn, format!("{error:#}"), ""),
    }
}

fn found(check: String, path: Result<std::path::PathBuf>, missing: Outcome) -> Row {
    match path {
        Ok(path) => row(check, Outcome::Ok, path.display().to_string(), ""),
        Err(error) => {
            let advised = error.downcast_ref::<crate::failure::Advised>();
            let advice = advised.map_or(String::new(), |advised| advised.advice.clone());
            row(check, missing, format!("{error:#}"), &advice)
        }
    }
}

fn row(check: String, outcome: Outcome, detail: String, advice: &str) -> Row {
    Row { check, outcome, detail, advice: advice.to_owned() }
}

fn text(view: &View) -> String {
    let rows: Vec<Vec<String>> = view
        .checks
        .iter()
        .map(|row| {
            let outcome = match row.outcome {
                Outcome::Ok => "ok",
                Outcome::Warn => "warn",
                Outcome::Fail => "FAIL",
            };
            vec![row.check.clone(), outcome.to_owned(), row.detail.clone(), row.advice.clone()]
        })
        .collect();
    format!("{}\n{}\n", table::grid(&["CHECK", "RESULT", "DETAIL", "WHAT TO DO"], &rows), view.sentence)
}
