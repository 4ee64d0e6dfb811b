// SPDX-License-Identifier: GPL-2.0

//! The lazy root: the one `anon_vma` of an mm, its lock, its references, its children.
//!
//! # Lifetime
//!
//! A root is freed when its last reference is dropped: of its mm, of each child root, of each VMA
//! of another mm that is linked to it, and those that KSM, migration and walks borrow. Whoever drops
//! the last one may hold a root's lock, and the memory goes only when nobody holds this root's: the
//! core does that from a work item, and calls [`free`].
//!
//! The memory comes from a `SLAB_TYPESAFE_BY_RCU` cache. Lockless lookups may try to lock or to
//! reference a root that is free, or another one by now: in a free object the rwsem is valid,
//! `->root` points to the object, and the count is zero.

use crate::{
    pure::{
        counters::Event,
        family::{
            Children,
            Family,
            Link,
            Member, //
        },
    },
    report::report_once,
    shim, stats, trace,
    vma::{
        Area,
        Mm, //
    },
};
use core::{
    cell::Cell,
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        new_spinlock,
        static_lock_class,
        SpinLock, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// A lazy root.
///
/// # Invariants
///
/// - `head.anon_vma` has a NULL `parent`, the mark of a lazy root, `root` points to itself, and the
///   rwsem is initialized, from the constructor on, in free objects too.
/// - `head.up` is set before the root is published, and then constant. The root holds a reference to
///   it, and is in the list of its children, until [`free`].
/// - `mm` is written under the rwsem in write mode: NULL once no walk may look into its VMA tree. Until then
///   it is an mm that has this root, whose VMA tree is in RCU mode, and which does not go.
/// - `link` is protected by the lock of the parent's `children`, a leaf: taken with the rwsem held of the
///   root that a walk is at, or with none, and never inside a page table lock.
/// - `detaching` and `last_detaching` are the ends of the list of VMAs that are being unmapped, in
///   the order of their addresses: written under the rwsem in write mode, read in read mode. Its
///   members are valid until they are taken off.
/// - `hint` is NULL or a Lazy VMA of the root, which a walk has found in the VMA tree. Walks set it with
///   the rwsem held; whoever unlinks that VMA, marks it or detaches the mm clears it
///   before, in write mode.
/// - An object that is free (its count is zero, and it is not inside [`RootRef::new`]) has no children,
///   no mm, no hint, no VMA in its interval tree and none on its detaching list.
#[repr(C)]
#[pin_data]
pub(crate) struct Root {
    #[pin]
    head: Opaque<bindings::anon_vma_lazy_root>,
    mm: Atomic<*mut bindings::mm_struct>,
    #[pin]
    children: SpinLock<Children<Root>>,
    link: Link<Root>,
    detaching: Cell<Option<NonNull<Area>>>,
    last_detaching: Cell<Option<NonNull<Area>>>,
    hint: Atomic<*mut Area>,
}

// SAFETY: By the type invariants, each field that is not constant or atomic has a lock.
unsafe impl Send for Root {}

// SAFETY: As above.
unsafe impl Sync for Root {}

// SAFETY: The link is a field.
unsafe impl Member for Root {
    fn link(&self) -> &Link<Self> {
        &self.link
    }
}

impl Root {
    /// Initializes an object when the slab that it is in is made.
    fn construct() -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::ffi_init(|slot: *mut bindings::anon_vma_lazy_root| {
                // SAFETY: The slot is memory for a head. An `anon_vma` of zeroes has no parent, no
                // reference and an empty interval tree; name and class are statics.
                unsafe {
                    ptr::write_bytes(slot, 0, 1);
                    let anon_vma = &raw mut (*slot).anon_vma;
                    (*anon_vma).root = anon_vma;
                    bindings::init_rwsem_class(
                        &raw mut (*anon_vma).rwsem,
                        c"anon_vma_lazy_root".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    );
                }
            }),
            mm: Atomic::new(ptr::null_mut()),
            children <- new_spinlock!(Children::new(), "anon_vma_lazy_children"),
            link: Link::new(),
            detaching: Cell::new(None),
            last_detaching: Cell::new(None),
            hint: Atomic::new(ptr::null_mut()),
        })
    }

    /// The root that this `anon_vma` is a part of.
    ///
    /// # Safety
    ///
    /// `anon_vma` has the mark of a lazy root, and is kept in use for all of `'a`.
    #[inline]
    pub(crate) unsafe fn from_anon_vma<'a>(anon_vma: *mut bindings::anon_vma) -> &'a Self {
        // SAFETY: Only [`RootRef::new`] makes lazy roots, the `anon_vma` is at their start, and by
        // the safety requirements this one is in use.
        unsafe { &*anon_vma.cast() }
    }

    /// The `anon_vma` in it.
    #[inline]
    pub(crate) fn as_anon_vma(&self) -> *mut bindings::anon_vma {
        // SAFETY: Only computes an address.
        unsafe { &raw mut (*self.head.get()).anon_vma }
    }

    /// Whether this is the root that `anon_vma` is a part of.
    #[inline]
    pub(crate) fn is(&self, anon_vma: *mut bindings::anon_vma) -> bool {
        ptr::eq(self.as_anon_vma(), anon_vma)
    }

    #[inline]
    fn rwsem(&self) -> *mut bindings::rw_semaphore {
        // SAFETY: Only computes an address.
        unsafe { &raw mut (*self.as_anon_vma()).rwsem }
    }

    #[inline]
    fn refcount(&self) -> &Atomic<i32> {
        // SAFETY: The count is only accessed atomically, and lives as long as `self`.
        unsafe { Atomic::from_ptr(&raw mut (*self.as_anon_vma()).refcount.counter) }
    }

    /// The parent.
    #[inline]
    pub(crate) fn up(&self) -> Option<&Root> {
        // SAFETY: By the type invariants the pointer is constant, and referenced.
        unsafe { (*self.head.get()).up.cast::<Root>().as_ref() }
    }

    /// The name under which debugfs and tracepoints show it. Any context.
    pub(crate) fn id(&self) -> u32 {
        shim::id(self)
    }

    /// Whichever of this root and its ancestors has this `anon_vma`, which may be stale: it is
    /// compared and not looked into.
    pub(crate) fn ancestor(&self, anon_vma: *mut bindings::anon_vma) -> Option<&Root> {
        let mut at = Some(self);
        while let Some(root) = at {
            if root.is(anon_vma) {
                break;
            }
            at = root.up();
        }
        at
    }

    /// A process that has the root's mm, if it has one still. May sleep; no root's lock may be held.
    pub(crate) fn pid(&self) -> Option<i32> {
        shim::pid(self.read().mm()?)
    }

    /// Calls `each` for the children that are in use, newest first, with no lock held. May sleep, if
    /// `each` does; the caller keeps the module.
    pub(crate) fn for_each_child(&self, mut each: impl FnMut(&Root)) {
        let mut at: Option<RootRef> = None;
        // SAFETY: Borrowed for all of this function.
        let parent = unsafe { Kept::new(self) };
        // SAFETY: Referenced until the next one is found.
        let kept = |child: &RootRef| unsafe { Kept::new(child) };
        // SAFETY: What was found before was in the list of `parent`, and by the type invariants of
        // `Root` it stays a child of `parent`.
        while let Some(child) = unsafe { Tree.pin_child(parent, at.as_ref().map(kept)) } {
            // INVARIANT: Pinned.
            let child = RootRef(child.0);
            each(&child);
            at = Some(child);
        }
    }

    /// The number of roots without an mm among this one and its ancestors.
    ///
    /// No lock: a root that has lost its mm gets no other.
    pub(crate) fn orphans(&self) -> usize {
        let mut count = 0usize;
        let mut at = Some(self);
        while let Some(root) = at {
            if root.mm.load(Relaxed).is_null() {
                count = count.saturating_add(1);
            }
            at = root.up();
        }
        count
    }

    /// Takes a reference, unless the count is zero. Any context.
    ///
    /// Fully ordered: what a walk has read of a parent's page tables without their lock comes before
    /// what it reads of the child's. Pairs with fork, which copies the one to the other, and with
    /// who frees the parent's page table then (`Documentation/locking.rst`).
    #[inline]
    fn try_get(&self) -> bool {
        let count = self.refcount();
        let mut old = count.load(Relaxed);
        while old != 0 {
            match count.cmpxchg(old, old.wrapping_add(1), Full) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
        false
    }

    /// Takes a reference; `self` is in use. Any context.
    pub(crate) fn get(&self) -> RootRef {
        self.refcount().fetch_add(1, Relaxed);
        // INVARIANT: Just taken; `self` holds the module.
        RootRef(NonNull::from(self))
    }

    /// Drops a reference, such as [`Tree`] takes. Any context: at zero the core queues the root.
    ///
    /// # Safety
    ///
    /// The caller owns the reference, and something else keeps the module.
    pub(crate) unsafe fn unpin(root: NonNull<Root>) {
        // SAFETY: In use, by the safety requirements.
        let anon_vma = unsafe { root.as_ref() };
        if anon_vma.refcount().fetch_sub(1, Full) == 1 {
            // SAFETY: That was the last reference, which the core is to be told once.
            unsafe { bindings::__put_anon_vma(anon_vma.as_anon_vma()) };
        }
    }

    /// Locks in write mode. May sleep; no other root's lock may be held.
    #[inline]
    pub(crate) fn write(&self) -> Write<'_> {
        // SAFETY: The rwsem is initialized, by the type invariants.
        unsafe { bindings::down_write(self.rwsem()) };
        // INVARIANT: Just locked.
        Write(self, NotThreadSafe)
    }

    /// Locks in read mode. May sleep; the lock of an ancestor may be held in write mode.
    #[inline]
    pub(crate) fn read(&self) -> Read<'_> {
        // SAFETY: The rwsem is initialized, by the type invariants. Subclass 1 (one that is nested
        // in another): __folio_split() keeps the lock of the root that its walk begins with.
        unsafe { bindings::down_read_nested(self.rwsem(), 1) };
        // INVARIANT: Just locked.
        Read(self, NotThreadSafe)
    }

    /// Locks in read mode, unless somebody holds it in write mode or waits. Any context.
    #[inline]
    pub(crate) fn try_read(&self) -> Option<Read<'_>> {
        // SAFETY: The rwsem is initialized, by the type invariants.
        let locked = unsafe { bindings::down_read_trylock(self.rwsem()) } != 0;
        // INVARIANT: Just locked.
        locked.then(|| Read(self, NotThreadSafe))
    }

    /// Whether no walk looks into the VMA tree of the mm any more. Never false again once it is true.
    #[inline]
    pub(crate) fn is_detached(&self) -> bool {
        self.mm.load(Acquire).is_null()
    }
}

