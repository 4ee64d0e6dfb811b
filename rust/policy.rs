// SPDX-License-Identifier: GPL-2.0

//! What becomes of a VMA: at its first anonymous fault, when it is copied, when it goes.

use crate::{
    pure::{
        counters::Event,
        mode::{
            Mode,
            ModeCell, //
        },
        state::{
            self,
            Attach,
            Fork, //
        }, //
    },
    report::report_once,
    root::{
        Given,
        Root,
        Write, //
    },
    stats,
    vma::{
        Avc,
        Decoded,
        Exclusive,
        Leaving,
        MmapLocked,
        Unfaulted,
        Vma, //
    },
};
use kernel::prelude::*;

/// The mode that `vm.anon_vma_lazy` shows and sets.
pub(crate) static MODE: ModeCell = ModeCell::new();

/// What the core is to do with a first anonymous fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: the VMA has an `anon_vma`.
    Attached,
    /// What Linux does without a module: give the VMA an `anon_vma` of its own.
    Regular,
}

/// Decides about the first anonymous fault of `vma`. May sleep; other threads may do the same.
///
/// An mm that has a root keeps using it, whatever the mode is: its folios are shared with its
/// children, and two kinds of VMAs in one mm do not merge.
///
/// # Errors
///
/// [`ENOMEM`]: the ordinary path would want memory, too, and in an mm that has a root it would make a
/// VMA that never merges with the others.
pub(crate) fn first_fault(vma: &MmapLocked) -> Result<Verdict> {
    stats::count(Event::FirstFault);
    // For the test that unloads the module while a hook runs; `mmap_lock` is held meanwhile.
    #[cfg(CONFIG_KUNIT)]
    crate::stall(crate::module_parameters::test_delay_ms.value());
    if vma.has_anon_vma() {
        stats::count(Event::Raced);
        return Ok(Verdict::Attached);
    }
    // mremap moves the page tables of these without the lock of their anon_vma.
    if vma.is_hugetlb() {
        stats::count(Event::Hugetlb);
        return Ok(Verdict::Regular);
    }
    // No anonymous folio is mapped here, or what is mapped may have no folio at all: a walk for a page
    // of another place that names the root must not come here. (userfaultfd prepares a VMA before it
    // looks what it is.) These merge with nothing lazy.
    if !vma.is_cow_mapping_of_pages() {
        stats::count(Event::Special);
        return Ok(Verdict::Regular);
    }
    let mm = vma.mm();
    let root = match mm.root() {
        Some(root) => root,
        None => {
            if MODE.get() == Mode::Off {
                stats::count(Event::ModeOff);
                return Ok(Verdict::Regular);
            }
            // For the test in which threads that have seen no root race to make it.
            #[cfg(CONFIG_KUNIT)]
            crate::stall(crate::module_parameters::test_delay_ms.value());
            match mm.make_root(None) {
                Ok(root) => root,
                // The module is going.
                Err(e) if e == ENODEV => return Ok(Verdict::Regular),
                Err(e) => return Err(out_of_memory(e)),
            }
        }
    };

    // For the test that looks what becomes of a state that cannot be.
    #[cfg(CONFIG_KUNIT)]
    if crate::module_parameters::test_break.value() == 2 {
        if let Some(up) = root.up() {
            vma.attach(|vma| vma.impossible(up));
            return Ok(Verdict::Attached);
        }
    }

    // exec moves the temporary stack without the root's lock; a link moves with it.
    let attached = if vma.is_natural() && !vma.is_temporary_stack() {
        vma.attach(|vma| vma.lazy(root).is_ok())
    } else {
        stats::count(Event::Unnatural);
        let avc = Avc::new().map_err(out_of_memory)?;
        let lock = root.write();
        vma.attach(|vma| {
            vma.link(&lock, avc);
            true
        })
    };
    match attached {
        Some(true) => (),
        // Its range cannot change meanwhile, nor the root of its mm.
        Some(false) => {
            report_once!(
                "a natural VMA cannot be attached to the root of its mm: {:x}-{:x}\n",
                vma.start(),
                vma.end()
            );
            return Ok(Verdict::Regular);
        }
        None => stats::count(Event::Raced),
    }
    Ok(Verdict::Attached)
}

/// Attaches `vma` to `root` as `how` says, or by a link if it is not natural.
///
/// # Errors
///
/// [`ENOMEM`]; the VMA stays Unfaulted.
fn attach(vma: Vma<'_, Unfaulted>, how: Attach, root: &Root) -> Result {
    let vma = match how {
        Attach::Lazy => match vma.lazy(root) {
            Ok(_) => return Ok(()),
            Err(vma) => vma,
        },
        Attach::Link => vma,
    };
    let avc = Avc::new().map_err(out_of_memory)?;
    vma.link(&root.write(), avc);
    Ok(())
}

