//! Which crate may use which, and what every crate has in common.

use crate::cargo::WORKSPACE;
use crate::{Findings, rust, tree};
use std::collections::{BTreeMap, BTreeSet};

/// What a crate may use of ours. docs/ARCHITECTURE.md has the same table for readers. `pinfold-` is left out.
const MAY_USE: &[(&str, &[&str])] = &[
    ("bench", &["vmm-api"]),
    ("cli", &["domain", "sdk"]),
    ("domain", &[]),
    ("engine", &["domain"]),
    ("evil-guest", &[]),
    ("guest-agent", &["domain", "proto"]),
    ("jailer", &["vmm-api"]),
    ("node-agent", &["domain", "proto", "service", "vmm-api"]),
    ("proto", &["domain"]),
    ("scheduler", &["domain", "engine", "proto", "service"]),
    ("sdk", &["domain", "proto"]),
    ("service", &[]),
    ("vmm", &["vmm-api"]),
    ("vmm-api", &[]),
    ("xtask", &[]),
];

/// May use everything; nothing uses it.
const TESTS: &str = "tests";

/// What must not be linked into a crate at any depth, and why.
const NEVER_LINKED: &[(&str, &[&str], &str)] = &[
    ("engine", &["tokio", "tonic", "rand", "redb"], "the engine is a function: no task, no socket, no store"),
    ("domain", &["tokio", "tonic"], "the shared words do no I/O"),
    (
        "vmm",
        &["tokio", "tonic", "hyper"],
        "a VMM has no async runtime: small, countable threads under seccomp",
    ),
    ("jailer", &["tokio", "tonic", "hyper"], "the jailer is one ordered procedure in a small static binary"),
    ("scheduler", &["pinfold-vmm-api", "pinfold-vmm", "kvm-ioctls"], "the control plane knows no VMM"),
    ("guest-agent", &["pinfold-vmm-api", "openssl-sys", "rustls"], "no secret and no TLS enters a guest"),
];

/// Crates with unsafe code: they talk to the kernel in ways that no library wraps, or have none below them.
const MAY_BE_UNSAFE: &[&str] = &["vmm", "jailer", "guest-agent", "evil-guest", "bench"];

fn short(name: &str) -> &str {
    name.strip_prefix("pinfold-").unwrap_or(name)
}

#[test]
fn crates_use_each_other_as_the_table_says() {
    let table: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let ours: Vec<&str> = WORKSPACE.crates.iter().map(|c| c.name.as_str()).collect();
    let mut findings = Findings::default();
    for package in &WORKSPACE.crates {
        let name = short(&package.name);
        if name == TESTS {
            continue;
        }
        let Some(allowed) = table.get(name) else {
            findings.add(&package.manifest, format!("{name} is not in the table"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|name| ours.contains(&name.as_str())) {
            if !allowed.contains(&short(dependency)) {
                findings.add(&package.manifest, format!("{name} may not use {}", short(dependency)));
            }
        }
    }
    for (name, _) in MAY_USE {
        if !ours.iter().any(|package| short(package) == *name) {
            findings
                .add("tests/style/crates.rs", format!("{name} is in the table and no crate has this name"));
        }
    }
    findings.check(
        "A crate uses another one that is not its row in MAY_USE.",
        "Move what is shared to a crate that both may use, or change the table here and in docs/ARCHITECTURE.md and say why in docs/decisions.",
    );
}

#[test]
fn the_architecture_shows_the_same_table() {
    let mut shown = BTreeMap::new();
    for line in tree::text("docs/ARCHITECTURE.md").lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, uses, ""] = cells[..] else { continue };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else { continue };
        let mut uses: Vec<&str> = if uses == "nothing" { Vec::new() } else { uses.split(", ").collect() };
        uses.sort_unstable();
        shown.insert(name, uses);
    }
    let mut findings = Findings::default();
    for (name, uses) in MAY_USE {
        match shown.remove(name) {
            Some(row) if row == *uses => {}
            Some(row) => findings.add(name, format!("the document says {row:?}, the test {uses:?}")),
            None => findings.add(name, "the document has no row"),
        }
    }
    for name in shown.keys().filter(|&&name| name != TESTS) {
        findings.add(name, "the document has a row, the test none");
    }
    findings.check(
        "docs/ARCHITECTURE.md and MAY_USE differ.",
        "Make the rows `| `crate` | a, b |` (or `nothing`) equal to tests/style/crates.rs.",
    );
}

#[test]
fn nothing_heavy_is_linked_where_it_must_not_be() {
    let mut findings = Findings::default();
    for (name, banned, why) in NEVER_LINKED {
        let linked = &WORKSPACE.linked[&format!("pinfold-{name}")];
        for banned in banned.iter().filter(|banned| linked.contains(**banned)) {
            findings.add(name, format!("links {banned}: {why}"));
        }
    }
    findings.check(
        "A crate links something that it must not, directly or through another crate.",
        "`cargo tree -e normal -p pinfold-<crate> -i <banned>` shows the way in; cut it.",
    );
}

