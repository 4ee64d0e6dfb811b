// SPDX-License-Identifier: GPL-2.0

//! Tracepoints: `/sys/kernel/tracing/events/anon_vma_lazy/`.
//!
//! They are defined in C (`rust/anon_vma_lazy_trace.h`). One that is off is a nop, behind which
//! nothing is computed: the arguments are views, and ids are made where the event is recorded.
//!
//! Not [`kernel::declare_trace!`]: it looks for the tracepoint in the kernel's bindings, which do
//! not have those of a module that is built outside of the tree. This is the same for symbols of our
//! own C.

use crate::{
    pure::state::State,
    root::Root,
    vma::Area,
    walk::Walk, //
};
#[cfg(CONFIG_TRACEPOINTS)]
use kernel::bindings;

/// What a tracepoint is given for a root: its id, or 0 for none.
#[cfg(CONFIG_TRACEPOINTS)]
fn id(root: Option<&Root>) -> u32 {
    root.map_or(0, Root::id)
}

/// Functions that hit a tracepoint: `fn name(what Rust passes) => (what C gets: its type)`.
macro_rules! tracepoints {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) => ($($c:ident: $ctype:ty = $value:expr),* $(,)?);
    )*) => {
        #[cfg(CONFIG_TRACEPOINTS)]
        kernel::macros::paste! {
            // In some configurations bindgen has empty structs inside of a tracepoint.
            #[allow(improper_ctypes)]
            extern "C" {
                $(
                    static [<__tracepoint_ $name>]: bindings::tracepoint;
                    fn [<rust_do_trace_ $name>]($($c: $ctype),*);
                )*
            }
        }

        $(
            $(#[$doc])*
            #[inline(always)]
            pub(crate) fn $name($($arg: $type),*) {
                #[cfg(CONFIG_TRACEPOINTS)]
                kernel::macros::paste! {
                    // SAFETY: The key is that of a tracepoint that C defines.
                    if unsafe {
                        kernel::jump_label::static_branch_unlikely!(
                            [<__tracepoint_ $name>],
                            bindings::tracepoint,
                            key
                        )
                    } {
                        // SAFETY: It takes values, and may be called anywhere but in NMIs.
                        unsafe { [<rust_do_trace_ $name>]($($value),*) };
                    }
                }
                #[cfg(not(CONFIG_TRACEPOINTS))]
                {
                    $(let _ = $arg;)*
                }
            }
        )*
    };
}

tracepoints! {
    /// A root was made.
    fn lazy_root_new(root: &Root) => (root: u32 = id(Some(root)), up: u32 = id(root.up()));

    /// It was put on the list of its parent's children.
    fn lazy_root_link(root: &Root) => (root: u32 = id(Some(root)), up: u32 = id(root.up()));

    /// It lost its mm.
    fn lazy_root_detach(root: &Root) => (root: u32 = id(Some(root)), up: u32 = id(root.up()));

    /// It is about to be freed.
    fn lazy_root_free(root: &Root) => (root: u32 = id(Some(root)), up: u32 = id(root.up()));

    /// A VMA went from one state to another; `root` says which it has or had.
    fn lazy_vma(root: impl FnOnce() -> u32, area: &Area, from: State, to: State) => (
        root: u32 = root(),
        start: usize = area.start(),
        end: usize = area.end(),
        from: u8 = from.code(),
        to: u8 = to.code(),
    );

    /// A walk that began at one root is about to look into another, or into that one.
    fn lazy_walk_visit(walk: &Walk) => (
        start: u32 = id(Some(walk.start())),
        root: u32 = id(Some(walk.at())),
        first: usize = walk.pages().0,
        last: usize = walk.pages().1,
    );

    /// A walk is at its end, or stops because its caller has enough.
    fn lazy_walk_end(walk: &Walk, early: bool) => (
        start: u32 = id(Some(walk.start())),
        root: u32 = id(Some(walk.at())),
        early: bool = early,
    );
}