/// An owned reference to a root.
///
/// # Invariants
///
/// The value owns one reference: the root is in use until that is dropped. Until then something else
/// holds the module, too: another root, the core's SRCU read-side section, or the caller.
pub(crate) struct RootRef(NonNull<Root>);

impl Deref for RootRef {
    type Target = Root;

    #[inline]
    fn deref(&self) -> &Root {
        // SAFETY: In use, by the type invariant.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for RootRef {
    fn drop(&mut self) {
        // SAFETY: By both halves of the type invariant. Where the second may not hold, the reference
        // is given to the core: see `Given`.
        unsafe { Root::unpin(self.0) };
    }
}

impl RootRef {
    /// Makes a root for `mm`, a child of `up` if there is one, whose children it joins. The
    /// reference is that of the mm. May sleep.
    ///
    /// # Safety
    ///
    /// The caller gives the root to `mm`, or detaches it before it drops it: walks that come by `up` look
    /// into the VMA tree of `mm` from here on.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; [`ENODEV`] if the module is being unloaded.
    pub(crate) unsafe fn new(mm: &Mm, up: Option<&Root>) -> Result<Self> {
        // SAFETY: `OWNER` is this module, whose text runs. The core puts it when the root is freed.
        if !unsafe { bindings::try_module_get(crate::hooks::OWNER) } {
            return Err(ENODEV);
        }
        let cache = CACHE.load(Relaxed);
        // SAFETY: The cache exists for as long as the operations are registered. Process context.
        let object = unsafe { bindings::kmem_cache_alloc_noprof(cache, bindings::GFP_KERNEL) };
        let Some(root) = NonNull::new(object.cast::<Root>()) else {
            // SAFETY: Taken above. Something else keeps the module, see `drop`.
            unsafe { bindings::module_put(crate::hooks::OWNER) };
            return Err(ENOMEM);
        };
        // SAFETY: The constructor has initialized the object, and nobody else has it yet: lockless
        // lookups fail while its count is zero.
        let this = unsafe { root.as_ref() };
        // SAFETY: By the type invariants the rwsem is initialized, in free objects too.
        unsafe { shim::taken_by_reclaim(this.rwsem()) };
        // INVARIANT: The count is zero and the root in no list: this is the only function that has it,
        // and by the safety requirements it lets the mm go by `Write::detach()` only.
        this.mm.store(mm.as_ptr(), Relaxed);
        // SAFETY: As above: nobody reads the pointer yet.
        unsafe { (*this.head.get()).up = ptr::null_mut() };
        if let Some(up) = up {
            // The child's reference, which the core drops after `free()`.
            let up = core::mem::ManuallyDrop::new(up.get());
            // SAFETY: As above.
            unsafe { (*this.head.get()).up = up.head.get() };
        }
        trace::lazy_root_new(this);
        // Lockless lookups may take references from here on.
        this.refcount().store(1, Release);
        if let Some(up) = this.up() {
            // SAFETY: In no list yet; `free()` takes it off.
            unsafe { up.children.lock().push_front(root) };
            stats::count(Event::RootFork);
            trace::lazy_root_link(this);
        }
        stats::count(Event::RootNew);
        // INVARIANT: The count is one. `up` holds the module, or else the caller is in the core's SRCU
        // read-side section.
        Ok(Self(root))
    }

