// SPDX-License-Identifier: GPL-2.0

//! What becomes of a VMA's first anonymous fault.

use crate::{
    pure::{
        counters::Event,
        first_fault::{
            classify,
            Facts, //
        },
        mode::ModeCell, //
    },
    stats,
    vma::MmapLocked, //
};
#[cfg(CONFIG_KUNIT)]
use kernel::time::{
    delay::fsleep,
    Delta, //
};

/// The mode that `vm.anon_vma_lazy` shows and sets.
pub(crate) static MODE: ModeCell = ModeCell::new();

/// What the core is to do with a first anonymous fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// What Linux does without a module: give the VMA an `anon_vma` of its own.
    Regular,
}

/// Decides about the first anonymous fault of `vma`, and counts it.
///
/// Lazy roots are not implemented yet: each VMA takes the ordinary path, and the counters tell how
/// many of them could have been lazy.
#[inline]
pub(crate) fn first_fault(vma: &MmapLocked) -> Verdict {
    stats::count(Event::FirstFault);
    let facts = Facts {
        prepared: vma.has_anon_vma(),
        natural: vma.is_natural(),
    };
    if let Some(event) = classify(MODE.get(), facts) {
        stats::count(event);
    }
    #[cfg(CONFIG_KUNIT)]
    stall();
    Verdict::Regular
}

/// Sleeps for `test_delay_ms`, so that a test can unload the module while a hook runs.
///
/// Hooks may sleep; `mmap_lock` is held meanwhile.
#[cfg(CONFIG_KUNIT)]
fn stall() {
    let delay = crate::module_parameters::test_delay_ms.value();
    if delay != 0 {
        fsleep(Delta::from_millis(delay.into()));
    }
}
