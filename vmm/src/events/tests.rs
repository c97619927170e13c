//! Events at the rate of a guest that does nothing else.

use super::*;

const STORM: u64 = 100_000;

fn is_readable(fd: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

#[test]
fn a_storm_is_one_event_a_second_and_its_count_is_exact() {
    let events = Events::default();
    let mut teller = Teller::new(&events).expect("descriptors");
    let source = events.source("disk0");
    let began = Instant::now();
    let mut formatted = 0;
    for _ in 0..STORM {
        source.report(EventKind::GuestFault, || {
            formatted += 1;
            "a bad request".into()
        });
    }
    assert!(is_readable(&teller));
    let told = teller.tell(&events, began);
    assert_eq!(told.len(), 1);
    let (event, line) = &told[0];
    assert_eq!((event.kind, event.device.as_str(), event.count), (EventKind::GuestFault, "disk0", STORM));
    let line = line.as_deref().expect("the first is logged");
    assert_eq!(line, "guest_fault of disk0: a bad request, and 99999 more like it");
    assert!(!is_readable(&teller), "nothing is left to do");

    // held back, then told once with the sum
    for millis in 1..1000 {
        source.report(EventKind::GuestFault, || "again".into());
        assert!(teller.tell(&events, began + Duration::from_millis(millis)).is_empty());
    }
    let told = teller.tell(&events, began + TELL_INTERVAL);
    assert_eq!(told.iter().map(|(event, _)| event.count).collect::<Vec<_>>(), [STORM + 999]);
    assert_eq!(told[0].1, None, "the log rests longer");
    source.report(EventKind::GuestFault, || "later".into());
    let told = teller.tell(&events, began + LOG_INTERVAL);
    assert_eq!(told[0].1.as_deref(), Some("guest_fault of disk0: later, and 999 more like it"));
    assert_eq!(formatted, 1, "a storm formats one message");
}

#[test]
fn one_source_does_not_hide_another() {
    let events = Events::default();
    let mut teller = Teller::new(&events).expect("descriptors");
    let now = Instant::now();
    events.source("disk0").report(EventKind::GuestFault, || "a".into());
    assert_eq!(teller.tell(&events, now).len(), 1);
    events.source("disk0").report(EventKind::GuestFault, || "b".into());
    events.source("disk0").report(EventKind::DeviceNeedsReset, || "c".into());
    events.source("vsock").report(EventKind::GuestFault, || "d".into());
    let told: Vec<_> = teller.tell(&events, now).into_iter().map(|(event, _)| event.message).collect();
    assert_eq!(told, ["c", "d"]);
    let counts: Vec<_> = events.counts().into_iter().map(|c| (c.device, c.count)).collect();
    assert_eq!(counts, [("disk0".into(), 2), ("disk0".into(), 1), ("vsock".into(), 1)]);
    assert_eq!(events.latest().len(), 3);
}

#[test]
fn the_timer_runs_only_while_something_is_held_back() {
    let events = Events::default();
    let mut teller = Teller::new(&events).expect("descriptors");
    let now = Instant::now();
    let source = events.source("vsock");
    source.report(EventKind::Limited, || "full".into());
    teller.tell(&events, now);
    assert!(!teller.timer_runs);
    source.report(EventKind::Limited, || "full".into());
    teller.tell(&events, now);
    assert!(teller.timer_runs);
    teller.tell(&events, now + TELL_INTERVAL);
    assert!(!teller.timer_runs);
    source.report_many(EventKind::Limited, 0, || "nothing".into());
    assert!(!is_readable(&teller));
}

#[test]
fn sources_are_bounded() {
    let events = Events::default();
    for index in 0..10 * MAX_SOURCES {
        events.source(&format!("device{index}")).report(EventKind::GuestFault, || "x".into());
    }
    assert_eq!(events.counts().len(), MAX_SOURCES);
    assert_eq!(events.counts().iter().map(|count| count.count).sum::<u64>(), 10 * MAX_SOURCES as u64);
}
