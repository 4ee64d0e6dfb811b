// SPDX-License-Identifier: GPL-2.0

//! Views of `vm_area_struct` and `mm_struct`. The type says which lock is held, and so what may be
//! read and written.
//!
//! | type | what is known | what may be done |
//! |---|---|---|
//! | [`Area`] | the memory is that of some VMA, maybe free by now | racy reads, to be validated |
//! | [`MmapLocked`] | in the tree, `mmap_lock` is held | range and offset are stable |
//! | [`Locked`] | an mm; `mmap_lock` is held for reading | go through its VMAs, look at their states |
//! | [`Exclusive`] | nobody else attaches or unlinks it | decode the state, begin a transition |
//! | [`Vma<S>`](Vma) | it is in state `S`, and exclusive | the transitions out of `S`, no other |

use crate::{
    pure::{
        counters::Event,
        natural::is_natural,
        state::{
            self,
            Anon,
            Chain,
            Source,
            State, //
        },
    },
    report::report_once,
    root::{
        hold_module,
        Given,
        Root,
        RootRef,
        Write, //
    },
    stats,
    trace, //
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    bindings,
    mm::{
        virt::{
            flags,
            VmaRef, //
        },
        MmWithUser,
        MmapReadGuard, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        rcu,
        SpinLock, //
    },
    types::Opaque, //
};

/// An mm, kept by whoever has the reference.
///
/// # Invariants
///
/// The `mm_struct` and its VMA tree are valid, and exit has not given back the root. While there is a
/// reference, `mmap_lock` is held, so that the tree does not change; or the lock of the mm's root is, which
/// is not detached, and then the tree is in RCU mode. `anon_vma_lazy` is NULL, or a root that is in use.
#[repr(transparent)]
pub(crate) struct Mm(Opaque<bindings::mm_struct>);

impl Mm {
    /// The pointer.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut bindings::mm_struct {
        self.0.get()
    }

    #[inline]
    fn lazy(&self) -> &Atomic<*mut bindings::anon_vma> {
        // SAFETY: The field is only accessed atomically once the mm is in use; only its address is
        // computed here.
        unsafe { Atomic::from_ptr(&raw mut (*self.as_ptr()).__bindgen_anon_1.anon_vma_lazy) }
    }

    /// The lazy root. It is set once, and goes with the mm.
    #[inline]
    pub(crate) fn root(&self) -> Option<&Root> {
        let anon_vma = self.lazy().load(Acquire);
        // SAFETY: By the type invariant it is in use.
        (!anon_vma.is_null()).then(|| unsafe { Root::from_anon_vma(anon_vma) })
    }

    /// Whether `root` is its root.
    #[inline]
    pub(crate) fn has_root(&self, root: &Root) -> bool {
        self.root().is_some_and(|own| ptr::eq(own, root))
    }

    /// Makes a root, a child of `up` if there is one, and gives it to the mm, unless another thread was
    /// faster; returns the one that the mm has. May sleep.
    ///
    /// A root that is not needed is dropped. That may be the last one: whoever has called into the module
    /// keeps it, which is here the core's SRCU read-side section, or the root `up`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; [`ENODEV`] if the module is being unloaded.
    pub(crate) fn make_root(&self, up: Option<&Root>) -> Result<&Root> {
        // SAFETY: The mm gets it, or else it is detached below.
        let root = unsafe { RootRef::new(self, up) }?;
        {
            let _lock = self.page_table_lock().lock();
            let lazy = self.lazy();
            if lazy.load(Relaxed).is_null() {
                let anon_vma = root.into_raw();
                lazy.store(anon_vma, Release);
                // SAFETY: As in `root()`.
                return Ok(unsafe { Root::from_anon_vma(anon_vma) });
            }
        }
        root.write().detach();
        drop(root);
        // SAFETY: As in `root()`; it was not NULL above, and does not change again.
        Ok(unsafe { Root::from_anon_vma(self.lazy().load(Acquire)) })
    }

    #[inline]
    fn page_table_lock(&self) -> &SpinLock<()> {
        // SAFETY: The lock is initialized, and lives as long as the mm.
        unsafe { SpinLock::from_raw(&raw mut (*self.as_ptr()).__bindgen_anon_1.page_table_lock) }
    }

    /// The first VMA in the tree that covers one of the addresses from `start` to `last`, and the
    /// address behind its place there (0 behind the last address that there is).
    #[inline]
    pub(crate) fn lookup<'r>(
        &self,
        start: usize,
        last: usize,
        rcu: &'r rcu::Guard,
    ) -> Option<(&'r Area, usize)> {
        // For one page there is nothing to search for.
        if last - start < PAGE_SIZE {
            return self.at(start, rcu).map(|area| (area, last.wrapping_add(1)));
        }
        let mut index = start;
        // SAFETY: By the type invariant the tree is valid, and either locked or in RCU mode.
        let entry = unsafe { bindings::mt_find(self.tree(), &raw mut index, last) };
        // SAFETY: Entries of the tree are VMAs, whose memory stays that of a VMA for as long as the
        // RCU read lock is held.
        unsafe { entry.cast::<Area>().as_ref() }.map(|area| (area, index))
    }

    /// The VMA in the tree that covers `address`.
    #[inline]
    pub(crate) fn at<'r>(&self, address: usize, _rcu: &'r rcu::Guard) -> Option<&'r Area> {
        // SAFETY: As in `lookup()`.
        let entry = unsafe { bindings::mtree_load(self.tree(), address) };
        // SAFETY: As in `lookup()`.
        unsafe { entry.cast::<Area>().as_ref() }
    }

    #[inline]
    fn tree(&self) -> *mut bindings::maple_tree {
        // SAFETY: Only computes an address.
        unsafe { &raw mut (*self.as_ptr()).__bindgen_anon_1.mm_mt }
    }
}