/// Counts an operation that fails, and passes on why.
fn out_of_memory(e: Error) -> Error {
    stats::count(Event::NoMemory);
    e
}

/// Reports the copy of `src`, in its mm or by fork, that is not as the core has made it.
#[cold]
fn attached_already(src: &Exclusive<'_>) -> Error {
    report_once!(
        "the copy of a VMA is attached already: of {:x}-{:x}\n",
        src.start(),
        src.end()
    );
    ENOMEM
}

/// Attaches `dst`, the copy of `src` in the same mm, to the root that `src` has.
///
/// `remap` says that the copy is made by mremap. May sleep.
///
/// # Errors
///
/// [`ENOMEM`]; `dst` stays Unfaulted.
pub(crate) fn clone(dst: Exclusive<'_>, src: Exclusive<'_>, remap: bool) -> Result {
    let (Some(root), Decoded::Unfaulted(vma)) = (src.root(), dst.decode()) else {
        return Err(attached_already(&src));
    };
    let source = src.source().ok_or(ENOMEM)?;
    let how = state::copy(source, vma.is_natural(), remap);
    attach(vma, how, root)
}

/// Attaches `child`, the copy of `parent` in a new mm, and makes that mm's root if need be.
///
/// Both `mmap_lock`s are held for writing. The child's root is in the list of its parent when this
/// returns, before any PTE is copied. May sleep.
///
/// # Errors
///
/// [`ENOMEM`]; `child` stays Unfaulted.
pub(crate) fn fork(child: Exclusive<'_>, parent: Exclusive<'_>) -> Result {
    let mm = child.mm();
    let (Some(root), Decoded::Unfaulted(vma)) = (parent.root(), child.decode()) else {
        return Err(attached_already(&parent));
    };
    let source = parent.source().ok_or(ENOMEM)?;
    stats::count(Event::Fork);
    let own = parent.owns(root);
    let has_root = mm.root().is_some();
    // Counted once in a fork, if the child gets a root: it then serves all of the VMAs. If it gets none,
    // these are more than `MAX_ORPHANS`, and the answer for each VMA is the same.
    let orphans = if own && !has_root { root.orphans() } else { 0 };
    let plan = state::fork(source, own, has_root, orphans, vma.is_natural());
    match plan {
        Fork::Own(how) => {
            let root = match mm.root() {
                Some(root) => root,
                // The parent's root keeps the module, so that this fails for want of memory only.
                None => mm
                    .make_root(Some(root))
                    .map_err(|_| out_of_memory(ENOMEM))?,
            };
            attach(vma, how, root)
        }
        Fork::Foreign => {
            if own {
                stats::count(Event::TooDeep);
            }
            attach(vma, Attach::Link, root)
        }
    }
}

/// Takes `vma` from its root. May sleep.
///
/// Returns a reference that the core has to drop.
pub(crate) fn unlink(vma: Exclusive<'_>) -> Option<Given> {
    match vma.decode() {
        Decoded::Lazy(vma) => {
            vma.unlink();
            None
        }
        other => unlink_other(other),
    }
}

/// The same for a VMA that is not Lazy. Apart, as exit unlinks thousands that are.
#[inline(never)]
fn unlink_other(vma: Decoded<'_>) -> Option<Given> {
    match vma {
        // Not from `unlink()`, which sees to these itself.
        Decoded::Lazy(vma) => {
            vma.unlink();
        }
        Decoded::Detaching(vma) => {
            vma.unlink();
        }
        Decoded::Linked(vma) => return vma.unlink().1,
        Decoded::Unfaulted(_) | Decoded::Regular => (),
        Decoded::Impossible(vma) => vma.abandon(),
    }
    None
}

/// The VMAs of `leaving` are about to leave the VMA tree of their mm (or, with `undo`, are not after all).
///
/// The root's lock is taken once, and only if one of them has the root. May sleep.
pub(crate) fn unmap(leaving: Leaving<'_>, undo: bool) {
    let Some(root) = leaving.mm().root() else {
        return;
    };
    let mut lock = None;
    for vma in leaving {
        if root.is(vma.anon_vma()) {
            unmap_one(vma, lock.get_or_insert_with(|| root.write()), undo);
        }
    }
}

/// `vma`, which has the root whose lock this is, is about to leave the VMA tree, or is not after all.
fn unmap_one(vma: Exclusive<'_>, lock: &Write<'_>, undo: bool) {
    let (start, end) = (vma.start(), vma.end());
    let done = match vma.decode() {
        Decoded::Lazy(vma) if !undo => vma.detaching(lock).is_ok(),
        Decoded::Detaching(vma) if undo => vma.undo(lock).is_ok(),
        // The others are found without the VMA tree, or not at all.
        _ => true,
    };
    if !done {
        report_once!(
            "munmap of a VMA under the lock of another root: {:x}-{:x}\n",
            start,
            end
        );
    }
}