    /// Gives the reference away, as a pointer to the `anon_vma`.
    pub(crate) fn into_raw(self) -> *mut bindings::anon_vma {
        core::mem::ManuallyDrop::new(self).as_anon_vma()
    }
}

/// A reference that is given to the core, which drops it: it may be the last one, and the last thing
/// that holds the module.
///
/// # Invariants
///
/// The value stands for one reference to the root.
#[must_use = "the core has to drop the reference"]
pub(crate) struct Given(NonNull<Root>);

impl Given {
    /// Gives a reference away.
    ///
    /// # Safety
    ///
    /// The caller owns a reference to `root`, and does not use it any more.
    #[inline]
    pub(crate) unsafe fn new(root: &Root) -> Self {
        // INVARIANT: By the safety requirements.
        Self(NonNull::from(root))
    }

    /// The `anon_vma`, for the core.
    #[inline]
    pub(crate) fn into_raw(self) -> *mut bindings::anon_vma {
        // SAFETY: In use, by the type invariant.
        unsafe { self.0.as_ref() }.as_anon_vma()
    }
}

/// Frees a root: `anon_vma_lazy_ops.free`.
///
/// # Safety
///
/// `anon_vma` is a lazy root whose last reference is gone, and nobody holds its lock.
pub(crate) unsafe fn free(anon_vma: *mut bindings::anon_vma) {
    // SAFETY: By the safety requirements: not in use, but still ours.
    let root = unsafe { Root::from_anon_vma(anon_vma) };
    if let Some(up) = root.up() {
        // SAFETY: `RootRef::new()` put it there.
        unsafe { up.children.lock().remove(NonNull::from(root)) };
    }
    // SAFETY: Nobody else has the root: the interval tree does not change.
    let linked = !unsafe { (*anon_vma).rb_root.rb_root.rb_node }.is_null();
    let in_use = linked
        || !root.is_detached()
        || !root.children.lock().is_empty()
        || !root.hint.load(Relaxed).is_null()
        || root.detaching.get().is_some();
    if in_use {
        // Whoever uses it has no reference. Rather lose the memory than hand it out again.
        report_once!(
            "root {:08x} is freed while in use: links {}, detached {}, children {}, hint {}, detaching {}\n",
            root.id(),
            linked,
            root.is_detached(),
            !root.children.lock().is_empty(),
            !root.hint.load(Relaxed).is_null(),
            root.detaching.get().is_some()
        );
        hold_module();
        return;
    }
    stats::count(Event::RootFree);
    trace::lazy_root_free(root);
    // SAFETY: From this cache, in the state that the constructor left: see the type invariants.
    unsafe { bindings::kmem_cache_free(CACHE.load(Relaxed), anon_vma.cast()) };
}

/// Keeps the module for good: something is left of which nobody knows who uses it. The caller has
/// reported what.
pub(crate) fn hold_module() {
    pr_err!("the module stays for good: see the report above; reboot to be rid of it\n");
    // SAFETY: `OWNER` is this module, whose text runs. If it is going already, nothing helps.
    let _ = unsafe { bindings::try_module_get(crate::hooks::OWNER) };
}

/// A root's lock, held in write mode.
///
/// # Invariants
///
/// The rwsem of the root is held in write mode.
pub(crate) struct Write<'a>(&'a Root, NotThreadSafe);

