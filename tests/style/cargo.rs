//! What cargo says of the workspace.

use crate::tree;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::LazyLock;

/// A crate of ours.
pub struct Crate {
    pub name: String,
    /// of Cargo.toml, relative to the root
    pub manifest: String,
    /// names, of every kind
    pub dependencies: Vec<String>,
    /// source of each library and binary, relative to the root
    pub roots: Vec<String>,
}

pub struct Workspace {
    /// in order of the name
    pub crates: Vec<Crate>,
    /// name, version and licence of everything that is linked or run at build time on our target
    pub third_party: Vec<(String, String, Option<String>)>,
    /// package name -> names of what it links, all levels, build and test dependencies left out
    pub linked: BTreeMap<String, BTreeSet<String>>,
}

pub static WORKSPACE: LazyLock<Workspace> = LazyLock::new(|| read(&metadata()));

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(tree::root())
        .output()
        .expect("cargo runs: it runs this test");
    assert!(output.status.success(), "cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn read(metadata: &Value) -> Workspace {
    let packages = list(&metadata["packages"]);
    let ours = packages.iter().filter(|package| package["source"].is_null());
    let mut crates: Vec<Crate> = ours.map(|&package| read_crate(package)).collect();
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    let third_party = packages
        .iter()
        .filter(|package| !package["source"].is_null())
        .map(|package| {
            let licence = package["license"].as_str().map(str::to_owned);
            (string(&package["name"]), string(&package["version"]), licence)
        })
        .collect();
    Workspace { crates, third_party, linked: linked(metadata) }
}

fn read_crate(package: &Value) -> Crate {
    let relative = |path: &Value| {
        let path = string(path);
        let root = format!("{}/", tree::root().display());
        path.strip_prefix(&root).unwrap_or(&path).to_owned()
    };
    let dependencies =
        list(&package["dependencies"]).into_iter().map(|dependency| string(&dependency["name"])).collect();
    let roots = list(&package["targets"])
        .into_iter()
        .filter(|target| list(&target["kind"]).iter().any(|kind| *kind == "lib" || *kind == "bin"))
        .map(|target| relative(&target["src_path"]))
        .collect();
    Crate {
        name: string(&package["name"]),
        manifest: relative(&package["manifest_path"]),
        dependencies,
        roots,
    }
}

/// Walks the resolved graph along normal dependencies.
fn linked(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let name_of: BTreeMap<&str, &str> = list(&metadata["packages"])
        .into_iter()
        .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
        .collect();
    let mut direct: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let normal = list(&node["deps"])
            .into_iter()
            .filter(|dependency| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()))
            .filter_map(|dependency| dependency["pkg"].as_str());
        direct.insert(node["id"].as_str().expect("a node has an id"), normal.collect());
    }
    let mut result: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for &id in direct.keys() {
        let mut seen = BTreeSet::new();
        let mut open = vec![id];
        while let Some(next) = open.pop() {
            for &dependency in direct.get(next).into_iter().flatten() {
                if seen.insert(dependency) {
                    open.push(dependency);
                }
            }
        }
        let names = seen.into_iter().filter_map(|id| name_of.get(id)).map(|&name| name.to_owned());
        result.insert(name_of[id].to_owned(), names.collect());
    }
    result
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

fn string(value: &Value) -> String {
    value.as_str().expect("cargo metadata gives a string here").to_owned()
}
