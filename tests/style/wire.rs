//! The wire's enums have the same values, in the same order, as the domain's.

use crate::{Findings, rust, tree};

/// Enum of the domain, its file, the proto file, the prefix of the values.
const PAIRS: &[(&str, &str, &str, &str)] = &[
    ("Phase", "domain/src/lifecycle.rs", "proto/pinfold/api/v1/sandbox.proto", "PHASE_"),
    ("Milestone", "domain/src/assignment.rs", "proto/pinfold/api/v1/sandbox.proto", "MILESTONE_"),
    ("Verdict", "domain/src/placement.rs", "proto/pinfold/api/v1/sandbox.proto", "VERDICT_"),
    ("SnapshotState", "domain/src/snapshot.rs", "proto/pinfold/api/v1/snapshot.proto", "SNAPSHOT_STATE_"),
    ("Preparation", "domain/src/template.rs", "proto/pinfold/api/v1/template.proto", "PREPARATION_"),
    ("NodeState", "domain/src/node.rs", "proto/pinfold/api/v1/node.proto", "NODE_STATE_"),
];

#[test]
fn enums_of_the_wire_are_those_of_the_domain() {
    let mut findings = Findings::default();
    for (name, source, proto, prefix) in PAIRS {
        let Some(variants) = rust::variants(&rust::mask(tree::text(source)), name) else {
            findings.add(source, format!("has no enum {name}"));
            continue;
        };
        let expected = std::iter::once("UNSPECIFIED".to_owned()).chain(variants.iter().map(|v| screaming(v)));
        let expected: Vec<String> = expected.map(|value| format!("{prefix}{value}")).collect();
        let values = values(tree::text(proto), name);
        if values != expected {
            findings.add(proto, format!("enum {name} is {values:?}, the domain's is {expected:?}"));
        }
    }
    findings.check(
        "An enum of the wire and its enum in the domain differ.",
        "Add the value to both, at the end; published numbers never change.",
    );
}

#[test]
fn enum_numbers_have_no_gaps() {
    let mut findings = Findings::default();
    for (name, _, proto, _) in PAIRS {
        let numbers = body(tree::text(proto), name).filter_map(|line| line.split_once('='));
        let numbers: Vec<&str> = numbers.map(|(_, number)| number.trim().trim_end_matches(';')).collect();
        let expected: Vec<String> = (0..numbers.len()).map(|n| n.to_string()).collect();
        if numbers != expected {
            findings.add(proto, format!("enum {name} is numbered {numbers:?}"));
        }
    }
    findings.check("An enum of the wire is not numbered from 0 without gaps.", "Use the next number.");
}

fn body<'a>(proto: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let start = format!("enum {name} {{");
    let lines = proto.lines().skip_while(move |line| *line != start).skip(1);
    lines.take_while(|line| *line != "}").map(str::trim).filter(|line| !line.starts_with("//"))
}

fn values(proto: &str, name: &str) -> Vec<String> {
    body(proto, name).filter_map(|line| line.split_once(" = ")).map(|(value, _)| value.to_owned()).collect()
}

fn screaming(variant: &str) -> String {
    let mut text = String::new();
    for (at, c) in variant.char_indices() {
        if at > 0 && c.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}
