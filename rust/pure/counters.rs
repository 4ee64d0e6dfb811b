// SPDX-License-Identifier: GPL-2.0

//! Event counters whose writers do not share a cache line.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Event {
    /// A first anonymous fault that the core offered.
    FirstFault,
    /// Of these: the mode was off, and the mm had no lazy root.
    ModeOff,
    /// Of these: another thread had prepared the VMA by then.
    Raced,
    /// Of these: the VMA was not natural, or is about to move.
    Unnatural,
    /// A lazy root was made.
    RootNew,
    /// A lazy root was freed.
    RootFree,
    /// A VMA became Lazy.
    Lazy,
    /// A VMA became Linked.
    Linked,
    /// Of these: to the root of another mm.
    Foreign,
    /// A VMA became Detaching.
    Detaching,
    /// A VMA became Unfaulted again.
    Unlinked,
    /// Fork made no root, since too many ancestors have no mm.
    TooDeep,
    /// A walk went on to the root of a child.
    Descend,
    /// Of these: the lock was contended, and the walk may skip it.
    Skip,
    /// A lookup in a VMA tree was repeated, since the VMA had changed.
    Retry,
}

impl Event {
    /// Every event, in the order in which they are shown.
    pub(crate) const ALL: [Event; 15] = [
        Event::FirstFault,
        Event::ModeOff,
        Event::Raced,
        Event::Unnatural,
        Event::RootNew,
        Event::RootFree,
        Event::Lazy,
        Event::Linked,
        Event::Foreign,
        Event::Detaching,
        Event::Unlinked,
        Event::TooDeep,
        Event::Descend,
        Event::Skip,
        Event::Retry,
    ];

    /// The name under which debugfs shows the event.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Event::FirstFault => "first_fault",
            Event::ModeOff => "first_fault_off",
            Event::Raced => "first_fault_raced",
            Event::Unnatural => "first_fault_unnatural",
            Event::RootNew => "root_new",
            Event::RootFree => "root_free",
            Event::Lazy => "vma_lazy",
            Event::Linked => "vma_linked",
            Event::Foreign => "vma_linked_foreign",
            Event::Detaching => "vma_detaching",
            Event::Unlinked => "vma_unlinked",
            Event::TooDeep => "fork_too_deep",
            Event::Descend => "walk_descend",
            Event::Skip => "walk_skip",
            Event::Retry => "walk_retry",
        }
    }
}

/// Number of stripes. CPUs beyond it share them; the sums stay exact.
const STRIPES: usize = 64;

/// The counts of one CPU, apart from those of others (128 bytes: lines are fetched in pairs).
#[repr(align(128))]
struct Stripe([Atomic<u64>; Event::ALL.len()]);

/// A set of counters, one for each [`Event`]: added to in any context, summed when read.
pub(crate) struct Counters([Stripe; STRIPES]);

impl Counters {
    /// Makes a set of zeroes.
    pub(crate) const fn new() -> Self {
        Self([const { Stripe([const { Atomic::new(0) }; Event::ALL.len()]) }; STRIPES])
    }

    /// Counts one event on `cpu`. Any number will do: it only picks the stripe.
    #[inline]
    pub(crate) fn add(&self, cpu: usize, event: Event) {
        // Both indexes are in range by construction, so that no bounds check remains.
        self.0[cpu % STRIPES].0[event as usize].fetch_add(1, Relaxed);
    }

    /// The number of these events. Those that happen meanwhile may or may not be counted.
    pub(crate) fn sum(&self, event: Event) -> u64 {
        self.0.iter().fold(0, |sum, stripe| {
            sum.wrapping_add(stripe.0[event as usize].load(Relaxed))
        })
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(anon_vma_lazy_counters))]
mod tests {
    use super::*;

    static COUNTERS: Counters = Counters::new();

    #[test]
    fn sums_are_exact_beyond_the_stripes() {
        let before = COUNTERS.sum(Event::FirstFault);
        for cpu in 0..3 * STRIPES {
            COUNTERS.add(cpu, Event::FirstFault);
        }
        COUNTERS.add(usize::MAX, Event::FirstFault);
        assert_eq!(
            COUNTERS.sum(Event::FirstFault) - before,
            3 * STRIPES as u64 + 1
        );
    }

    #[test]
    fn events_do_not_mix() {
        let off = COUNTERS.sum(Event::ModeOff);
        let raced = COUNTERS.sum(Event::Raced);
        COUNTERS.add(7, Event::Raced);
        assert_eq!(COUNTERS.sum(Event::ModeOff), off);
        assert_eq!(COUNTERS.sum(Event::Raced), raced + 1);
    }

    #[test]
    fn all_lists_each_event_once_in_order() {
        for (index, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index);
            // Names are the interface of debugfs: one word, used once.
            assert!(event
                .name()
                .bytes()
                .all(|c| c == b'_' || c.is_ascii_lowercase()));
            assert!(Event::ALL
                .into_iter()
                .all(|other| other == event || other.name() != event.name()));
        }
    }
}