/// An mm whose `mmap_lock` is held for reading, by this value.
///
/// VMAs of its tree keep their range, their `anon_vma` if they have one and, then, their list head:
/// who unlinks, splits, moves or unmaps one holds the lock for writing. A fault may give an
/// Unfaulted one its `anon_vma` meanwhile, with the list head complete before.
///
/// # Invariants
///
/// The lock is held, and the mm has users: it does not go.
pub(crate) struct Locked<'a> {
    mm: &'a Mm,
    _guard: MmapReadGuard<'a>,
}

impl<'a> Locked<'a> {
    /// Takes the lock. May sleep; no other `mmap_lock` and no root's lock may be held.
    pub(crate) fn new(user: &'a MmWithUser) -> Self {
        let guard = user.mmap_read_lock();
        Self {
            // SAFETY: A transparent wrapper of the same; users keep the mm, and the tree of an mm
            // that runs is in RCU mode.
            // INVARIANT: Just locked.
            mm: unsafe { &*user.as_raw().cast() },
            _guard: guard,
        }
    }

    /// The pointer.
    pub(crate) fn as_ptr(&self) -> *mut bindings::mm_struct {
        self.mm.as_ptr()
    }

    /// The mm.
    pub(crate) fn mm(&self) -> &Mm {
        self.mm
    }

    /// The first VMA that ends behind `from`.
    pub(crate) fn next(&self, from: usize) -> Option<&MmapLocked> {
        let rcu = rcu::read_lock();
        let (area, _) = self.mm.lookup(from, usize::MAX, &rcu)?;
        // SAFETY: Found in the tree, and by the type invariant the lock is held, which keeps it there
        // for as long as `self` is borrowed.
        Some(unsafe { MmapLocked::from_raw(area.as_ptr()) })
    }
}

/// Memory of a VMA.
///
/// # Invariants
///
/// It is that of some VMA: VMAs come from a `SLAB_TYPESAFE_BY_RCU` cache, so that without a lock
/// that keeps it, it may be free or another one, and what is read has to be validated.
#[repr(transparent)]
pub(crate) struct Area(Opaque<bindings::vm_area_struct>);

