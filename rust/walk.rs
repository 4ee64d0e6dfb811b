// SPDX-License-Identifier: GPL-2.0

//! The walk: the VMAs that may map a folio of a lazy root.
//!
//! A *visit* of a root is one hold of its lock. It looks into the VMA tree of the mm, then into the
//! root's interval tree, then at its detaching list. mremap moves entries under that lock in write
//! mode: all of the visit sees an entry where it was, or all of it where it is.
//!
//! A walk visits the root that it begins with, then the roots of the children, parents first, and
//! holds one of their locks at a time. Fork puts a child on the list of its parent before it copies
//! the first PTE, and the walk looks at that list after it has visited the parent: a PTE that was
//! copied from one that the walk has not changed yet is in an mm that the walk comes to later.

use crate::{
    pure::{
        counters::Event,
        family,
        state::State, //
    },
    report::report_once,
    root::{
        Kept,
        Read,
        Root,
        Tree, //
    },
    shim,
    stats,
    trace,
    vma::Area, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    bindings,
    mm::MmWithUser,
    page::PAGE_SHIFT,
    sync::{
        aref::ARef,
        barrier::{
            smp_mb,
            Read as ReadBarrier, //
        },
        rcu, //
    }, //
};

/// Where a visit is: what `anon_rmap_iter.stage` holds.
mod stage {
    /// What `anon_rmap_iter()` leaves there: nothing was looked at yet.
    pub(super) const NEW: u8 = 0;
    pub(super) const VMA_TREE: u8 = 1;
    pub(super) const INTERVAL_TREE: u8 = 2;
    pub(super) const DETACHING: u8 = 3;
    pub(super) const END: u8 = 4;
}

/// A walk that the core has begun.
///
/// # Invariants
///
/// - `cur` is a lazy root whose lock is held: by the walk if `owned`, else by the caller, and then it
///   is `start`. If `cur` is not `start`, the walk has a pin on it. Only at the end of the walk, and
///   inside [`descend`](Walk::descend), `cur` may be pinned and not locked.
/// - `avc`, `stage` and `pos` say where the visit of `cur` is, as below; `pos` is an address while it
///   is in the VMA tree, and the VMA that was found last while it is on the detaching list.
#[repr(transparent)]
pub(crate) struct Walk(bindings::anon_rmap_iter);