impl<'a> Write<'a> {
    /// The root.
    #[inline]
    pub(crate) fn root(&self) -> &'a Root {
        self.0
    }

    /// From here on no walk looks into the VMA tree of the mm. VMAs that are Linked are still found, until
    /// they are unlinked, which takes the lock.
    pub(crate) fn detach(&self) {
        // INVARIANT: The lock is held in write mode: no visit is in the mm. The hint goes first, as Lazy
        // VMAs of a detached root are unlinked without the lock, and do not clear it.
        self.0.hint.store(ptr::null_mut(), Relaxed);
        self.0.mm.store(ptr::null_mut(), Release);
        stats::count(Event::RootDetach);
        trace::lazy_root_detach(self.0);
    }

    /// The VMA is about to be Lazy no more.
    #[inline]
    pub(crate) fn forget(&self, area: &Area) {
        if ptr::eq(self.0.hint.load(Relaxed), area) {
            self.0.hint.store(ptr::null_mut(), Relaxed);
        }
    }

    /// Puts a VMA at the end of the detaching list.
    ///
    /// `munmap` adds VMAs and unlinks them in the order of their addresses, so that taking off the
    /// first one is all that removal does.
    ///
    /// # Safety
    ///
    /// The VMA has this root, its list head is empty and changed by nobody else, and it stays valid
    /// until it is taken off. It lies behind all that are on the list.
    pub(crate) unsafe fn push_detaching(&self, area: &Area) {
        // The end of the list, and the mark of its members, is the root itself.
        // INVARIANT: By the safety requirements the list stays in order, and its members valid.
        // SAFETY: By the safety requirements.
        unsafe { area.set_chain(self.0.mark(), self.0.mark()) };
        match self.0.last_detaching.get() {
            // SAFETY: By the type invariants of `Root` members are valid; the lock is held.
            Some(last) => unsafe { last.as_ref().set_chain(area.list_head(), self.0.mark()) },
            None => self.0.detaching.set(Some(NonNull::from(area))),
        }
        self.0.last_detaching.set(Some(NonNull::from(area)));
    }

    /// Takes a VMA off the detaching list, and leaves its list head empty.
    ///
    /// # Safety
    ///
    /// The VMA is in use, and nobody else changes its list head. That it is on the list is looked up;
    /// it is reported if it is not.
    pub(crate) unsafe fn remove_detaching(&self, area: &Area) {
        let mut prev: Option<NonNull<Area>> = None;
        let mut at = self.0.detaching.get();
        while let Some(member) = at {
            // SAFETY: By the type invariants of `Root` members are valid.
            let next = unsafe { self.0.next_detaching(member.as_ref()) };
            if ptr::eq(member.as_ptr(), area) {
                let after = next.map_or(self.0.mark(), |next| next.list_head());
                match prev {
                    // SAFETY: As above; the lock is held.
                    Some(prev) => unsafe { prev.as_ref().set_chain(after, self.0.mark()) },
                    None => self.0.detaching.set(next.map(NonNull::from)),
                }
                if next.is_none() {
                    self.0.last_detaching.set(prev);
                }
                // SAFETY: By the safety requirements.
                unsafe { area.clear_chain() };
                return;
            }
            prev = at;
            at = next.map(NonNull::from);
        }
        report_once!(
            "a Detaching VMA is not on the list of root {:08x}: {:x}-{:x}\n",
            self.0.id(),
            area.start(),
            area.end()
        );
        hold_module();
        // SAFETY: By the safety requirements.
        unsafe { area.clear_chain() };
    }
}