impl Area {
    /// The pointer.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut bindings::vm_area_struct {
        self.0.get()
    }

    /// The VMA that has this list head.
    ///
    /// # Safety
    ///
    /// `chain` is the `anon_vma_chain` of a VMA that is valid for all of `'a`.
    #[inline]
    pub(crate) unsafe fn from_chain<'a>(chain: *mut bindings::list_head) -> &'a Self {
        // SAFETY: By the safety requirements.
        unsafe {
            &*kernel::container_of!(chain, bindings::vm_area_struct, anon_vma_chain).cast::<Self>()
        }
    }

    #[inline]
    fn anon_vma_field(&self) -> &Atomic<*mut bindings::anon_vma> {
        // SAFETY: The memory is that of a VMA, whose field others read and write as a whole word.
        unsafe { Atomic::from_ptr(&raw mut (*self.as_ptr()).anon_vma) }
    }

    /// `vma->anon_vma`.
    #[inline]
    pub(crate) fn anon_vma(&self) -> *mut bindings::anon_vma {
        self.anon_vma_field().load(Relaxed)
    }

    /// `vma->vm_mm`.
    #[inline]
    fn mm_ptr(&self) -> *mut bindings::mm_struct {
        // SAFETY: The memory is that of a VMA; volatile, since it may change.
        unsafe { ptr::read_volatile(&raw const (*self.as_ptr()).vm_mm) }
    }

    /// The first address.
    #[inline]
    pub(crate) fn start(&self) -> usize {
        // SAFETY: As above.
        unsafe {
            ptr::read_volatile(
                &raw const (*self.as_ptr()).__bindgen_anon_1.__bindgen_anon_1.vm_start,
            )
        }
    }

    /// The address behind the last one.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        // SAFETY: As above.
        unsafe {
            ptr::read_volatile(&raw const (*self.as_ptr()).__bindgen_anon_1.__bindgen_anon_1.vm_end)
        }
    }

    /// Whether the anonymous page offset is the address.
    #[inline]
    pub(crate) fn is_natural(&self) -> bool {
        // SAFETY: The memory is that of a VMA. It may change meanwhile: who has no lock that keeps it
        // validates what it looked like, see `looks_lazy()`.
        let anon_pgoff = unsafe { bindings::vma_start_anon_pgoff(self.as_ptr()) };
        is_natural(anon_pgoff, self.start(), PAGE_SHIFT as u32)
    }

    /// The list head.
    #[inline]
    pub(crate) fn list_head(&self) -> *mut bindings::list_head {
        // SAFETY: Only computes an address.
        unsafe { &raw mut (*self.as_ptr()).anon_vma_chain }
    }

    /// Whether the list head is empty.
    #[inline]
    pub(crate) fn chain_is_empty(&self) -> bool {
        self.chain_next() == self.list_head()
    }

    /// What the list head's `next` is.
    #[inline]
    pub(crate) fn chain_next(&self) -> *mut bindings::list_head {
        // SAFETY: The memory is that of a VMA; volatile, since it may change.
        unsafe { ptr::read_volatile(&raw const (*self.list_head()).next) }
    }

    /// Sets both pointers of the list head.
    ///
    /// # Safety
    ///
    /// The VMA is one that is in use, and nobody else changes its list head: the caller has it
    /// [`Exclusive`], or it is on the detaching list of a root that the caller holds in write mode.
    /// Both pointers are the list head itself, or what the detaching list is made of.
    #[inline]
    pub(crate) unsafe fn set_chain(
        &self,
        next: *mut bindings::list_head,
        prev: *mut bindings::list_head,
    ) {
        // SAFETY: By the safety requirements; walks that read `next` meanwhile hold no lock, and
        // validate.
        unsafe {
            ptr::write_volatile(&raw mut (*self.list_head()).next, next);
            ptr::write_volatile(&raw mut (*self.list_head()).prev, prev);
        }
    }

    /// Makes the list head empty.
    ///
    /// # Safety
    ///
    /// As for [`set_chain`](Area::set_chain).
    #[inline]
    pub(crate) unsafe fn clear_chain(&self) {
        // SAFETY: By the safety requirements.
        unsafe { self.set_chain(self.list_head(), self.list_head()) };
    }

    /// The lazy root that it has.
    ///
    /// # Safety
    ///
    /// For all of `'a` the VMA is valid, and nobody but the caller unlinks it.
    #[inline]
    unsafe fn lazy_root<'a>(&self) -> Option<&'a Root> {
        let anon_vma = self.anon_vma();
        // SAFETY: A VMA keeps its `anon_vma` in use, through the reference of its mm or its own.
        unsafe { bindings::anon_vma_is_lazy(anon_vma).then(|| Root::from_anon_vma(anon_vma)) }
    }

    /// The mm.
    ///
    /// # Safety
    ///
    /// For all of `'a` the VMA is valid, and the `mmap_lock` of its mm is held in some mode.
    #[inline]
    unsafe fn mm<'a>(&self) -> &'a Mm {
        // SAFETY: The mm of a VMA lives until its VMAs are gone, which is before the root is given back.
        // INVARIANT: By the safety requirements.
        unsafe { &*self.mm_ptr().cast() }
    }

    /// Whether it looks like a Lazy VMA of `root`, the root of `mm`. Fields are read without a lock:
    /// the answer is right if the lock of `root` is held, and a second lookup finds the same VMA.
    #[inline]
    pub(crate) fn looks_lazy(&self, root: &Root, mm: &Mm) -> bool {
        ptr::eq(self.mm_ptr(), mm.as_ptr())
            && root.is(self.anon_vma())
            && self.chain_is_empty()
            && self.is_natural()
    }

    /// The address of the page with this anonymous page offset.
    ///
    /// It is one of the VMA if a walk over that offset has found the VMA.
    pub(crate) fn address_of(&self, pgoff: usize) -> usize {
        // SAFETY: The memory is that of a VMA; the walk's lock keeps its offset.
        let first = unsafe { bindings::vma_start_anon_pgoff(self.as_ptr()) };
        self.start()
            .wrapping_add(pgoff.wrapping_sub(first) << PAGE_SHIFT)
    }

    /// A reference to the users of the VMA's mm, unless there are none any more. Any context.
    ///
    /// It must not be dropped under a root's lock: the last one frees the mm, which takes that.
    ///
    /// # Safety
    ///
    /// The VMA was found by a walk, and the lock is held that it was found under.
    pub(crate) unsafe fn users(&self) -> Option<ARef<MmWithUser>> {
        // SAFETY: Whoever frees the mm has detached its root, or unlinked the VMA, under that lock before.
        unsafe { kernel::mm::Mm::from_raw(self.mm_ptr()) }.mmget_not_zero()
    }

    /// Whether it covers one of the addresses from `start` to `last`.
    #[inline]
    pub(crate) fn intersects(&self, start: usize, last: usize) -> bool {
        self.start() <= last && self.end() > start
    }
}

