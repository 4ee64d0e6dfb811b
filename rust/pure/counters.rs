// SPDX-License-Identifier: GPL-2.0

//! What is counted, and what follows from the counts.

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
    /// Of these: a VMA of huge pages, which is never lazy.
    Hugetlb,
    /// Of these: a VMA without anonymous pages of its own, or that may map what is no page.
    Special,
    /// A lazy root was made.
    RootNew,
    /// Of these: by fork, a child of the parent's root.
    RootFork,
    /// A lazy root lost its mm.
    RootDetach,
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
    /// A Detaching VMA became Lazy again, since munmap failed.
    Undone,
    /// A VMA became Unfaulted again.
    Unlinked,
    /// Of these: it was Linked.
    UnlinkedLinked,
    /// Of these: it was Detaching.
    UnlinkedDetaching,
    /// Fork copied a VMA that has a lazy root.
    Fork,
    /// Of these: linked to the root of the parent, since too many ancestors have no mm.
    TooDeep,
    /// A walk began at a lazy root.
    Walk,
    /// Of these: it came to its end, with nothing left to visit.
    WalkEnd,
    /// Of these: it stopped between two roots, since its caller had proof that all is done.
    WalkStop,
    /// A walk went on to the root of a child.
    Descend,
    /// Of these: the lock was contended, and the walk may skip it.
    Skip,
    /// A walk found a VMA without a lookup in the VMA tree, as the one that was found last.
    Hint,
    /// A walk found a VMA by a lookup in the VMA tree.
    Lookup,
    /// A walk found a VMA in a root's interval tree, or on its detaching list.
    Listed,
    /// A lookup in a VMA tree was repeated, since the VMA had changed.
    Retry,
    /// A root or a link could not be had, and the operation failed.
    NoMemory,
    /// Something that cannot be was refused; the first time it is in the log.
    Refused,
}

impl Event {
    /// Every event, in the order in which they are shown.
    pub(crate) const ALL: [Event; 31] = [
        Event::FirstFault,
        Event::ModeOff,
        Event::Raced,
        Event::Unnatural,
        Event::Hugetlb,
        Event::Special,
        Event::RootNew,
        Event::RootFork,
        Event::RootDetach,
        Event::RootFree,
        Event::Lazy,
        Event::Linked,
        Event::Foreign,
        Event::Detaching,
        Event::Undone,
        Event::Unlinked,
        Event::UnlinkedLinked,
        Event::UnlinkedDetaching,
        Event::Fork,
        Event::TooDeep,
        Event::Walk,
        Event::WalkEnd,
        Event::WalkStop,
        Event::Descend,
        Event::Skip,
        Event::Hint,
        Event::Lookup,
        Event::Listed,
        Event::Retry,
        Event::NoMemory,
        Event::Refused,
    ];

    /// The name under which debugfs shows the event.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Event::FirstFault => "first_fault",
            Event::ModeOff => "first_fault_off",
            Event::Raced => "first_fault_raced",
            Event::Unnatural => "first_fault_unnatural",
            Event::Hugetlb => "first_fault_hugetlb",
            Event::Special => "first_fault_special",
            Event::RootNew => "root_new",
            Event::RootFork => "root_fork",
            Event::RootDetach => "root_detach",
            Event::RootFree => "root_free",
            Event::Lazy => "vma_lazy",
            Event::Linked => "vma_linked",
            Event::Foreign => "vma_linked_foreign",
            Event::Detaching => "vma_detaching",
            Event::Undone => "vma_undone",
            Event::Unlinked => "vma_unlinked",
            Event::UnlinkedLinked => "vma_unlinked_linked",
            Event::UnlinkedDetaching => "vma_unlinked_detaching",
            Event::Fork => "fork_vma",
            Event::TooDeep => "fork_too_deep",
            Event::Walk => "walk",
            Event::WalkEnd => "walk_end",
            Event::WalkStop => "walk_stop",
            Event::Descend => "walk_descend",
            Event::Skip => "walk_skip",
            Event::Hint => "walk_hint",
            Event::Lookup => "walk_lookup",
            Event::Listed => "walk_listed",
            Event::Retry => "walk_retry",
            Event::NoMemory => "no_memory",
            Event::Refused => "refused",
        }
    }
}

/// A figure that follows from counts: what there is now, or what is left of a total.
///
/// Nothing is counted for it; the sums are taken when it is read. A reader that races with events
/// may be off by those, and sees 0 where it would see less.
pub(crate) struct Gauge {
    /// The name under which debugfs shows it.
    pub(crate) name: &'static str,
    plus: &'static [Event],
    minus: &'static [Event],
}

