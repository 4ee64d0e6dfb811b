// SPDX-License-Identifier: GPL-2.0

//! Lazy `anon_vma`: the module.
//!
//! Linux gives each VMA that takes an anonymous fault an `anon_vma` and an `anon_vma_chain` of its
//! own, and fork multiplies them. This module is offered that first fault through the hook that
//! the patched kernel calls ([`hooks`]), and decides what happens ([`policy`]).
//!
//! | file | what | raw pointers |
//! |---|---|---|
//! | [`hooks`] | the boundary: everything the kernel calls, everything registered with it | yes, only here |
//! | [`vma`] | views of `vm_area_struct`; the type says which lock is held | behind safe methods |
//! | [`policy`] | what to do with a first anonymous fault | no |
//! | [`stats`] | counters, striped by CPU | no |
//! | `debug` | what the files in debugfs show | no |
//! | [`pure`] | logic without kernel types, shared with the host tests | no |
//!
//! # Lifetime
//!
//! The core calls the hooks inside an SRCU read-side section. Unregistering is the first thing that
//! unloading does, and it waits for those sections, so that no hook runs while the rest of the
//! module is torn down.

use kernel::{
    prelude::*,
    InPlaceModule, //
};

#[cfg(CONFIG_DEBUG_FS)]
mod debug;
mod hooks;
mod policy;
mod pure;
mod stats;
mod vma;

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
    },
}

/// The loaded module.
///
/// # Invariants
///
/// The fields are dropped in the order of their declaration: the hooks are unregistered before
/// anything else goes.
#[pin_data]
struct AnonVmaLazy {
    _hooks: hooks::Registration,
    _sysctl: hooks::SysctlRegistration,
    _debugfs: hooks::DebugfsRegistration,
}

impl InPlaceModule for AnonVmaLazy {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        policy::MODE.set(Mode::from(module_parameters::enabled.value()));
        try_pin_init!(Self {
            // First: it is where the core refuses a module that does not fit.
            // SAFETY: Kept in the module's value, which is dropped before its memory is freed.
            _hooks: unsafe { hooks::Registration::new() }?,
            // SAFETY: As above.
            _sysctl: unsafe { hooks::SysctlRegistration::new() }?,
            // SAFETY: As above; last, since loading must not fail after this.
            _debugfs: unsafe { hooks::DebugfsRegistration::new() },
        })
    }
}