/// A VMA whose mm's `mmap_lock` is held, for reading or writing.
///
/// # Invariants
///
/// The VMA is in its mm's VMA tree, and the `mmap_lock` is held for as long as the reference lives:
/// the VMA's range and its anonymous page offset do not change. `anon_vma` may be set by another
/// thread meanwhile (from NULL, once), since page faults hold the lock for reading.
#[repr(transparent)]
pub(crate) struct MmapLocked(Area);

impl Deref for MmapLocked {
    type Target = Area;

    #[inline]
    fn deref(&self) -> &Area {
        &self.0
    }
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
        !self.anon_vma().is_null()
    }

    /// The mm.
    #[inline]
    pub(crate) fn mm(&self) -> &Mm {
        // SAFETY: By the type invariant the VMA is in the tree, and `mmap_lock` keeps it there.
        unsafe { self.0.mm() }
    }

    /// The lazy root that it has.
    pub(crate) fn root(&self) -> Option<&Root> {
        let anon_vma = self.0.anon_vma_field().load(Acquire);
        // SAFETY: The `mmap_lock` keeps the VMA's `anon_vma`, and through the reference of the mm, of
        // the VMA or of an `anon_vma_chain` that is in use.
        unsafe { bindings::anon_vma_is_lazy(anon_vma).then(|| Root::from_anon_vma(anon_vma)) }
    }

    /// The state, to be shown. [`None`] for a pair of facts that no transition leads to.
    pub(crate) fn state(&self) -> Option<State> {
        // Looked at before, not after: a first fault may come in between.
        let has_anon_vma = self.has_anon_vma();
        let Some(root) = self.root() else {
            return Some(if has_anon_vma {
                State::Regular
            } else {
                State::Unfaulted
            });
        };
        let anon = if self.mm().has_root(root) {
            Anon::Own
        } else {
            Anon::Foreign
        };
        // It was complete before `anon_vma` was set, and no VMA in the tree is on a detaching list
        // while `mmap_lock` is held.
        let chain = if self.chain_is_empty() {
            Chain::Empty
        } else {
            Chain::Links
        };
        state::decode(anon, chain).ok()
    }

    /// Whether it is a mapping of huge pages.
    #[inline]
    pub(crate) fn is_hugetlb(&self) -> bool {
        // SAFETY: By the type invariant the VMA is valid.
        unsafe { bindings::is_vm_hugetlb_page(self.as_ptr()) }
    }

    /// Whether its anonymous pages are its own, and all that it maps has a struct page: what Linux calls a
    /// CoW mapping, and neither `VM_PFNMAP` nor `VM_MIXEDMAP`. mmap sets these flags, but for `vm_insert_page()`,
    /// which may make a Lazy VMA one of `VM_MIXEDMAP` later: what it maps has a struct page.
    #[inline]
    pub(crate) fn is_cow_mapping_of_pages(&self) -> bool {
        // SAFETY: By the type invariant the VMA is valid, and `mmap_lock` is held.
        let vm_flags = unsafe { VmaRef::from_raw(self.as_ptr()) }.flags();
        let relevant = flags::SHARED | flags::MAYWRITE | flags::PFNMAP | flags::MIXEDMAP;
        vm_flags & relevant == flags::MAYWRITE
    }

    /// Whether it is the stack of a program that exec is about to move to its place.
    #[inline]
    pub(crate) fn is_temporary_stack(&self) -> bool {
        // SAFETY: By the type invariant the VMA is valid.
        unsafe { bindings::vma_is_temporary_stack(self.as_ptr()) }
    }

    /// Calls `attach` with the VMA under the `page_table_lock`, which no other thread then prepares.
    /// If one has done so before, returns [`None`].
    #[inline]
    pub(crate) fn attach<R>(&self, attach: impl FnOnce(Vma<'_, Unfaulted>) -> R) -> Option<R> {
        let _lock = self.mm().page_table_lock().lock();
        if self.has_anon_vma() {
            return None;
        }
        // INVARIANT: Whoever prepares a VMA under `mmap_lock` takes this lock; others that attach or
        // unlink it hold `mmap_lock` for writing. It has no `anon_vma`, and then no chain.
        Some(attach(Vma::new(&self.0)))
    }
}

/// A VMA that nobody else attaches or unlinks.
///
/// # Invariants
///
/// The VMA is valid, the `mmap_lock` of its mm is held in some mode, and while this lives only the holder
/// changes its `anon_vma` and its list head: that lock is held for writing, or the VMA is not in a tree
/// (not yet, or no more). There is one value for a VMA: decoding it uses it up, so that no transition can be
/// made twice.
pub(crate) struct Exclusive<'a>(&'a Area);

impl Deref for Exclusive<'_> {
    type Target = Area;

    #[inline]
    fn deref(&self) -> &Area {
        self.0
    }
}

