//! The invariants of a limiter over any walk through time, and the gate with a real timer.

use super::*;
use proptest::prelude::*;

fn bucket(per_second: u64, burst: u64, first_burst: u64) -> TokenBucket {
    TokenBucket { per_second, burst, first_burst }
}

fn any_bucket() -> impl Strategy<Value = TokenBucket> {
    let number = || prop_oneof![1..10u64, 1..2_000_000u64, any::<u64>().prop_map(|n| n.max(1))];
    (number(), number(), prop_oneof![Just(0), 0..100_000u64, any::<u64>()])
        .prop_map(|(per_second, burst, first)| bucket(per_second, burst, first))
}

/// Steps of time and costs of requests.
fn any_walk() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let step = prop_oneof![Just(0), 0..1000u64, 0..5_000_000_000u64, 0..1u64 << 58];
    let cost = prop_oneof![Just(0), 1..100u64, 1..5_000_000u64, any::<u64>()];
    proptest::collection::vec((step, cost), 0..40)
}

proptest! {
    /// What was taken never exceeds what the rate gives, by one token or one nanosecond.
    #[test]
    fn a_limit_is_never_exceeded(config in any_bucket(), walk in any_walk()) {
        let mut limiter = Limiter::new(RateLimit { bytes: Some(config), operations: None }, 0);
        let (mut now, mut taken) = (0u64, 0u128);
        for (step, cost) in walk {
            now = now.saturating_add(step);
            if limiter.take(now, cost).is_ok() {
                taken += u128::from(cost);
            }
            let at_once = u128::from(config.burst) + u128::from(config.first_burst);
            let earned = u128::from(config.per_second) * u128::from(now) / NANOS;
            prop_assert!(taken <= at_once + earned, "{taken} taken by {now}");
        }
    }

    /// A request that waits passes when the wait is over, not a nanosecond before.
    #[test]
    fn a_wait_is_exact_and_ends(config in any_bucket(), walk in any_walk(), cost in any::<u64>()) {
        let mut limiter = Limiter::new(RateLimit { bytes: Some(config), operations: None }, 0);
        let mut now = 0u64;
        for (step, cost) in walk {
            now = now.saturating_add(step);
            let _ = limiter.take(now, cost);
        }
        if let Err(wait) = limiter.take(now, cost) {
            prop_assert!(wait > 0);
            if let Ok(wait) = u64::try_from(wait) && let Some(then) = now.checked_add(wait) {
                let mut early = limiter.clone();
                prop_assert!(early.take(then - 1, cost).is_err());
                prop_assert!(limiter.take(then, cost).is_ok());
            }
        }
    }

    /// Asking in between changes nothing: who asks often is not let through sooner or later.
    #[test]
    fn asking_in_vain_costs_nothing(config in any_bucket(), asks in proptest::collection::vec(0..1000u64, 0..20), cost in 1..u64::MAX) {
        let mut limiter = Limiter::new(RateLimit { bytes: Some(config), operations: None }, 0);
        let _ = limiter.take(0, config.burst.saturating_add(config.first_burst));
        let Err(wait) = limiter.take(0, cost) else { return Ok(()) };
        let mut now = 0;
        for ask in asks {
            now += ask;
            if u128::from(now) < wait {
                prop_assert_eq!(limiter.take(now, cost), Err(wait - u128::from(now)));
            }
        }
    }

    /// More time never makes a request wait.
    #[test]
    fn time_only_helps(config in any_bucket(), walk in any_walk(), cost in any::<u64>(), later in any::<u64>()) {
        let mut limiter = Limiter::new(RateLimit { bytes: Some(config), operations: None }, 0);
        let mut now = 0u64;
        for (step, cost) in walk {
            now = now.saturating_add(step);
            let _ = limiter.take(now, cost);
        }
        let mut other = limiter.clone();
        if limiter.take(now, cost).is_ok() {
            prop_assert!(other.take(now.saturating_add(later), cost).is_ok());
        }
    }
}