impl Walk {
    /// Makes the view.
    ///
    /// # Safety
    ///
    /// `it` was made by `anon_rmap_iter()` for a lazy root whose lock is held, and has been used by
    /// `__anon_rmap_next()` alone since.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(it: *mut bindings::anon_rmap_iter) -> &'a mut Self {
        // SAFETY: A transparent wrapper; the caller's iterator is its own.
        // INVARIANT: By the safety requirements.
        unsafe { &mut *it.cast() }
    }

    /// The next VMA, or [`None`] at the end. May sleep between two roots.
    ///
    /// Until the next call the lock of a root is held that keeps the VMA and its page tables.
    pub(crate) fn next(&mut self) -> Option<NonNull<bindings::vm_area_struct>> {
        if self.0.stage == stage::NEW {
            self.0.stage = stage::VMA_TREE;
            stats::count(Event::Walk);
            trace::lazy_walk_visit(self);
        }
        loop {
            if let Some(vma) = self.visit() {
                return Some(vma);
            }
            let early = self.may_stop();
            if early || !self.descend() {
                stats::count(if early && !self.0.start_only {
                    Event::WalkStop
                } else {
                    Event::WalkEnd
                });
                trace::lazy_walk_end(self, early);
                return None;
            }
            trace::lazy_walk_visit(self);
        }
    }

    /// The root that the walk began with.
    #[inline]
    pub(crate) fn start(&self) -> &Root {
        // SAFETY: By the type invariant a lazy root; its lock or a pin on a descendant keeps it.
        unsafe { Root::from_anon_vma(self.0.start) }
    }

    /// The root that the walk is at.
    #[inline]
    pub(crate) fn at(&self) -> &Root {
        // SAFETY: By the type invariant a lazy root that is in use.
        unsafe { Root::from_anon_vma(self.0.cur) }
    }

    /// The first and the last page offset of the folio.
    #[inline]
    pub(crate) fn pages(&self) -> (usize, usize) {
        (self.0.first, self.0.last)
    }

    #[inline]
    fn cur(&self) -> Kept {
        // SAFETY: By the type invariant, locked or pinned; whoever leaves it drops the pin last.
        unsafe { Kept::new(self.at()) }
    }

    /// The addresses at which VMAs of the VMA tree map the folio: first and last.
    #[inline]
    fn addresses(&self) -> Option<(usize, usize)> {
        let last_page = self.0.last.checked_add(1)?;
        let limit = usize::MAX >> PAGE_SHIFT;
        (last_page <= limit).then(|| (self.0.first << PAGE_SHIFT, (last_page << PAGE_SHIFT) - 1))
    }

    /// The next VMA of this visit.
    fn visit(&mut self) -> Option<NonNull<bindings::vm_area_struct>> {
        // SAFETY: By the type invariant; it is locked, and `ManuallyDrop` keeps it so.
        let lock = ManuallyDrop::new(unsafe { Read::adopt(Root::from_anon_vma(self.0.cur)) });

        if self.0.stage == stage::VMA_TREE {
            if let Some(area) = self.visit_vma_tree(&lock) {
                return NonNull::new(area.as_ptr());
            }
            // Most roots have neither.
            self.0.stage = if lock.has_links() {
                stage::INTERVAL_TREE
            } else if lock.first_detaching().is_some() {
                stage::DETACHING
            } else {
                stage::END
            };
            self.0.avc = ptr::null_mut();
            self.0.pos = 0;
        }
        if self.0.stage == stage::INTERVAL_TREE {
            // SAFETY: The lock is held, so that the tree and its members stay as they are.
            unsafe {
                self.0.avc = if self.0.avc.is_null() {
                    bindings::anon_rmap_tree_iter_first(self.0.cur, self.0.first, self.0.last)
                } else {
                    bindings::anon_rmap_tree_iter_next(self.0.avc, self.0.first, self.0.last)
                };
                if !self.0.avc.is_null() {
                    // A child that was linked here by fork comes behind its parent, in the same
                    // hold of the lock: what was read of the parent's page tables comes first, as
                    // the pin sees to with a child that has a root of its own.
                    smp_mb(ReadBarrier);
                    stats::count(Event::Listed);
                    return NonNull::new((*self.0.avc).vma);
                }
            }
            self.0.stage = stage::DETACHING;
        }
        if self.0.stage == stage::DETACHING {
            if let Some(area) = self.visit_detaching(&lock) {
                self.0.pos = area.as_ptr() as usize;
                stats::count(Event::Listed);
                return NonNull::new(area.as_ptr());
            }
            self.0.stage = stage::END;
        }
        None
    }

    /// The next Lazy VMA at an address of the folio. `pos` is where to look next.
    fn visit_vma_tree<'a>(&mut self, lock: &'a Read<'_>) -> Option<&'a Area> {
        let mm = lock.mm()?;
        let (start, last) = self.addresses()?;
        let mut pos = start.max(self.0.pos);
        if pos > last {
            return None;
        }
        // Pages that are neighbours are often walked one after the other.
        if let Some(area) = lock.hint(pos, last) {
            self.0.pos = area.end();
            stats::count(Event::Hint);
            return Some(area);
        }

        // By the invariant of `Root::mm`, which rests on fork and exit_mmap().
        if cfg!(CONFIG_DEBUG_VM) && !shim::in_rcu_mode(mm) {
            report_once!(
                "a walk is at a VMA tree that is not in RCU mode: root {:08x}\n",
                lock.root().id()
            );
        }
        let rcu = rcu::read_lock();
        while pos <= last {
            let (area, next) = mm.lookup(pos, last, &rcu)?;
            if !area.looks_lazy(lock.root(), mm) || !area.intersects(pos, last) {
                // Behind the last address there is nothing.
                pos = if next == 0 { usize::MAX } else { next };
                continue;
            }
            // The memory may be that of a copy that was never in this tree. If the tree has it here
            // after its fields were read, they are those of a VMA that the lock keeps. The barrier
            // also orders the load of `anon_vma` before those of the range by whoever gets the VMA.
            smp_mb(ReadBarrier);
            // It also has to be the first one again: what lies before it would be passed over.
            let again = if area.start() <= pos {
                mm.at(pos, &rcu)
            } else {
                mm.lookup(pos, last, &rcu).map(|(again, _)| again)
            };
            match again {
                Some(again) if ptr::eq(again, area) => {
                    self.0.pos = area.end();
                    stats::count(Event::Lookup);
                    // SAFETY: A VMA of the locked root, found in the tree: the lock keeps it, also
                    // without RCU. It looked Lazy, and was in the tree then.
                    unsafe {
                        lock.remember(area);
                        return Some(&*ptr::from_ref(area));
                    }
                }
                _ => stats::count(Event::Retry),
            }
        }
        None
    }

    /// The next VMA on the detaching list that maps an address of the folio. `pos` is the one that
    /// was found before, or 0.
    fn visit_detaching<'a>(&self, lock: &'a Read<'_>) -> Option<&'a Area> {
        let (start, last) = self.addresses()?;
        let mut at = if self.0.pos == 0 {
            // munmap may put thousands on the list, and this folio lies elsewhere.
            lock.first_detaching()
                .filter(|_| lock.may_be_detaching(start, last))
        } else {
            // SAFETY: Found on the list before, under this hold of the lock, which keeps it there.
            unsafe { lock.next_detaching(&*(self.0.pos as *const Area)) }
        };
        while let Some(area) = at {
            if area.intersects(start, last) {
                return Some(area);
            }
            if area.start() > last {
                break;
            }
            // SAFETY: Just found on the list.
            at = unsafe { lock.next_detaching(area) };
        }
        None
    }

    /// Whether nothing can be left to find, or the caller wants the start only.
    #[inline]
    fn may_stop(&self) -> bool {
        // SAFETY: The iterator is valid; the caller's `done` is made to be called after each VMA.
        self.0.start_only || unsafe { bindings::anon_rmap_done(&raw const self.0) } != 0
    }

    /// The root to visit after `cur`, pinned.
    #[inline]
    fn successor(&self, start: Kept) -> Option<Kept> {
        // For the test that has all who use `cur` go meanwhile: its lock may be all that is left.
        #[cfg(CONFIG_KUNIT)]
        crate::stall(crate::module_parameters::test_visit_ms.value());
        family::successor(&Tree, start, self.cur())
    }

    /// Leaves the root and goes on to the next one, which is then locked. False at the end.
    fn descend(&mut self) -> bool {
        // For the test that wants to see the oracle notice.
        #[cfg(CONFIG_KUNIT)]
        if crate::module_parameters::test_break.value() == 1 {
            return false;
        }
        // SAFETY: Kept by the caller's lock or, then, by the pin on a descendant.
        let start = unsafe { Kept::new(self.start()) };
        // SAFETY: The caller gave a control, or NULL.
        let skip = unsafe { self.0.rwc.as_ref() }.is_some_and(|rwc| rwc.try_lock);

        // `cur` is still locked, or pinned: it is not freed before a descendant is pinned.
        while let Some(next) = self.successor(start) {
            let cur = self.cur();
            if self.0.owned {
                // SAFETY: By the type invariant the walk holds it.
                drop(unsafe { Read::adopt(Root::from_anon_vma(self.0.cur)) });
                self.0.owned = false;
            }
            // A parent may have thousands of children that map none of it.
            // SAFETY: Walks sleep between two roots; the caller holds no spinlock and no RCU lock.
            unsafe { bindings::cond_resched() };
            // INVARIANT: Pinned; the lock follows.
            self.0.cur = next.as_anon_vma();
            if cur != start {
                // SAFETY: The pin of the walk, by the type invariant. `next` keeps the module.
                unsafe { Root::unpin(cur.as_ptr()) };
            }
            stats::count(Event::Descend);
            // For the test that has the mm of `next` go meanwhile: the pin may be all that is left.
            #[cfg(CONFIG_KUNIT)]
            crate::stall(crate::module_parameters::test_pin_ms.value());

            let lock = if skip {
                next.try_read()
            } else {
                Some(next.read())
            };
            let Some(lock) = lock else {
                // Those who may skip only estimate. Its children are asked all the same.
                stats::count(Event::Skip);
                continue;
            };
            let _ = ManuallyDrop::new(lock);
            // INVARIANT: Locked, and at the beginning of a visit.
            self.0.owned = true;
            self.0.stage = stage::VMA_TREE;
            self.0.pos = 0;
            self.0.avc = ptr::null_mut();
            return true;
        }
        false
    }
}