impl Drop for Write<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: Held in write mode, by the type invariant.
        unsafe { bindings::up_write(self.0.rwsem()) };
    }
}

/// A root's lock, held in read mode or in write mode.
///
/// # Invariants
///
/// The rwsem of the root is held.
pub(crate) struct Read<'a>(&'a Root, NotThreadSafe);

impl<'a> Read<'a> {
    /// Takes over a lock that is held. It is dropped with the value.
    ///
    /// # Safety
    ///
    /// The caller holds the root's lock for reading, and gives it away; or in any mode, and the value is
    /// never dropped.
    #[inline]
    pub(crate) unsafe fn adopt(root: &'a Root) -> Self {
        // INVARIANT: By the safety requirements.
        Self(root, NotThreadSafe)
    }

    /// The root.
    #[inline]
    pub(crate) fn root(&self) -> &'a Root {
        self.0
    }

    /// The mm, unless it is gone. It stays for as long as the lock is held.
    #[inline]
    pub(crate) fn mm(&self) -> Option<&Mm> {
        // SAFETY: `exit_mmap()` detaches the root under the lock in write mode before the mm goes.
        unsafe { self.0.mm.load(Relaxed).cast::<Mm>().as_ref() }
    }

    /// The VMA that a walk has found last, if it covers all addresses from `start` to `last`: nothing
    /// else in the VMA tree does then, and it is the root's as long as the lock is held.
    ///
    /// One that was merged with its neighbour may be out of the tree and not unlinked yet, as it may be
    /// in the interval tree of an ordinary `anon_vma` then: see `Documentation/locking.rst`.
    #[inline]
    pub(crate) fn hint(&self, start: usize, last: usize) -> Option<&Area> {
        // SAFETY: By the type invariants of `Root` a Lazy VMA, which is not unlinked meanwhile.
        let area = unsafe { self.0.hint.load(Acquire).as_ref() }?;
        (area.start() <= start && area.end() > last).then_some(area)
    }

    /// Remembers a Lazy VMA of this root that was found in the VMA tree.
    ///
    /// Release, for another reader of the lock: what this walk has seen of the VMA is seen by who gets
    /// it from here.
    ///
    /// # Safety
    ///
    /// The VMA is Lazy and of this root, and was found under this hold of the lock.
    #[inline]
    pub(crate) unsafe fn remember(&self, area: &Area) {
        // INVARIANT: By the safety requirements; the lock is held.
        self.0.hint.store(ptr::from_ref(area).cast_mut(), Release);
    }

    /// Whether there is any VMA in the interval tree.
    #[inline]
    pub(crate) fn has_links(&self) -> bool {
        // SAFETY: The lock protects the tree, and `mm_take_all_locks()` marks it in write mode.
        !unsafe { (*self.0.as_anon_vma()).rb_root.rb_root.rb_node }.is_null()
    }

    /// The first VMA on the detaching list.
    #[inline]
    pub(crate) fn first_detaching(&self) -> Option<&Area> {
        // SAFETY: By the type invariants of `Root` members are valid, and the lock keeps them there.
        self.0.detaching.get().map(|area| unsafe { area.as_ref() })
    }

    /// The VMAs on the detaching list, by address.
    pub(crate) fn detaching(&self) -> impl Iterator<Item = &Area> {
        core::iter::successors(self.first_detaching(), |area| {
            // SAFETY: Found on the list under this hold of the lock.
            unsafe { self.next_detaching(area) }
        })
    }

    /// Whether VMAs on the detaching list, which are in the order of their addresses, may cover one of
    /// those from `start` to `last`.
    #[inline]
    pub(crate) fn may_be_detaching(&self, start: usize, last: usize) -> bool {
        let ends = self.0.detaching.get().zip(self.0.last_detaching.get());
        // SAFETY: By the type invariants of `Root` members are valid, and the lock keeps them there.
        ends.is_some_and(|ends| unsafe {
            ends.0.as_ref().start() <= last && ends.1.as_ref().end() > start
        })
    }

    /// The one behind `area`.
    ///
    /// # Safety
    ///
    /// `area` is on the list: found there under this hold of the lock.
    #[inline]
    pub(crate) unsafe fn next_detaching(&self, area: &Area) -> Option<&Area> {
        // SAFETY: By the safety requirements.
        unsafe { self.0.next_detaching(area) }
    }
}