#[test]
fn bytes_and_operations_are_taken_together_or_not_at_all() {
    let limit = RateLimit { bytes: Some(bucket(100, 100, 0)), operations: Some(bucket(1, 2, 0)) };
    let mut limiter = Limiter::new(limit, 0);
    assert_eq!(limiter.take(0, 40), Ok(()));
    assert_eq!(limiter.take(0, 40), Ok(()));
    // operations are gone, and 20 bytes are left: they stay
    assert_eq!(limiter.take(0, 20), Err(NANOS));
    assert_eq!(limiter.take(1_000_000_000, 100), Ok(()));
    assert_eq!(limiter.take(2_000_000_000, 100), Ok(()));
}

#[test]
fn the_first_burst_is_there_once() {
    let limit = RateLimit { bytes: Some(bucket(10, 10, 50)), operations: None };
    let mut limiter = Limiter::new(limit, 0);
    assert_eq!(limiter.take(0, 60), Ok(()));
    assert!(limiter.take(0, 1).is_err());
    // after any pause there is one burst
    assert_eq!(limiter.take(u64::MAX / 2, 10), Ok(()));
    assert!(limiter.take(u64::MAX / 2, 1).is_err());
}

#[test]
fn a_request_longer_than_a_burst_saves_up() {
    let limit = RateLimit { bytes: Some(bucket(100, 10, 0)), operations: None };
    let mut limiter = Limiter::new(limit, 0);
    assert_eq!(limiter.take(0, 110), Err(NANOS));
    assert_eq!(limiter.take(1_000_000_000, 110), Ok(()));
    assert_eq!(limiter.take(1_000_000_000, 1), Err(NANOS / 100));
}

#[test]
fn a_gate_without_a_limit_is_open() {
    let mut gate = Gate::new(RateLimit::default()).expect("a timer");
    for _ in 0..1000 {
        assert!(gate.pass(u64::MAX));
    }
    assert!(gate.is_free());
}

#[test]
fn a_gate_tells_when_to_go_on_and_can_be_set_anew() {
    let limit = RateLimit { bytes: None, operations: Some(bucket(50, 1, 0)) };
    let mut gate = Gate::new(limit).expect("a timer");
    assert!(gate.pass(0));
    assert!(!gate.pass(0));
    let mut poll = libc::pollfd { fd: gate.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid for writes.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1, "the timer fires");
    gate.timer_fired();
    assert!(gate.pass(0), "after a fiftieth of a second");
    assert!(!gate.pass(0));
    gate.set(RateLimit::default());
    assert!(gate.pass(0), "the limit is gone");
}

#[test]
fn a_gate_that_is_set_anew_forgets_how_long_the_old_limit_would_have_waited() {
    let mut gate = Gate::new(RateLimit { bytes: None, operations: Some(bucket(1, 1, 0)) }).expect("a timer");
    assert!(gate.pass(0));
    gate.set(RateLimit { bytes: Some(bucket(1, 1, 0)), operations: None });
    assert!(!gate.pass(u64::MAX >> 32), "it would wait for a century");
    gate.set(RateLimit { bytes: None, operations: Some(bucket(50, 1, 0)) });
    assert!(gate.pass(0));
    assert!(!gate.pass(0));
    let mut poll = libc::pollfd { fd: gate.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid for writes.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1, "the timer of the new limit fires");
}

#[test]
fn a_timer_of_before_that_is_told_late_waits_for_nothing() {
    let slow = RateLimit { bytes: None, operations: Some(bucket(1, 1, 0)) };
    let mut gate = Gate::new(slow).expect("a timer");
    assert!(gate.pass(0) && !gate.pass(0));
    gate.set(slow);
    assert!(gate.pass(0) && !gate.pass(0));
    let began = Instant::now();
    gate.timer_fired();
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    assert!(!gate.pass(0), "it still waits");
    let mut poll = libc::pollfd { fd: gate.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid for writes.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1, "and is told when it may go on");
}
