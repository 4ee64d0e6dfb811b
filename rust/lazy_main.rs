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
//! The core calls the hooks inside an SRCU read-side section. Unregistering, the first thing that
//! unloading does, waits for those, so that no hook runs while the rest of the module is torn down.

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

use pure::{
    counters::Event,
    mode::Mode, //
};

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
    },
}

/// The loaded module.
///
/// # Invariants
///
/// The fields are dropped in the order of their declaration. Hooks are unregistered before anything
/// that they use goes; the sysctl goes before the mode that it sets.
#[pin_data(PinnedDrop)]
struct AnonVmaLazy {
    _hooks: hooks::Registration,
    _sysctl: hooks::SysctlRegistration,
    _debugfs: hooks::DebugfsRegistration,
}

impl InPlaceModule for AnonVmaLazy {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        policy::MODE.set(Mode::from(module_parameters::enabled.value()));
        try_pin_init!(Self {
            _debugfs: hooks::DebugfsRegistration::new(),
            _sysctl: hooks::SysctlRegistration::new()?,
            // Last: from here on the kernel calls us.
            _hooks: hooks::Registration::new()?,
        })
    }
}

#[pinned_drop]
impl PinnedDrop for AnonVmaLazy {
    fn drop(self: Pin<&mut Self>) {
        pr_info!(
            "unloading after {} first anonymous faults\n",
            stats::sum(Event::FirstFault)
        );
    }
}
