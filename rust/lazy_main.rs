// SPDX-License-Identifier: GPL-2.0

//! Lazy `anon_vma`: the module.
//!
//! Linux gives each VMA that takes an anonymous fault an `anon_vma` and an `anon_vma_chain` of its
//! own, and fork multiplies them. This module gives an mm one `anon_vma`, its lazy root, which all
//! of its VMAs share. The patched kernel calls it through operations ([`hooks`]) where a VMA is
//! prepared, copied or unlinked ([`policy`]), and where the VMAs of a folio are looked for
//! ([`walk`]).
//!
//! | file | what | raw pointers |
//! |---|---|---|
//! | [`hooks`] | the boundary: everything the kernel calls, everything registered with it | yes, only here |
//! | [`vma`] | views of `vm_area_struct`; the type says which lock is held, or the state | behind safe methods |
//! | [`root`] | the lazy root: lock guards, references, children, its slab cache | behind safe methods |
//! | [`walk`] | the VMAs that may map a folio | behind safe methods |
//! | [`policy`] | what becomes of a VMA | no |
//! | [`stats`] | counters, striped by CPU | no |
//! | [`trace`] | tracepoints, defined in C | no |
//! | `debug` | what the files in debugfs show | no |
//! | [`who`] | who maps a page: for other modules | no |
//! | [`shim`] | the module's own C, `rust/shim.c` | behind safe methods |
//! | [`pure`] | logic without kernel types, shared with the host tests | no |
//!
//! # States of a VMA
//!
//! ```text
//!                first fault, or a copy that is natural
//!   Unfaulted ------------------------------------------> Lazy
//!     |    ^                                              |  ^
//!     |    |  unlink (from each of the three)      munmap |  | munmap failed
//!     |    |                                              v  |
//!     |    +---------------------------------------- Detaching
//!     |
//!     | the same, not natural; moved by mremap; of a foreign root
//!     +-------------------------------------------------> Linked
//!
//!   Regular: an ordinary anon_vma. Never from or to Lazy, Linked, Detaching.
//! ```
//!
//! [`pure::state`] decides, [`vma::Vma`] has the transitions as methods, [`trace::lazy_vma`] shows
//! them.
//!
//! # Locks
//!
//! | what | read under | written under |
//! |---|---|---|
//! | `mm->anon_vma_lazy` | nothing: set once | `mmap_lock` and `page_table_lock`; cleared by `exit_mmap()` |
//! | `vma->anon_vma`, to Lazy | nothing: a walk validates it | a copy: `mmap_lock` for writing; a fault: `mmap_lock` and `page_table_lock` |
//! | `vma->anon_vma`, to Linked | the root's rwsem, or `mmap_lock` | `mmap_lock` and the root's rwsem for writing; a fault `page_table_lock`, too |
//! | `vma->anon_vma`, to NULL | the root's rwsem, or `mmap_lock` | `mmap_lock` for writing, or the VMA is out of the tree; and the root's rwsem for writing, except for a Lazy VMA of a detached root |
//! | range and offset of a VMA | the root's rwsem, or `mmap_lock` | both, for writing |
//! | interval tree, detaching list, `Root.mm` | the root's rwsem | the root's rwsem, for writing |
//! | `Root.hint` | the root's rwsem | walks, under it; cleared under it for writing |
//! | list of children | its spinlock, a leaf | the same |
//!
//! Order: `mmap_lock`, folio lock, root, page table locks. A walk holds one root at a time, and
//! the first one beside it where a huge page is split; nothing is
//! allocated under one. `Documentation/locking.rst` has the whole of it, and the argument that no
//! mapping is missed.
//!
//! # Lifetime
//!
//! Each root holds a module reference, which the core drops after the root was freed: while there
//! is lazy state the module cannot be unloaded, and an operation that is given a root is safe to run.
//! Only a first fault in an mm without one has nothing to rely on: the core calls that inside an SRCU
//! read-side section. Unregistering is the first thing that unloading does, and it waits for those.

// What counters, names and relatives are for is debugfs alone.
#![cfg_attr(not(CONFIG_DEBUG_FS), allow(dead_code))]

use kernel::{
    prelude::*,
    InPlaceModule, //
};

#[cfg(CONFIG_DEBUG_FS)]
mod debug;
mod hooks;
mod policy;
mod pure;
mod report;
mod root;
mod shim;
mod stats;
mod trace;
mod vma;
mod walk;
mod who;

use pure::mode::Mode;

module! {
    type: AnonVmaLazy,
    name: "anon_vma_lazy",
    authors: ["anon_vma_lazy maintainers"],
    description: "Lazy anon_vma: one per mm, made when needed (needs a kernel with CONFIG_ANON_VMA_LAZY)",
    license: "GPL",
    params: {
        enabled: bool {
            default: true,
            description: "First value of the sysctl vm.anon_vma_lazy (default: 1)",
        },
        test_delay_ms: u16 {
            default: 0,
            description: "For tests, with CONFIG_KUNIT: sleep so long in each first fault (default: 0)",
        },
        test_pin_ms: u16 {
            default: 0,
            description: "For tests, with CONFIG_KUNIT: rmap walks sleep so long between the pin on a root and its lock (default: 0)",
        },
        test_visit_ms: u16 {
            default: 0,
            description: "For tests, with CONFIG_KUNIT: rmap walks sleep so long behind the visit of a root, with its lock held (default: 0)",
        },
        test_break: u16 {
            default: 0,
            description: "For tests, with CONFIG_KUNIT: 1 makes rmap walks miss all children, 2 gives VMAs of a child the root of its parent, which cannot be (default: 0)",
        },
    },
}

/// Sleeps for so many milliseconds, in which a test has something else happen. May sleep.
#[cfg(CONFIG_KUNIT)]
fn stall(delay: u16) {
    use kernel::time::{
        delay::fsleep,
        Delta, //
    };

    if delay != 0 {
        fsleep(Delta::from_millis(delay.into()));
    }
}

/// The loaded module.
///
/// # Invariants
///
/// The fields are dropped in the order of their declaration: the hooks are unregistered before
/// anything else goes, and the cache of the roots is the last.
#[pin_data]
struct AnonVmaLazy {
    _hooks: hooks::Registration,
    _sysctl: hooks::SysctlRegistration,
    _debugfs: hooks::DebugfsRegistration,
    _cache: root::Cache,
}

impl InPlaceModule for AnonVmaLazy {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: This is where the module begins.
        unsafe { shim::init() };
        policy::MODE.set(Mode::from(module_parameters::enabled.value()));
        try_pin_init!(Self {
            // SAFETY: Kept in the module's value, which is dropped before its memory is freed; the
            // module is not unloaded while there are roots.
            _cache: unsafe { root::Cache::new() }?,
            // SAFETY: Kept in the module's value, as above.
            _sysctl: unsafe { hooks::SysctlRegistration::new() }?,
            // The last that can fail: from here on there may be roots.
            // SAFETY: As above.
            _hooks: unsafe { hooks::Registration::new() }?,
            // SAFETY: As above; last, since loading must not fail after this.
            _debugfs: unsafe { hooks::DebugfsRegistration::new() },
        })
    }
}
