// SPDX-License-Identifier: GPL-2.0

//! Where a VMA's folios are found.

/// Whether a VMA is *natural*: its anonymous page offset is its address, in pages.
///
/// `anon_pgoff` is in pages, `start` in bytes. Only a natural VMA can be found by address alone.
#[inline]
pub(crate) fn is_natural(anon_pgoff: usize, start: usize, page_shift: u32) -> bool {
    anon_pgoff == start >> page_shift
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(anon_vma_lazy_natural))]
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
}