/// A walk that the module makes itself.
///
/// # Invariants
///
/// Those of [`Walk`]; the walk owns the lock of `cur`, but at its end.
pub(crate) struct OwnWalk<'a> {
    walk: Walk,
    _start: PhantomData<&'a Root>,
}

impl<'a> OwnWalk<'a> {
    /// Begins a walk over the VMAs that may map the anonymous page offset `pgoff` of `start`. May
    /// sleep; no root's lock may be held, and nothing may allocate until the walk is dropped.
    pub(crate) fn new(start: &'a Root, pgoff: usize) -> Self {
        let _ = ManuallyDrop::new(start.read());
        // INVARIANT: Locked just now, and nothing was looked at.
        Self {
            walk: Walk(bindings::anon_rmap_iter {
                start: start.as_anon_vma(),
                cur: start.as_anon_vma(),
                first: pgoff,
                last: pgoff,
                lazy: true,
                owned: true,
                ..pin_init::zeroed()
            }),
            _start: PhantomData,
        }
    }

    /// The next VMA.
    pub(crate) fn next(&mut self) -> Option<Found<'_>> {
        let vma = self.walk.next()?;
        // SAFETY: Found by the walk, which keeps it until it is asked again.
        let area = unsafe { vma.cast::<Area>().as_ref() };
        Some(Found {
            area,
            how: match self.walk.0.stage {
                stage::VMA_TREE => State::Lazy,
                stage::INTERVAL_TREE => State::Linked,
                _ => State::Detaching,
            },
            // SAFETY: As above: the walk holds the lock.
            users: unsafe { area.users() },
        })
    }

    /// Goes on to the next VMA without a look at it. False at the end.
    pub(crate) fn skip(&mut self) -> bool {
        self.walk.next().is_some()
    }
}

/// What an [`OwnWalk`] has found. The VMA, and its page tables, are kept until it goes on.
pub(crate) struct Found<'a> {
    /// The VMA.
    pub(crate) area: &'a Area,
    /// Its state: where it was found.
    pub(crate) how: State,
    /// The users of its mm, if it has any still. To be dropped after the walk: see [`Area::users`].
    pub(crate) users: Option<ARef<MmWithUser>>,
}

impl Drop for OwnWalk<'_> {
    fn drop(&mut self) {
        if self.walk.0.owned {
            // SAFETY: By the type invariant the walk holds it.
            drop(unsafe { Read::adopt(Root::from_anon_vma(self.walk.0.cur)) });
        }
        if self.walk.0.cur != self.walk.0.start {
            // SAFETY: The pin of the walk. The root that it began with is borrowed, and holds the
            // module.
            unsafe { Root::unpin(self.walk.cur().as_ptr()) };
        }
    }
}
