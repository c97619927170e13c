//! Event index and interrupt suppression, in both directions, and chains given back as one.

use super::*;
use crate::devices::virtio::driver::{Ring, memory_with_hole};
use proptest::prelude::*;

const SIZE: u16 = 16;

fn ring(event_idx: bool) -> (Ring, VirtQueue) {
    let ring = Ring::new(&memory_with_hole(), 0, SIZE);
    let mut queue = ring.queue();
    queue.set_features(event_idx, true);
    (ring, queue)
}

/// One request and its end.
fn turn(ring: &mut Ring, queue: &mut VirtQueue) {
    ring.send(&[(0x4_0000, 8, true)]);
    let chain = queue.pop(&ring.memory).expect("right").expect("one");
    queue.push_used(&ring.memory, chain.head, 0).expect("in memory");
}

#[test]
fn without_an_event_index_a_flag_says_whether_the_driver_wants_interrupts() {
    let (mut ring, mut queue) = ring(false);
    let memory = ring.memory.clone();
    assert!(!queue.needs_interrupt(&memory).expect("in memory"), "nothing was given back");
    turn(&mut ring, &mut queue);
    assert!(queue.needs_interrupt(&memory).expect("in memory"));
    ring.set_no_interrupt(1);
    turn(&mut ring, &mut queue);
    assert!(!queue.needs_interrupt(&memory).expect("in memory"));
    ring.set_no_interrupt(0);
    turn(&mut ring, &mut queue);
    assert!(queue.needs_interrupt(&memory).expect("in memory"));
}

#[test]
fn without_an_event_index_a_flag_says_whether_the_device_wants_kicks() {
    let (mut ring, mut queue) = ring(false);
    let memory = ring.memory.clone();
    queue.disable_kicks(&memory).expect("in memory");
    assert_eq!(ring.used_flags(), 1);
    assert!(!queue.enable_kicks(&memory).expect("in memory"));
    assert_eq!(ring.used_flags(), 0);
    ring.send(&[(0x4_0000, 8, true)]);
    assert!(queue.enable_kicks(&memory).expect("in memory"), "what came in between is told");
}

#[test]
fn with_an_event_index_the_driver_says_which_request_it_waits_for() {
    let (mut ring, mut queue) = ring(true);
    let memory = ring.memory.clone();
    // across the end of sixteen bits
    ring.set_available(u16::MAX - 2);
    queue.ring_mut().set_next_avail(u16::MAX - 2);
    queue.ring_mut().set_next_used(u16::MAX - 2);
    queue.asked_at = u16::MAX - 2;
    ring.set_used_event(1);
    for done in 1..=10 {
        turn(&mut ring, &mut queue);
        let wanted = queue.needs_interrupt(&memory).expect("in memory");
        assert_eq!(wanted, done == 5, "request {done}");
    }
    ring.set_used_event(9);
    for _ in 0..5 {
        turn(&mut ring, &mut queue);
    }
    assert!(queue.needs_interrupt(&memory).expect("in memory"), "passed within a batch");
}

#[test]
fn a_restored_queue_goes_on_with_the_question_where_it_was_saved() {
    let (mut ring, mut old) = ring(true);
    let memory = ring.memory.clone();
    ring.set_available(u16::MAX - 2);
    old.ring_mut().set_next_avail(u16::MAX - 2);
    old.ring_mut().set_next_used(u16::MAX - 2);
    ring.set_used_event(u16::MAX - 1);
    let mut new = ring.queue();
    new.restore(Queue::try_from(old.ring().state()).expect("a sound ring"));
    // the first batch after the restore passes both the driver's mark and the end of sixteen bits
    for _ in 0..6 {
        turn(&mut ring, &mut new);
    }
    assert!(new.needs_interrupt(&memory).expect("in memory"));
}

#[test]
fn with_an_event_index_the_device_says_which_request_is_to_be_kicked() {
    let (mut ring, mut queue) = ring(true);
    let memory = ring.memory.clone();
    queue.disable_kicks(&memory).expect("in memory");
    for _ in 0..3 {
        turn(&mut ring, &mut queue);
    }
    assert_eq!(ring.avail_event(), 0, "while it looks anyway, no kick is asked for");
    assert!(!queue.enable_kicks(&memory).expect("in memory"));
    assert_eq!(ring.avail_event(), 3);
}

#[test]
fn chains_given_back_as_one_are_there_in_order() {
    let (mut ring, mut queue) = ring(true);
    let memory = ring.memory.clone();
    ring.set_used_event(2);
    let heads: Vec<(u16, u32)> = (0..5)
        .map(|index| {
            ring.send(&[(0x4_0000, 8, true)]);
            (queue.pop(&memory).expect("right").expect("one").head, 100 + index)
        })
        .collect();
    queue.push_used_together(&memory, &heads).expect("in memory");
    assert!(queue.needs_interrupt(&memory).expect("in memory"), "the third was waited for");
    let used: Vec<(u16, u32)> = ring.take_used().iter().map(|(head, bytes)| (*head as u16, *bytes)).collect();
    assert_eq!(used, heads);
    queue.push_used_together(&memory, &[]).expect("nothing is no fault");
}

#[test]
fn what_is_put_back_comes_again() {
    let (mut ring, mut queue) = ring(false);
    let memory = ring.memory.clone();
    let heads: Vec<u16> = (0..4).map(|_| ring.send(&[(0x4_0000, 8, true)])).collect();
    let mut pop = || queue.pop(&memory).expect("right").map(|chain| chain.head);
    let first: Vec<u16> = std::iter::from_fn(&mut pop).collect();
    assert_eq!(first, heads);
    queue.undo_pops(3);
    let mut pop = || queue.pop(&memory).expect("right").map(|chain| chain.head);
    assert_eq!(std::iter::from_fn(&mut pop).collect::<Vec<_>>(), heads[1..]);
}

proptest! {
    /// The short form says the same as walking from one index to the other.
    #[test]
    fn passing_an_event_is_walking_over_it(event in any::<u16>(), before in any::<u16>(), steps in 0..5000u16) {
        let now = before.wrapping_add(steps);
        let walked = (0..steps).any(|step| before.wrapping_add(step) == event);
        prop_assert_eq!(passes(event, before, now), walked);
    }
}