/// The VMAs that munmap has set aside, in the order of their addresses.
///
/// # Invariants
///
/// `first` is the first of `left` VMAs, and of those that the tree of `mas` has, at the indexes from 0 on; or `first` is [`None`],
/// and the rest of them come next in that tree. They are of one mm, whose `mmap_lock` is held for
/// writing for all of `'a`; nobody else uses `mas` or changes the tree.
pub(crate) struct Leaving<'a> {
    mm: &'a Mm,
    first: Option<Exclusive<'a>>,
    left: c_int,
    mas: *mut bindings::ma_state,
}

impl<'a> Leaving<'a> {
    /// Makes the view.
    ///
    /// # Safety
    ///
    /// There is one at least, `vma`, and the type invariant must hold for all of `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw(
        vma: *mut bindings::vm_area_struct,
        nr: c_int,
        mas: *mut bindings::ma_state,
    ) -> Self {
        // SAFETY: By the safety requirements a VMA whose mm is locked for writing.
        let first = unsafe { Exclusive::from_raw(vma) };
        // INVARIANT: By the safety requirements.
        Self {
            mm: first.mm(),
            first: Some(first),
            left: nr,
            mas,
        }
    }

    /// Their mm.
    #[inline]
    pub(crate) fn mm(&self) -> &'a Mm {
        self.mm
    }
}

impl<'a> Iterator for Leaving<'a> {
    type Item = Exclusive<'a>;

    #[inline]
    fn next(&mut self) -> Option<Exclusive<'a>> {
        if self.left <= 0 {
            return None;
        }
        self.left -= 1;
        // Most often there is one, and the tree is not looked at.
        if let Some(first) = self.first.take() {
            if self.left > 0 {
                // SAFETY: By the type invariant the state is the caller's own. The first has index 0.
                unsafe { bindings::mas_set(self.mas, 1) };
            }
            return Some(first);
        }
        // SAFETY: By the type invariant.
        let vma = unsafe { bindings::mas_find(self.mas, usize::MAX) };
        // SAFETY: By the type invariant a VMA whose mm is locked for writing; each is returned once.
        (!vma.is_null()).then(|| unsafe { Exclusive::from_raw(vma.cast()) })
    }
}

