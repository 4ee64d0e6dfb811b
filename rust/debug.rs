// SPDX-License-Identifier: GPL-2.0

//! What the files of `/sys/kernel/debug/anon_vma_lazy/` show.
//!
//! Roots are named by ids, which tracepoints use as well ([`Root::id`]).

use crate::{
    pure::{
        counters::{
            Event,
            GAUGES, //
        },
        state::State, //
    },
    root::Root,
    stats,
    vma::{
        Area,
        Locked, //
    },
};
use kernel::{
    mm::MmWithUser,
    seq_file::SeqFile,
    seq_print, //
};

/// The text of `counters`: one `name value` line for each event, since the module was loaded, and
/// for each gauge.
pub(crate) fn show_counters(out: &SeqFile) {
    for event in Event::ALL {
        seq_print!(out, "{} {}\n", event.name(), stats::sum(event));
    }
    for gauge in &GAUGES {
        seq_print!(out, "{} {}\n", gauge.name, stats::gauge(gauge));
    }
}

/// The text of `mm`: the root of one mm, its parent and its children, and each VMA.
///
/// Lines begin with a word that says what they are about:
///
/// ```text
/// root ID | root none
/// parent ID pid PID | parent ID orphan          only with a root that has a parent
/// child ID pid PID | child ID orphan            one for each, newest first
///                                               (pid 0: none that the reader can see)
/// vma START-END STATE [root ID] [moved]         by address; the root if it is of another mm
/// ```
///
/// Addresses are hexadecimal, as in `/proc/PID/maps`. VMAs that munmap has taken from the tree and
/// has not freed yet come last. Takes `mmap_lock` for reading, and the roots' locks one by one.
pub(crate) fn show_mm(out: &SeqFile, user: &MmWithUser) {
    let locked = Locked::new(user);
    // Users keep the mm, and with it the root.
    match locked.mm().root() {
        Some(root) => {
            seq_print!(out, "root {:08x}\n", root.id());
            if let Some(up) = root.up() {
                show_relative(out, "parent", up);
            }
            root.for_each_child(|child| show_relative(out, "child", child));
        }
        None => seq_print!(out, "root none\n"),
    }

    let mut from = 0;
    while let Some(vma) = locked.next(from) {
        show_vma(
            out,
            vma,
            vma.state(),
            vma.root().filter(|root| !vma.mm().has_root(root)),
        );
        from = vma.end();
    }

    if let Some(root) = locked.mm().root() {
        let lock = root.read();
        for area in lock.detaching() {
            show_vma(out, area, Some(State::Detaching), None);
        }
    }
}

fn show_relative(out: &SeqFile, what: &str, root: &Root) {
    let pid = root.pid();
    // Looked at last: one that is detached has no mm any more.
    if root.is_detached() {
        seq_print!(out, "{} {:08x} orphan\n", what, root.id());
    } else {
        seq_print!(out, "{} {:08x} pid {}\n", what, root.id(), pid.unwrap_or(0));
    }
}

fn show_vma(out: &SeqFile, area: &Area, state: Option<State>, foreign: Option<&Root>) {
    seq_print!(
        out,
        "vma {:x}-{:x} {}",
        area.start(),
        area.end(),
        state.map_or("impossible", State::name)
    );
    if let Some(root) = foreign {
        seq_print!(out, " root {:08x}", root.id());
    }
    if !area.is_natural() {
        seq_print!(out, " moved");
    }
    seq_print!(out, "\n");
}