impl Drop for Read<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: Held, by the type invariant; those that hold it in write mode keep it.
        unsafe { bindings::up_read(self.0.rwsem()) };
    }
}

impl Root {
    /// What `vma->anon_vma_chain.prev` is in a VMA on the detaching list.
    #[inline]
    pub(crate) fn mark(&self) -> *mut bindings::list_head {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The one behind `area` on the detaching list.
    ///
    /// # Safety
    ///
    /// `area` is on the list, and the lock is held.
    unsafe fn next_detaching(&self, area: &Area) -> Option<&Area> {
        let next = area.chain_next();
        if next == self.mark() {
            return None;
        }
        // SAFETY: A member of the list points to the list head of the next one, which is valid.
        Some(unsafe { Area::from_chain(next) })
    }
}

/// A root that a walk is at, or has come by.
///
/// # Invariants
///
/// The root is in use: it, or a descendant, is pinned, or the caller of the walk keeps it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Kept(NonNull<Root>);

impl Kept {
    /// Names a root.
    ///
    /// # Safety
    ///
    /// It is kept for as long as there is a copy of this value that is used.
    #[inline]
    pub(crate) unsafe fn new(root: &Root) -> Self {
        // INVARIANT: By the safety requirements.
        Self(NonNull::from(root))
    }

