// SPDX-License-Identifier: GPL-2.0

//! Views of `vm_area_struct`. The type says which lock is held, and so what may be read.

use crate::pure::first_fault::is_natural;
use core::ptr;
use kernel::{
    bindings,
    page::PAGE_SHIFT,
    types::Opaque, //
};

/// A VMA whose mm's `mmap_lock` is held, for reading or writing.
///
/// # Invariants
///
/// The VMA is in its mm's VMA tree, and the `mmap_lock` is held for as long as the reference lives:
/// the VMA's range and its anonymous page offset do not change. `anon_vma` may be set by another
/// thread meanwhile (from NULL, once), since page faults hold the lock for reading.
#[repr(transparent)]
pub(crate) struct MmapLocked {
    vma: Opaque<bindings::vm_area_struct>,
}

impl MmapLocked {
    /// Makes the view.
    ///
    /// # Safety
    ///
    /// For the whole of `'a`, `vma` must point to a VMA that is in its mm's VMA tree, and that mm's
    /// `mmap_lock` must be held.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(vma: *mut bindings::vm_area_struct) -> &'a Self {
        // SAFETY: `Self` is a transparent wrapper, and the caller keeps `vma` valid for `'a`.
        // INVARIANT: The caller holds `mmap_lock` and says that the VMA is in the tree.
        unsafe { &*vma.cast() }
    }

    /// Whether the VMA has an `anon_vma` already.
    #[inline]
    pub(crate) fn has_anon_vma(&self) -> bool {
        // SAFETY: By the type invariant the VMA is valid. Another thread may set the field: the
        // load is volatile (the kernel's `READ_ONCE`), and the pointer is only compared.
        !unsafe { ptr::read_volatile(&raw const (*self.vma.get()).anon_vma) }.is_null()
    }

    /// Whether the VMA's anonymous page offset is its address.
    #[inline]
    pub(crate) fn is_natural(&self) -> bool {
        // SAFETY: By the type invariant the VMA is valid, and `mmap_lock` keeps both fields as they
        // are.
        let (anon_pgoff, start) = unsafe {
            let vma = self.vma.get();
            (
                bindings::vma_start_anon_pgoff(vma),
                (*vma).__bindgen_anon_1.__bindgen_anon_1.vm_start,
            )
        };
        is_natural(anon_pgoff, start, PAGE_SHIFT as u32)
    }
}
