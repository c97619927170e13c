//! Licences of what is linked, against the list in deny.toml. `cargo deny` does more where it is installed; this needs
//! nothing.

use crate::cargo::WORKSPACE;
use crate::{Findings, tree};

#[test]
fn every_dependency_has_a_licence_on_the_list() {
    let allowed = allowed(tree::text("deny.toml"));
    assert!(allowed.contains(&"Apache-2.0"), "deny.toml has no list of licences");
    let mut findings = Findings::default();
    for (name, version, licence) in &WORKSPACE.third_party {
        match licence {
            Some(licence) if permitted(licence, &allowed) => {}
            Some(licence) => findings.add(name, format!("{version} is under {licence}")),
            None => findings.add(name, format!("{version} names no licence")),
        }
    }
    findings.check(
        "A dependency's licence is not in the list of deny.toml.",
        "Use another crate; or, if the licence puts no condition on our source, add it to the list.",
    );
}

fn allowed(deny: &str) -> Vec<&str> {
    let list = deny.split("allow = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
    list.split('"').skip(1).step_by(2).collect()
}

/// SPDX expression with OR, AND, WITH and parentheses; the old `/` is OR.
fn permitted(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let (result, rest) = any(&tokens, allowed);
    result && rest.is_empty()
}

fn any<'a>(tokens: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    let (mut result, mut rest) = all(tokens, allowed);
    while let ["OR", next @ ..] = rest {
        let (more, after) = all(next, allowed);
        (result, rest) = (result | more, after);
    }
    (result, rest)
}

fn all<'a>(tokens: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    let (mut result, mut rest) = one(tokens, allowed);
    while let ["AND", next @ ..] = rest {
        let (more, after) = one(next, allowed);
        (result, rest) = (result & more, after);
    }
    (result, rest)
}

fn one<'a>(tokens: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    match tokens {
        ["(", inner @ ..] => match any(inner, allowed) {
            (result, [")", rest @ ..]) => (result, rest),
            (_, rest) => (false, rest),
        },
        [licence, "WITH", exception, rest @ ..] => {
            (allowed.contains(&format!("{licence} WITH {exception}").as_str()), rest)
        }
        [licence, rest @ ..] => (allowed.contains(licence), rest),
        [] => (false, tokens),
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"];
    for good in ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-2.0", "(MIT OR GPL-3.0) AND Unicode-3.0"] {
        assert!(permitted(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "", "(MIT", "Apache-2.0 WITH LLVM-exception"] {
        assert!(!permitted(bad, &allowed), "{bad}");
    }
}