/// A VMA with its state.
pub(crate) enum Decoded<'a> {
    /// No `anon_vma`: it can be attached.
    Unfaulted(Vma<'a, Unfaulted>),
    /// Found in the VMA tree.
    Lazy(Vma<'a, Lazy>),
    /// Found in a root's interval tree.
    Linked(Vma<'a, Linked>),
    /// Found on its root's detaching list.
    Detaching(Vma<'a, Detaching>),
    /// An ordinary `anon_vma`: not ours.
    Regular,
    /// Reported: a pair of facts that no transition leads to.
    Impossible(Exclusive<'a>),
}

impl<'a> Exclusive<'a> {
    /// Makes the view.
    ///
    /// # Safety
    ///
    /// The type invariant must hold for all of `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw(vma: *mut bindings::vm_area_struct) -> Self {
        // SAFETY: Valid, by the safety requirements.
        // INVARIANT: By the safety requirements.
        Self(unsafe { &*vma.cast() })
    }

    /// The mm.
    #[inline]
    pub(crate) fn mm(&self) -> &'a Mm {
        // SAFETY: By the type invariant the VMA is valid, and `mmap_lock` is held.
        unsafe { self.0.mm() }
    }

    /// Whether `root` is the root of the VMA's mm.
    #[inline]
    pub(crate) fn owns(&self, root: &Root) -> bool {
        self.mm().has_root(root)
    }

    /// The lazy root that it has.
    #[inline]
    pub(crate) fn root(&self) -> Option<&'a Root> {
        // SAFETY: By the type invariant only the holder unlinks the VMA.
        unsafe { self.0.lazy_root() }
    }

    /// The facts that make its state.
    fn facts(&self) -> (Anon, Chain) {
        let anon = match self.root() {
            None if self.anon_vma().is_null() => Anon::None,
            None => Anon::Regular,
            Some(root) if self.owns(root) => Anon::Own,
            Some(_) => Anon::Foreign,
        };
        // SAFETY: By the type invariant the VMA is valid, and only the holder changes the list head.
        // Of a member of the detaching list it may be written for the sake of a neighbour, but the
        // one munmap that there can be in an mm is the holder's own.
        let prev = unsafe { (*self.list_head()).prev };
        let chain = if self.chain_is_empty() {
            Chain::Empty
        } else if self.root().is_some_and(|root| root.mark() == prev) {
            Chain::Detaching
        } else {
            Chain::Links
        };
        (anon, chain)
    }

    /// Whether it is Lazy, as most are that have a root.
    #[inline]
    fn is_lazy(&self) -> bool {
        self.chain_is_empty() && self.root().is_some_and(|root| self.owns(root))
    }

    /// What a copy of it is made of. [`None`] for a VMA that cannot be copied, which is reported.
    #[inline]
    pub(crate) fn source(&self) -> Option<Source> {
        if self.is_lazy() {
            return State::Lazy.source();
        }
        self.source_by_facts()
    }

    fn source_by_facts(&self) -> Option<Source> {
        let (anon, chain) = self.facts();
        let source = state::decode(anon, chain).ok().and_then(State::source);
        if source.is_none() {
            report_once!(
                "a VMA in no state to be copied: anon_vma {:?}, chain {:?}, {:x}-{:x}\n",
                anon,
                chain,
                self.start(),
                self.end()
            );
        }
        source
    }

    /// Derives the state, for a transition.
    #[inline(always)]
    pub(crate) fn decode(self) -> Decoded<'a> {
        // The two that fork, split and unmapping meet most.
        if self.anon_vma().is_null() && self.chain_is_empty() {
            // INVARIANT: That is what Unfaulted means, and by the type invariant of `self` it is stable.
            return Decoded::Unfaulted(Vma::new(self.0));
        }
        if self.is_lazy() {
            // INVARIANT: As above.
            return Decoded::Lazy(Vma::new(self.0));
        }
        self.decode_by_facts()
    }

    #[inline(never)]
    fn decode_by_facts(self) -> Decoded<'a> {
        let area = self.0;
        // INVARIANT: The state is what was derived, and by the type invariant of `self` it is stable.
        let (anon, chain) = self.facts();
        match state::decode(anon, chain) {
            Ok(State::Unfaulted) => Decoded::Unfaulted(Vma::new(area)),
            Ok(State::Lazy) => Decoded::Lazy(Vma::new(area)),
            Ok(State::Linked) => Decoded::Linked(Vma::new(area)),
            Ok(State::Detaching) => Decoded::Detaching(Vma::new(area)),
            Ok(State::Regular) => Decoded::Regular,
            Err((anon, chain)) => {
                report_once!(
                    "a VMA cannot be in this state: anon_vma {:?}, chain {:?}, {:x}-{:x}\n",
                    anon,
                    chain,
                    area.start(),
                    area.end()
                );
                Decoded::Impossible(self)
            }
        }
    }

    /// Forgets an `anon_vma` that cannot be explained: the safe way out of [`Decoded::Impossible`]. With
    /// links it is left as it is, as they are in somebody's tree; an `anon_vma` then explains them.
    ///
    /// No walk finds the VMA in a VMA tree any more; the memory that it was linked with is lost, and
    /// the module stays for good, as some of that may still name its roots.
    pub(crate) fn abandon(self) {
        hold_module();
        let (_, chain) = self.facts();
        if chain == Chain::Links {
            return;
        }
        let lock = self.root().map(Root::write);
        if let Some(lock) = &lock {
            lock.forget(self.0);
        }
        match &lock {
            // SAFETY: It has the mark of this root's list, and by the type invariant nobody else
            // changes its list head. That it is on the list is looked up.
            Some(lock) if chain == Chain::Detaching => unsafe { lock.remove_detaching(self.0) },
            // SAFETY: By the type invariant nobody else changes the list head.
            _ => unsafe { self.clear_chain() },
        }
        self.anon_vma_field().store(ptr::null_mut(), Relaxed);
        drop(lock);
    }
}

/// A [`Vma`] in the state [`State::Unfaulted`].
pub(crate) enum Unfaulted {}
/// A [`Vma`] in the state [`State::Lazy`].
pub(crate) enum Lazy {}
/// A [`Vma`] in the state [`State::Linked`].
pub(crate) enum Linked {}
/// A [`Vma`] in the state [`State::Detaching`].
pub(crate) enum Detaching {}

/// A VMA in state `S`. Its methods are the transitions that there are: another cannot be written.
///
/// | from | to | by |
/// |---|---|---|
/// | Unfaulted | Lazy | [`lazy`](Vma::lazy), if natural |
/// | Unfaulted | Linked | [`link`](Vma::link) |
/// | Lazy | Detaching | [`detaching`](Vma::detaching) |
/// | Detaching | Lazy | [`undo`](Vma::undo) |
/// | Lazy, Linked, Detaching | Unfaulted | `unlink` |
///
/// # Invariants
///
/// The VMA is in state `S` and, as in [`Exclusive`], valid, its mm locked, and only the holder changes that.
pub(crate) struct Vma<'a, S> {
    area: &'a Area,
    _state: PhantomData<S>,
}

impl<'a, S> Vma<'a, S> {
    /// To be used where the invariant is established, in this file.
    #[inline]
    fn new(area: &'a Area) -> Self {
        Self {
            area,
            _state: PhantomData,
        }
    }

    /// Whether the anonymous page offset is the address.
    #[inline]
    pub(crate) fn is_natural(&self) -> bool {
        self.area.is_natural()
    }

