//! Documents that would otherwise drift from the code: links, the table of reasons, the promises.

use crate::{Findings, rust, tree};
use pinfold_domain::Reason;
use std::path::{Component, Path, PathBuf};

#[test]
fn links_lead_somewhere() {
    let mut findings = Findings::default();
    for file in tree::FILES.iter().filter(|file| file.path.ends_with(".md")) {
        for (number, target) in links(&file.text) {
            let place = format!("{}:{number}", file.path);
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let resolved =
                if path.is_empty() { Some(PathBuf::from(&file.path)) } else { resolve(&file.path, path) };
            let Some(resolved) = resolved else {
                findings.add(place, format!("`{target}` leaves the project"));
                continue;
            };
            if !tree::root().join(&resolved).exists() {
                findings.add(place, format!("`{target}` does not exist"));
            } else if !anchor.is_empty() && !anchors(&resolved).iter().any(|known| known == anchor) {
                findings.add(place, format!("`{target}`: no heading gives this anchor"));
            }
        }
    }
    findings.check("A link in a document leads nowhere.", "Links are relative to the file that holds them.");
}

/// Line and target of each `[..](target)` that is not a URL; code blocks are left out.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced || line.starts_with("    ") {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split(')').next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push((number, target));
            }
        }
    }
    found
}

fn resolve(from: &str, link: &str) -> Option<PathBuf> {
    let mut resolved = Path::new(from).parent()?.to_owned();
    for component in Path::new(link).components() {
        match component {
            Component::ParentDir => {
                if !resolved.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            Component::Normal(part) => resolved.push(part),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(resolved)
}

/// Anchors of the headings, as forges make them.
fn anchors(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(tree::root().join(path)).unwrap_or_default();
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.to_lowercase();
            kept.chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// Cells of the table rows of `text` whose first cell is `` `code` ``, with line numbers.
fn rows(text: &str) -> Vec<(usize, Vec<&str>)> {
    let lines = (1..).zip(text.lines());
    lines
        .filter(|(_, line)| line.starts_with("| `") && line.ends_with('|'))
        .map(|(number, line)| (number, line[1..line.len() - 1].split('|').map(str::trim).collect()))
        .collect()
}

#[test]
fn the_table_of_reasons_is_the_code() {
    let mut findings = Findings::default();
    let table = rows(tree::text("docs/REASONS.md"));
    let names: Vec<&str> = table.iter().map(|(_, cells)| cells[0].trim_matches('`')).collect();
    let code: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    if names != code {
        let missing: Vec<_> = code.iter().filter(|name| !names.contains(name)).collect();
        let extra: Vec<_> = names.iter().filter(|name| !code.contains(name)).collect();
        findings.add(
            "docs/REASONS.md",
            format!("missing {missing:?}, too many {extra:?}; the order is that of domain/src/reason.rs"),
        );
    }
    for (number, cells) in &table {
        let place = format!("docs/REASONS.md:{number}");
        let Some(reason) = Reason::from_str_exact(cells[0].trim_matches('`')) else { continue };
        let (code, retryable) = pinfold_proto::reasons::wire(reason);
        let expected = [format!("{code:?}"), if retryable { "yes" } else { "no" }.to_owned()];
        match cells[..] {
            [_, code, retry, meaning] => {
                if [code, retry] != [expected[0].as_str(), expected[1].as_str()] {
                    findings.add(
                        place,
                        format!("says {code}, {retry}; the code says {}, {}", expected[0], expected[1]),
                    );
                } else if meaning.len() < 10 {
                    findings.add(place, "does not say what it means");
                }
            }
            _ => findings.add(place, "a row has four cells"),
        }
    }
    findings.check(
        "docs/REASONS.md is not domain/src/reason.rs with the codes of proto/src/reasons.rs.",
        "A new reason is a new row; a published reason is never renamed or removed.",
    );
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let text = tree::text("docs/SPECIFICATION.md");
    let kept = text.split("\n## Planned").next().unwrap_or(text);
    let mut findings = Findings::default();
    let mut promises = 0;
    for (number, line) in
        (1..).zip(kept.lines()).filter(|(_, line)| line.starts_with("| ") && line.ends_with('|'))
    {
        let cells: Vec<&str> = line[1..line.len() - 1].split('|').map(str::trim).collect();
        if cells[0].is_empty() || cells[0] == "promise" || cells[0].starts_with("--") {
            continue;
        }
        promises += 1;
        let place = format!("docs/SPECIFICATION.md:{number}");
        let [_, _, tests] = cells[..] else {
            findings.add(place, "a row has three cells: promise, bound, test");
            continue;
        };
        let names: Vec<&str> = tests.split(',').map(|test| test.trim().trim_matches('`')).collect();
        for name in names {
            if let Err(what) = find_test(name) {
                findings.add(&place, what);
            }
        }
    }
    assert!(promises > 0, "docs/SPECIFICATION.md promises nothing: has its table changed its form?");
    findings.check(
        "A promise has no test.",
        "The last cell is `path/of/file.rs::test_name`, one or more, with commas; what is not shown yet stands under Planned.",
    );
}

/// `path::name`: the file has a function `name` under a test attribute or inside `proptest!`, or it is one of the cases of
/// the system tests or the hostile guest, which stand in lists of their own.
fn find_test(reference: &str) -> Result<(), String> {
    let (path, name) =
        reference.split_once("::").ok_or_else(|| format!("`{reference}` is not `path::test`"))?;
    let file = tree::FILES
        .iter()
        .find(|file| file.path == path)
        .ok_or_else(|| format!("`{path}` does not exist"))?;
    if path == "tests/evil/cases.rs" {
        let listed = file.text.contains(&format!("(\"{name}\", "));
        return if listed { Ok(()) } else { Err(format!("`{path}` has no case `{name}`")) };
    }
    let masked = rust::mask(&file.text);
    let at =
        masked.find(&format!("fn {name}(")).ok_or_else(|| format!("`{path}` has no function `{name}`"))?;
    let listed = if path.starts_with("tests/system/cases/") {
        let list = rust::mask(tree::text("tests/system/cases.rs"));
        list.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name)
    } else {
        let before = masked[..at].trim_end();
        let attributes = &before[before.rfind(['}', ';']).map_or(0, |end| end + 1)..];
        attributes.contains("test]") || attributes.contains("test(")
    };
    if listed { Ok(()) } else { Err(format!("`{name}` in `{path}` is not a test that runs")) }
}

#[test]
fn decision_records_are_numbered_and_listed() {
    let mut findings = Findings::default();
    let index = tree::text("docs/decisions/README.md");
    let records = tree::FILES.iter().filter(|file| file.path.starts_with("docs/decisions/0"));
    for (expected, file) in (1..).zip(records) {
        let name = file.path.trim_start_matches("docs/decisions/");
        if !name.starts_with(&format!("{expected:04}-")) {
            findings.add(&file.path, format!("number {expected:04} is missing or used twice"));
        }
        if !index.contains(&format!("({name})")) {
            findings.add(&file.path, "is not in docs/decisions/README.md");
        }
        for part in ["## Why", "## Decision", "## What follows"] {
            if !file.text.contains(&format!("\n{part}\n")) {
                findings.add(&file.path, format!("has no `{part}`"));
            }
        }
    }
    findings.check("A decision record is out of order.", "docs/decisions/README.md shows the form.");
}