#[test]
fn nothing_links_the_vmm_or_the_tests() {
    let mut findings = Findings::default();
    for package in WORKSPACE.crates.iter().filter(|package| short(&package.name) != TESTS) {
        for dependency in &package.dependencies {
            if matches!(short(dependency), "vmm" | "jailer" | TESTS) && dependency.starts_with("pinfold-") {
                findings.add(&package.manifest, format!("depends on {dependency}"));
            }
        }
    }
    findings.check(
        "The VMM and the jailer are reached by process only, and nothing uses the tests.",
        "Move the shared types to vmm/api.",
    );
}

#[test]
fn every_crate_inherits_lints_versions_and_licence() {
    let mut findings = Findings::default();
    for package in &WORKSPACE.crates {
        let manifest = tree::text(&package.manifest);
        if !manifest.contains("[lints]\nworkspace = true") {
            findings.add(&package.manifest, "has no `[lints]` with `workspace = true`");
        }
        for field in ["version", "edition", "rust-version", "license", "publish"] {
            if !manifest.contains(&format!("\n{field}.workspace = true")) {
                findings.add(&package.manifest, format!("does not say `{field}.workspace = true`"));
            }
        }
        for (number, line) in dependency_lines(manifest) {
            if !line.contains("workspace = true") {
                findings
                    .add(format!("{}:{number}", package.manifest), format!("`{line}` gives its own version"));
            }
        }
    }
    findings.check(
        "A crate does not inherit from the workspace.",
        "Versions, lints and the licence stand once, in the root Cargo.toml.",
    );
}

/// Crate, dependency: only generated code uses it.
const USED_BY_GENERATED_CODE: &[(&str, &str)] = &[("proto", "prost"), ("proto", "tonic-prost")];

#[test]
fn every_dependency_is_used() {
    let mut findings = Findings::default();
    let folders: Vec<&str> =
        WORKSPACE.crates.iter().map(|c| c.manifest.trim_end_matches("Cargo.toml")).collect();
    for package in &WORKSPACE.crates {
        let folder = package.manifest.trim_end_matches("Cargo.toml");
        // a crate within a crate's folder is not part of it
        let inner: Vec<&&str> =
            folders.iter().filter(|f| f.len() > folder.len() && f.starts_with(folder)).collect();
        let sources = tree::FILES.iter().filter(|file| file.is_rust() && file.path.starts_with(folder));
        let sources = sources.filter(|file| !inner.iter().any(|inner| file.path.starts_with(**inner)));
        let words: BTreeSet<&str> =
            sources.flat_map(|file| file.text.split(|c: char| !c.is_alphanumeric() && c != '_')).collect();
        for dependency in &package.dependencies {
            let excepted = USED_BY_GENERATED_CODE.contains(&(short(&package.name), dependency.as_str()));
            if !excepted && !words.contains(dependency.replace('-', "_").as_str()) {
                findings.add(&package.manifest, format!("{dependency} is used nowhere"));
            }
        }
    }
    let used: BTreeSet<&str> =
        WORKSPACE.crates.iter().flat_map(|c| &c.dependencies).map(String::as_str).collect();
    let root = tree::text("Cargo.toml");
    let listed = root.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    for line in listed.expect("the root names the workspace's dependencies").lines() {
        if let Some((name, _)) = line.split_once(" = ")
            && !used.contains(name)
        {
            findings.add("Cargo.toml", format!("no crate depends on {name}"));
        }
    }
    findings
        .check("A dependency is declared and not used.", "Remove the line: it costs build time and trust.");
}

fn dependency_lines(manifest: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(manifest.lines()) {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && !line.trim().is_empty() && !line.starts_with('#') {
            found.push((number, line));
        }
    }
    found
}

#[test]
fn unsafe_code_is_forbidden_outside_four_crates() {
    let mut findings = Findings::default();
    for package in &WORKSPACE.crates {
        if MAY_BE_UNSAFE.contains(&short(&package.name)) {
            continue;
        }
        for root in &package.roots {
            if !rust::mask(tree::text(root)).contains("#![forbid(unsafe_code)]") {
                findings.add(root, "no `#![forbid(unsafe_code)]`");
            }
        }
    }
    findings.check(
        "A crate root permits unsafe code.",
        "Add the attribute; only vmm, jailer, guest-agent and the hostile guest of the tests may do without, under the workspace's lints for unsafe blocks.",
    );
}

#[test]
fn a_nested_clippy_file_keeps_the_bans_of_the_root() {
    const ALWAYS: [&str; 3] = ["std::env::set_var", "std::env::remove_var", "std::mem::forget"];
    let mut findings = Findings::default();
    for file in tree::FILES.iter().filter(|file| file.path.ends_with("clippy.toml")) {
        for ban in ALWAYS {
            if !file.text.contains(&format!("path = \"{ban}\"")) {
                findings.add(&file.path, format!("does not ban {ban}"));
            }
        }
        for (number, line) in (1..).zip(file.text.lines()) {
            if line.contains("path = \"") && !line.contains("reason = \"") {
                findings.add(format!("{}:{number}", file.path), "a ban without a reason");
            }
        }
    }
    for ban in ["std::time::Instant::now", "std::time::SystemTime::now", "std::collections::HashMap"] {
        if !tree::text("scheduler/engine/clippy.toml").contains(ban) {
            findings.add("scheduler/engine/clippy.toml", format!("does not ban {ban}"));
        }
    }
    findings.check(
        "A clippy.toml forgets a ban: a nested one replaces the root's as a whole.",
        "Repeat the lines of the root's clippy.toml, each with its reason.",
    );
}