/// Every gauge, in the order in which they are shown, behind the events.
pub(crate) const GAUGES: [Gauge; 8] = [
    // Lazy roots that are not freed yet.
    Gauge {
        name: "roots",
        plus: &[Event::RootNew],
        minus: &[Event::RootFree],
    },
    // Of these: they have no mm any more.
    Gauge {
        name: "roots_orphaned",
        plus: &[Event::RootDetach],
        minus: &[Event::RootFree],
    },
    Gauge {
        name: "vmas_lazy",
        plus: &[
            Event::Lazy,
            Event::Undone,
            Event::UnlinkedLinked,
            Event::UnlinkedDetaching,
        ],
        minus: &[Event::Detaching, Event::Unlinked],
    },
    // Each of these has one `anon_vma_chain`.
    Gauge {
        name: "vmas_linked",
        plus: &[Event::Linked],
        minus: &[Event::UnlinkedLinked],
    },
    Gauge {
        name: "vmas_detaching",
        plus: &[Event::Detaching],
        minus: &[Event::Undone, Event::UnlinkedDetaching],
    },
    // VMAs that all walks have found. Not an event of its own: each counter is some 15 instructions
    // on arm64, and a walk of a page that many children share finds one VMA after the other.
    Gauge {
        name: "walk_vma",
        plus: &[Event::Hint, Event::Lookup, Event::Listed],
        minus: &[],
    },
    // Visits of all walks: divided by `walk`, those of one.
    Gauge {
        name: "walk_visits",
        plus: &[Event::Walk, Event::Descend],
        minus: &[Event::Skip],
    },
    // Walks whose caller had enough while VMAs were still offered.
    Gauge {
        name: "walk_left",
        plus: &[Event::Walk],
        minus: &[Event::WalkEnd, Event::WalkStop],
    },
];

impl Gauge {
    /// The value, from the counts of events. No lock, any context, if `count` needs none.
    pub(crate) fn value(&self, count: impl Fn(Event) -> u64) -> u64 {
        let sum = |events: &[Event]| {
            events
                .iter()
                .fold(0, |sum: u64, &e| sum.wrapping_add(count(e)))
        };
        // What takes away is read first: an event that follows another one is not seen before it.
        let minus = sum(self.minus);
        sum(self.plus).saturating_sub(minus)
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(anon_vma_lazy_counters))]
mod tests {
    use super::*;
    use core::cell::Cell;

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
            assert!(GAUGES.iter().all(|gauge| gauge.name != event.name()));
        }
    }

    #[test]
    fn gauges_follow_a_vma_and_a_root() {
        let counts = [const { Cell::new(0) }; Event::ALL.len()];
        let value = |name| {
            let gauge = GAUGES.iter().find(|gauge| gauge.name == name);
            gauge.map(|gauge| gauge.value(|event| counts[event as usize].get()))
        };
        let add = |events: &[Event]| {
            for &event in events {
                let count: &Cell<u64> = &counts[event as usize];
                count.set(count.get() + 1);
            }
        };
        let vmas = || {
            (
                value("vmas_lazy"),
                value("vmas_linked"),
                value("vmas_detaching"),
            )
        };

        add(&[Event::RootNew, Event::Lazy, Event::Lazy, Event::Linked]);
        assert_eq!(vmas(), (Some(2), Some(1), Some(0)));
        add(&[Event::Detaching]);
        assert_eq!(vmas(), (Some(1), Some(1), Some(1)));
        add(&[Event::Undone]);
        assert_eq!(vmas(), (Some(2), Some(1), Some(0)));
        add(&[Event::Detaching, Event::UnlinkedDetaching, Event::Unlinked]);
        assert_eq!(vmas(), (Some(1), Some(1), Some(0)));
        add(&[Event::Unlinked, Event::UnlinkedLinked, Event::Unlinked]);
        assert_eq!(vmas(), (Some(0), Some(0), Some(0)));

        assert_eq!(
            (value("roots"), value("roots_orphaned")),
            (Some(1), Some(0))
        );
        add(&[Event::RootDetach]);
        assert_eq!(
            (value("roots"), value("roots_orphaned")),
            (Some(1), Some(1))
        );
        add(&[Event::RootFree]);
        assert_eq!(
            (value("roots"), value("roots_orphaned")),
            (Some(0), Some(0))
        );

        let visits = value("walk_visits");
        add(&[Event::Walk, Event::Descend, Event::Descend, Event::Skip]);
        assert_eq!(value("walk_visits"), visits.map(|visits| visits + 2));
        assert_eq!(value("walk_left"), Some(1));
        add(&[Event::WalkEnd]);
        assert_eq!(value("walk_left"), Some(0));
    }
}
