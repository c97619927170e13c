//! Seeded runs of a whole simulated fleet.
//!
//! `PINFOLD_SIM_RUNS=5000` makes more runs, `PINFOLD_SIM_SEED=42` replays one seed.

use pinfold_tests::sim::{Outlook, Summary, run};

const QUICK_RUNS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
}

fn runs(share: u64) -> std::ops::Range<u64> {
    match number("PINFOLD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PINFOLD_SIM_RUNS").unwrap_or(QUICK_RUNS) / share,
    }
}

fn run_all(seeds: std::ops::Range<u64>, outlook: Outlook) -> Vec<Summary> {
    let run_one = |seed| match run(seed, outlook, false) {
        Ok(summary) => summary,
        Err(failure) => panic!("{failure}\nreplay it with PINFOLD_SIM_SEED={seed}"),
    };
    seeds.map(run_one).collect()
}

/// Runs in which nobody forks would say nothing of forks.
fn some_were_forked(summaries: &[Summary]) {
    let forks: usize = summaries.iter().map(|summary| summary.forks).sum();
    assert!(forks > summaries.len(), "{forks} forks in {} runs", summaries.len());
}

fn report(name: &str, summaries: &[Summary]) {
    let sum = |of: fn(&Summary) -> u64| summaries.iter().map(of).sum::<u64>();
    println!(
        "{name}: {} runs, {} steps, {} accepted, {} rejected, {} faults",
        summaries.len(),
        sum(|s| s.steps),
        sum(|s| s.accepted as u64),
        sum(|s| s.rejected as u64),
        sum(|s| s.faults),
    );
    println!("{name}: {} forks", sum(|s| s.forks as u64));
    let mut ends = std::collections::BTreeMap::new();
    for (reason, count) in summaries.iter().flat_map(|summary| &summary.ends) {
        *ends.entry(reason).or_insert(0) += count;
    }
    println!("{name}: ends {ends:?}");
}

#[test]
fn a_storm_loses_nothing_and_leaves_nothing() {
    let summaries = run_all(runs(1), Outlook::Stormy);
    report("stormy", &summaries);
    if summaries.len() as u64 >= QUICK_RUNS {
        // a storm that never reached some way to end would test little
        use pinfold_domain::Reason::*;
        for reason in [
            StopRequested,
            DeleteRequested,
            TtlExpired,
            StartTimeout,
            NodeRefused,
            NodeForgot,
            NodeLost,
            JailFailed,
            GuestPowerOff,
            SnapshotFailed,
            SnapshotUnusable,
        ] {
            let count: u64 = summaries.iter().filter_map(|summary| summary.ends.get(&reason)).sum();
            assert!(count > 0, "no sandbox ended for {reason:?}");
        }
        for phase in pinfold_domain::Phase::ALL {
            let count: u64 = summaries.iter().filter_map(|summary| summary.phases.get(&phase)).sum();
            assert!(count > 0, "no sandbox was {phase}");
        }
        some_were_forked(&summaries);
    }
}

#[test]
fn calm_weather_refuses_nothing_and_fails_nothing() {
    let summaries = run_all(runs(4), Outlook::Calm);
    report("calm", &summaries);
    if summaries.len() as u64 >= QUICK_RUNS / 4 {
        some_were_forked(&summaries);
    }
}

#[test]
fn a_seed_is_replayed_to_the_letter() {
    for seed in runs(50) {
        let first = run(seed, Outlook::Stormy, true).unwrap();
        assert!(first.digest.is_some());
        assert_eq!(first, run(seed, Outlook::Stormy, true).unwrap());
    }
}