    /// The root.
    #[inline]
    pub(crate) fn as_ptr(self) -> NonNull<Root> {
        self.0
    }
}

impl Deref for Kept {
    type Target = Root;

    #[inline]
    fn deref(&self) -> &Root {
        // SAFETY: In use, by the type invariant.
        unsafe { self.0.as_ref() }
    }
}

/// The tree of roots, for the order of a walk.
pub(crate) struct Tree;

impl Family for Tree {
    type Root = Kept;

    fn parent(&self, root: Kept) -> Option<Kept> {
        // INVARIANT: What keeps a root keeps its ancestors.
        root.up().map(|up| Kept(NonNull::from(up)))
    }

    unsafe fn pin_child(&self, parent: Kept, after: Option<Kept>) -> Option<Kept> {
        let children = parent.children.lock();
        // SAFETY: By the safety requirements `after` is a child of `parent`; it is in its list for as
        // long as it is in use.
        let child = unsafe { children.pin_next(after.map(Kept::as_ptr), Root::try_get) };
        // INVARIANT: Pinned just now.
        child.map(Kept)
    }
}

/// The cache that roots come from.
static CACHE: Atomic<*mut bindings::kmem_cache> = Atomic::new(ptr::null_mut());

/// The cache exists for as long as this lives.
///
/// # Invariants
///
/// The pointer is what `kmem_cache_create()` returned, and not NULL.
pub(crate) struct Cache(NonNull<bindings::kmem_cache>);

// SAFETY: Caches may be used and destroyed by any thread.
unsafe impl Send for Cache {}

// SAFETY: A shared reference gives access to nothing.
unsafe impl Sync for Cache {}

impl Cache {
    /// Makes the cache. May sleep.
    ///
    /// # Safety
    ///
    /// Only one may exist, and it must be dropped before the module is unloaded, when there are no
    /// roots.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) unsafe fn new() -> Result<Self> {
        let mut args: bindings::kmem_cache_args = pin_init::zeroed();
        args.ctor = Some(construct);
        let flags = 1 << bindings::_slab_flag_bits__SLAB_TYPESAFE_BY_RCU;
        // A root belongs to the process that takes the fault, or forks.
        #[cfg(CONFIG_MEMCG)]
        let flags = flags | 1 << bindings::_slab_flag_bits__SLAB_ACCOUNT;
        // SAFETY: The name is a static; the constructor initializes an object of this size.
        let cache = unsafe {
            bindings::__kmem_cache_create_args(
                c"anon_vma_lazy_root".as_char_ptr(),
                core::mem::size_of::<Root>() as c_uint,
                &raw mut args,
                flags,
            )
        };
        let cache = NonNull::new(cache).ok_or(ENOMEM)?;
        CACHE.store(cache.as_ptr(), Relaxed);
        // INVARIANT: Checked.
        Ok(Self(cache))
    }
}

impl Drop for Cache {
    /// Destroys the cache, after what RCU readers may still look at. May sleep.
    fn drop(&mut self) {
        // SAFETY: By the type invariant; by the requirements of `new()` all objects are free.
        unsafe { bindings::kmem_cache_destroy(self.0.as_ptr()) };
    }
}

/// The constructor of the cache.
///
/// # Safety
///
/// To be called by the slab allocator only: `object` is memory for a [`Root`].
unsafe extern "C" fn construct(object: *mut c_void) {
    // SAFETY: By the safety requirements; the memory does not move.
    let done: Result<(), core::convert::Infallible> =
        unsafe { Root::construct().__init(object.cast::<Root>()) };
    let Ok(()) = done;
}