    /// The lazy root that it has.
    #[inline]
    fn root(&self) -> Option<&'a Root> {
        // SAFETY: By the type invariant only the holder unlinks the VMA.
        unsafe { self.area.lazy_root() }
    }

    /// Whether `root` is the root of the VMA's mm.
    #[inline]
    fn owns(&self, root: &Root) -> bool {
        // SAFETY: By the type invariant, that of `Exclusive`, the VMA is valid, and `mmap_lock` is held.
        unsafe { self.area.mm() }.has_root(root)
    }

    /// Leaves the `anon_vma`; the caller has seen to the list head, and says what the state was.
    #[inline]
    fn unfault(self, from: State) -> Vma<'a, Unfaulted> {
        trace::lazy_vma(
            || self.root().map_or(0, Root::id),
            self.area,
            from,
            State::Unfaulted,
        );
        self.area.anon_vma_field().store(ptr::null_mut(), Relaxed);
        stats::count(Event::Unlinked);
        // INVARIANT: No `anon_vma`, and by the caller no chain: Unfaulted.
        Vma::new(self.area)
    }
}

impl<'a> Vma<'a, Unfaulted> {
    /// Unfaulted to Lazy: `root` is the root of the VMA's mm.
    ///
    /// No lock of the root: a walk that misses the store has a folio that cannot be mapped in this
    /// VMA yet. The release store is before the first PTE, by the page table locks.
    ///
    /// # Errors
    ///
    /// The VMA itself, if it is not natural, or if the root is another: a walk would not find it.
    #[inline]
    pub(crate) fn lazy(self, root: &Root) -> Result<Vma<'a, Lazy>, Self> {
        if !self.is_natural() || !self.owns(root) {
            return Err(self);
        }
        self.area
            .anon_vma_field()
            .store(root.as_anon_vma(), Release);
        stats::count(Event::Lazy);
        trace::lazy_vma(|| root.id(), self.area, State::Unfaulted, State::Lazy);
        // INVARIANT: The list head of an Unfaulted VMA is empty.
        Ok(Vma::new(self.area))
    }

    /// Unfaulted to what cannot be: `root` is that of an ancestor, and there is no link. For the test of that.
    ///
    /// No walk finds the VMA; the root is kept by its descendant, which is that of the VMA's mm.
    #[cfg(CONFIG_KUNIT)]
    pub(crate) fn impossible(self, root: &Root) {
        self.area
            .anon_vma_field()
            .store(root.as_anon_vma(), Release);
    }

    /// Unfaulted to Linked. Walks see all of it or nothing: the lock is held.
    ///
    /// If the root is not that of the VMA's own mm, the link holds a reference to it.
    #[inline]
    pub(crate) fn link(self, lock: &Write<'_>, avc: Avc) -> Vma<'a, Linked> {
        // SAFETY: Unfaulted: the list head is empty, and by the type invariant changed by nobody else.
        unsafe { avc.insert(self.area, lock) };
        self.area
            .anon_vma_field()
            .store(lock.root().as_anon_vma(), Release);
        stats::count(Event::Linked);
        trace::lazy_vma(
            || lock.root().id(),
            self.area,
            State::Unfaulted,
            State::Linked,
        );
        if !self.owns(lock.root()) {
            stats::count(Event::Foreign);
            // Dropped by the core when the VMA is unlinked; who is foreign stays so.
            let _ = lock.root().get().into_raw();
        }
        // INVARIANT: The list head holds one `anon_vma_chain`, of the root that is locked.
        Vma::new(self.area)
    }
}

impl<'a> Vma<'a, Lazy> {
    /// Lazy to Detaching: the VMA is about to leave the VMA tree, with its PTEs. It comes from
    /// [`Leaving`], in that order, or walks would miss VMAs of the list.
    ///
    /// # Errors
    ///
    /// The VMA itself, if the lock is that of another root.
    #[inline]
    pub(crate) fn detaching(self, lock: &Write<'_>) -> Result<Vma<'a, Detaching>, Self> {
        if !lock.root().is(self.area.anon_vma()) {
            return Err(self);
        }
        lock.forget(self.area);
        // SAFETY: The VMA is Lazy, of this root: its list head is empty, and by the type invariant
        // changed by nobody else. Unlinking it, which comes before it is freed, takes it off. VMAs
        // become Detaching in the order of `Leaving`, that of their addresses, and are unlinked
        // before the mm is locked for writing again.
        unsafe { lock.push_detaching(self.area) };
        stats::count(Event::Detaching);
        trace::lazy_vma(
            || lock.root().id(),
            self.area,
            State::Lazy,
            State::Detaching,
        );
        // INVARIANT: On the list of the root that it has.
        Ok(Vma::new(self.area))
    }

    /// Lazy to Unfaulted. The page tables are still there; no walk is in them.
    #[inline]
    pub(crate) fn unlink(self) -> Vma<'a, Unfaulted> {
        match self.root() {
            // A detached mm is entered no more, and whoever was in it when that was done is out.
            Some(root) if root.is_detached() => self.unfault(State::Lazy),
            Some(root) => {
                let lock = root.write();
                lock.forget(self.area);
                self.unfault(State::Lazy)
            }
            None => self.unfault(State::Lazy),
        }
    }
}

