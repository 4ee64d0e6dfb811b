// SPDX-License-Identifier: GPL-2.0

//! What a VMA's first anonymous fault is, seen from its fields.

use super::{
    counters::Event,
    mode::Mode, //
};

/// The facts about a VMA on which the decision rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `vma->anon_vma` is set: another thread was faster.
    pub(crate) prepared: bool,
    /// The VMA's anonymous page offset is its address, see [`is_natural`].
    pub(crate) natural: bool,
}

/// Whether a VMA is *natural*: its anonymous page offset is its address, in pages.
///
/// `anon_pgoff` is in pages, `start` in bytes. Only a natural VMA can be found by address alone.
#[inline]
pub(crate) fn is_natural(anon_pgoff: usize, start: usize, page_shift: u32) -> bool {
    anon_pgoff == start >> page_shift
}

/// What the fault is counted as, beside [`Event::FirstFault`]: the first reason, if any, for which
/// the VMA could not become Lazy.
#[inline]
pub(crate) fn classify(mode: Mode, facts: Facts) -> Option<Event> {
    if facts.prepared {
        Some(Event::Raced)
    } else if mode == Mode::Off {
        Some(Event::ModeOff)
    } else if !facts.natural {
        Some(Event::Unnatural)
    } else {
        None
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(anon_vma_lazy_first_fault))]
mod tests {
    use super::*;

    #[test]
    fn natural_compares_pages_with_bytes() {
        assert!(is_natural(0x7f123, 0x7f12_3000, 12));
        assert!(!is_natural(0x7f124, 0x7f12_3000, 12));
        assert!(is_natural(0, 0, 12));
        assert!(is_natural(0x7f12, 0x7f12_0000, 16));
        // The last page of the address space must not wrap.
        assert!(is_natural(usize::MAX >> 12, usize::MAX & !0xfff, 12));
    }

    #[test]
    fn one_reason_is_given_the_strongest_first() {
        let facts = |prepared, natural| Facts { prepared, natural };

        assert_eq!(classify(Mode::On, facts(false, true)), None);
        assert_eq!(
            classify(Mode::On, facts(false, false)),
            Some(Event::Unnatural)
        );
        for natural in [false, true] {
            assert_eq!(
                classify(Mode::Off, facts(false, natural)),
                Some(Event::ModeOff)
            );
            for mode in [Mode::Off, Mode::On] {
                assert_eq!(classify(mode, facts(true, natural)), Some(Event::Raced));
            }
        }
    }
}