impl<'a> Vma<'a, Detaching> {
    /// Detaching to Lazy: munmap failed, and the VMA stays in the tree.
    ///
    /// # Errors
    ///
    /// The VMA itself, if the lock is that of another root.
    #[inline]
    pub(crate) fn undo(self, lock: &Write<'_>) -> Result<Vma<'a, Lazy>, Self> {
        if !lock.root().is(self.area.anon_vma()) {
            return Err(self);
        }
        // SAFETY: The VMA is Detaching, of this root, and by the type invariant nobody else changes
        // its list head.
        unsafe { lock.remove_detaching(self.area) };
        stats::count(Event::Undone);
        trace::lazy_vma(
            || lock.root().id(),
            self.area,
            State::Detaching,
            State::Lazy,
        );
        // INVARIANT: Off the list, with an empty list head; the root is still that of the mm.
        Ok(Vma::new(self.area))
    }

    /// Detaching to Unfaulted.
    #[inline]
    pub(crate) fn unlink(self) -> Vma<'a, Unfaulted> {
        let _lock = self.root().map(|root| {
            let lock = root.write();
            // SAFETY: As in `undo()`.
            unsafe { lock.remove_detaching(self.area) };
            lock
        });
        stats::count(Event::UnlinkedDetaching);
        self.unfault(State::Detaching)
    }
}

impl<'a> Vma<'a, Linked> {
    /// Linked to Unfaulted. Returns the reference that the link held, if the root is foreign.
    ///
    /// It may be the last one, and the last thing that holds the module: it is for the core to drop.
    pub(crate) fn unlink(self) -> (Vma<'a, Unfaulted>, Option<Given>) {
        stats::count(Event::UnlinkedLinked);
        let Some(root) = self.root() else {
            return (self.unfault(State::Linked), None);
        };
        let own = self.owns(root);
        let (avc, vma) = {
            let lock = root.write();
            // SAFETY: Linked, and by the type invariant nobody else changes that.
            let avc = unsafe { Avc::remove(self.area, &lock) };
            (avc, self.unfault(State::Linked))
        };
        drop(avc);
        // SAFETY: The reference that `link()` took, and nobody else has, for a foreign root.
        (vma, (!own).then(|| unsafe { Given::new(root) }))
    }
}

/// An `anon_vma_chain` that is in no tree.
///
/// # Invariants
///
/// The object is allocated, owned by this value, and in no list and no tree.
pub(crate) struct Avc(NonNull<bindings::anon_vma_chain>);

impl Avc {
    /// Allocates one. May sleep, and so before any root is locked.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Process context.
        let avc = unsafe { bindings::anon_vma_chain_alloc(bindings::GFP_KERNEL) };
        // INVARIANT: Just allocated.
        NonNull::new(avc).map(Self).ok_or(ENOMEM)
    }

    /// Puts it on the VMA's list and in the root's interval tree.
    ///
    /// # Safety
    ///
    /// The VMA is valid until it is taken out again; its list head is empty, and the caller alone changes it.
    unsafe fn insert(self, area: &Area, lock: &Write<'_>) {
        let avc = core::mem::ManuallyDrop::new(self).0.as_ptr();
        let anon_vma = lock.root().as_anon_vma();
        // SAFETY: By the type invariant the object is ours; the list head by the safety requirements;
        // the lock protects the interval tree.
        unsafe {
            (*avc).vma = area.as_ptr();
            (*avc).anon_vma = anon_vma;
            bindings::INIT_LIST_HEAD(&raw mut (*avc).same_vma);
            bindings::list_add_tail(&raw mut (*avc).same_vma, area.list_head());
            bindings::anon_rmap_tree_insert(avc, anon_vma);
        }
    }

    /// Takes the one of a VMA out of both. [`None`], and a report, if that has another root.
    ///
    /// # Safety
    ///
    /// The VMA is Linked, and the caller alone changes that.
    unsafe fn remove(area: &Area, lock: &Write<'_>) -> Option<Self> {
        let anon_vma = lock.root().as_anon_vma();
        // SAFETY: By the safety requirements `next` is the list head of an `anon_vma_chain`, which only the
        // caller takes off.
        let avc =
            unsafe { kernel::container_of!(area.chain_next(), bindings::anon_vma_chain, same_vma) };
        // Empty again, whatever it held.
        // SAFETY: As above: nobody else changes the list head.
        unsafe { area.clear_chain() };
        // SAFETY: As above; the lock protects the interval tree.
        unsafe {
            if (*avc).anon_vma != anon_vma || (*avc).vma != area.as_ptr() {
                // Its memory, and what it is linked in, are not ours to guess.
                report_once!(
                    "a Linked VMA has a link of another: root {:08x}, {:x}-{:x}\n",
                    lock.root().id(),
                    area.start(),
                    area.end()
                );
                hold_module();
                return None;
            }
            bindings::anon_rmap_tree_remove(avc, anon_vma);
        }
        // INVARIANT: Out of the list and the tree.
        NonNull::new(avc).map(Self)
    }
}

impl Drop for Avc {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::anon_vma_chain_free(self.0.as_ptr()) };
    }
}
