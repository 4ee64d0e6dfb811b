// SPDX-License-Identifier: GPL-2.0

//! Fork, walk, munmap, exit and free, in every interleaving that loom makes of them.
//!
//! An mm is reduced to one page: an entry under its page table lock, a VMA in a tree that is read
//! without a lock, and its root. The list of children and the order of the walk are the module's
//! own ([`family`]); locks, counts and memory are loom's, so that a use of freed memory, a missing
//! order between two accesses and a deadlock are found too.
//!
//! A walk restores migration entries: an entry that is one when the walk begins, or is copied from
//! one, must not be one when the walk has ended. (Unmapping is the same with the names exchanged.)
//!
//! Each rule of the protocol can be broken ([`Wrong`]), and each breach has to be found.

use crate::pure::family::{
    self,
    Children,
    Family,
    Link,
    Member, //
};
use loom::{
    cell::UnsafeCell,
    model::Builder,
    sync::{
        atomic::{
            fence,
            AtomicBool,
            AtomicUsize,
            Ordering::{
                AcqRel,
                Acquire,
                Relaxed,
                Release,
                SeqCst, //
            }, //
        },
        Mutex,
        RwLock,
        RwLockReadGuard, //
    },
    thread, //
};
use std::{
    panic::{
        catch_unwind,
        AssertUnwindSafe, //
    },
    ptr::NonNull,
    sync::{
        atomic::AtomicU64,
        Arc,
        Mutex as StdMutex, //
    },
    time::Instant, //
};

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// Fork copies the page tables before it puts the child's root on the list.
    CopyBeforeLink,
    /// Fork copies the page tables before the VMA is in the child's tree.
    CopyBeforeTree,
    /// The walk looks at the list of children before it visits the parent.
    ListBeforeVisit,
    /// The walk visits children before their parent.
    ChildrenFirst,
    /// The walk reads the list of children without the lock that fork links under.
    ListWithoutLock,
    /// Whatever order that gives, who reads the list must not meet who changes it.
    ListWhileChanged,
    /// exit leaves the root before it zaps.
    DetachBeforeZap,
    /// exit frees its VMAs before it leaves the root.
    DetachTooLate,
    /// A fork that fails leaves the child's root before it zaps.
    FailDetachesFirst,
    /// It frees the child's VMAs before it leaves the root.
    FailDetachesLast,
    /// A root that is freed stays on the list of its parent.
    StaysOnList,
    /// The page table of a foreign VMA is copied before it is linked.
    ForeignBeforeLink,
    /// A foreign VMA holds no reference to its root.
    ForeignWithoutReference,
    /// A visit looks at foreign VMAs before the one in the VMA tree.
    ForeignFirst,
    /// A visit does not order what it has read before with what it reads of a foreign VMA.
    ForeignWithoutOrder,
    /// A walk that only tries skips the children of a root that is contended.
    SkippedWithChildren,
    /// It drops the pin on such a root before it goes on to the next.
    SkippedUnpinned,
    /// munmap takes the VMA out of the tree, and puts it on no list.
    NoDetachingList,
    /// munmap frees page tables before it unlinks the VMA.
    UnlinkTooLate,
    /// Who drops the last reference frees at once, also under the lock of a root.
    FreeUnderRootLock,
    /// Freeing does not wait for those who hold the root's lock.
    NoHandshake,
    /// A child is pinned whether or not its count is zero.
    PinUnconditionally,
    /// Pinning a child does not order what was read before with what is read then.
    PinWithoutOrder,
    /// A child holds no reference to its parent.
    NoParentReference,
    /// The walk leaves the first root before it has pinned the next.
    UnlockBeforePin,
    /// A VMA that was found is not looked up again.
    NoSecondLookup,
    /// Nor this, and a copy has the root of its source until it is cloned.
    CopyCarriesRoot,
    /// It is looked up where it lies by then, and need not be the first one again.
    SecondLookupByStart,
    /// A VMA is unlinked, and stays the one that walks try first.
    HintKept,
    /// Who remembers a VMA for other walks does not say what it has seen of it.
    HintWithoutRelease,
}

/// What a page table has for the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    None,
    Mapped,
    Migration,
}

/// What the lock of a root protects.
struct Locked {
    /// Whether walks look into the mm.
    attached: bool,
    /// Whether its VMA is on the detaching list.
    detaching: bool,
    /// The mms that have a foreign VMA in the interval tree, in the order in which it has them.
    foreign: Vec<usize>,
}

/// The root of one mm.
struct Root {
    id: usize,
    link: Link<Root>,
    /// The lock of the list, and the list.
    lock: Mutex<()>,
    children: UnsafeCell<Children<Root>>,
    /// The newest child: what a reader without the lock would see of the list.
    newest: AtomicUsize,
    up: UnsafeCell<Option<usize>>,
    count: AtomicUsize,
    rwsem: RwLock<Locked>,
    /// Whether somebody has it for writing.
    contended: AtomicBool,
    freed: UnsafeCell<bool>,
}

// SAFETY: What is not atomic has a lock, or is a cell that loom watches.
unsafe impl Send for Root {}

// SAFETY: As above.
unsafe impl Sync for Root {}

// SAFETY: The link is a field.
unsafe impl Member for Root {
    fn link(&self) -> &Link<Self> {
        &self.link
    }
}

/// An mm with one page.
struct Mm {
    /// Whether the VMA is in the tree, which is read without a lock.
    in_tree: AtomicBool,
    /// Whether there is a page table at all; also read without a lock.
    table: AtomicBool,
    /// The levels above it, which who looks for it goes through.
    upper: UnsafeCell<()>,
    entry: Mutex<Entry>,
    freed: UnsafeCell<bool>,
}

// SAFETY: What is not atomic has a lock, or is a cell that loom watches.
unsafe impl Send for Mm {}

// SAFETY: As above.
unsafe impl Sync for Mm {}

/// The value of `Root::newest` for a list that is empty.
const NOBODY: usize = usize::MAX;

struct World {
    wrong: Option<Wrong>,
    roots: Vec<Root>,
    mms: Vec<Mm>,
    /// Whether there is a walk that only tries to get locks.
    trying: bool,
    /// Roots without a reference, for the work item.
    dead: Mutex<Vec<usize>>,
    /// The walk has ended, and the old folio is free.
    ended: AtomicBool,
    /// The first thing that went wrong. Told at the end, when no lock is held.
    complaint: StdMutex<Option<String>>,
}

/// The tree of roots as the walk sees it.
struct Tree<'a>(&'a World);

impl Family for Tree<'_> {
    type Root = usize;

    fn parent(&self, root: usize) -> Option<usize> {
        self.0.root(root).up()
    }

    unsafe fn pin_child(&self, parent: usize, after: Option<usize>) -> Option<usize> {
        let world = self.0;
        let parent = world.root(parent);
        if world.wrong == Some(Wrong::ListWithoutLock) {
            let newest = parent.newest.load(Relaxed);
            // The scenario of this breach has one child.
            return (after.is_none() && newest != NOBODY && world.roots[newest].try_get(true))
                .then_some(newest);
        }
        let after = after.map(|root| NonNull::from(world.root(root)));
        let pin = |root: &Root| {
            // Those that are passed over are looked at, too.
            let root = world.root(root.id);
            if world.wrong == Some(Wrong::PinUnconditionally) {
                root.count.fetch_add(1, AcqRel);
                true
            } else {
                root.try_get(world.wrong != Some(Wrong::PinWithoutOrder))
            }
        };
        let lock = world.wrong != Some(Wrong::ListWhileChanged);
        let _lock = lock.then(|| parent.lock.lock().unwrap());
        // SAFETY: Roots live as long as the world; `after` is pinned, or a descendant of it is, so
        // that it is in the list. The lock is held; loom checks that.
        let child = parent
            .children
            .with(|list| unsafe { (*list).pin_next(after, pin) });
        // SAFETY: As above.
        child.map(|root| unsafe { root.as_ref() }.id)
    }
}

impl Root {
    fn new(id: usize) -> Self {
        Self {
            id,
            link: Link::new(),
            lock: Mutex::new(()),
            children: UnsafeCell::new(Children::new()),
            newest: AtomicUsize::new(NOBODY),
            up: UnsafeCell::new(None),
            count: AtomicUsize::new(0),
            rwsem: RwLock::new(Locked {
                attached: true,
                detaching: false,
                foreign: Vec::new(),
            }),
            contended: AtomicBool::new(false),
            freed: UnsafeCell::new(false),
        }
    }

    fn up(&self) -> Option<usize> {
        // SAFETY: Written before the root is published. loom checks just that.
        self.up.with(|up| unsafe { *up })
    }

    /// loom lets nobody else go on just before a lock is released, and so shows none that is held
    /// for nothing. Who holds it says so.
    fn try_read(&self) -> Option<RwLockReadGuard<'_, Locked>> {
        let free = !self.contended.load(Relaxed);
        free.then(|| self.rwsem.try_read().ok()).flatten()
    }

    fn try_get(&self, full: bool) -> bool {
        let mut old = self.count.load(Relaxed);
        while old != 0 {
            match self.count.compare_exchange(old, old + 1, AcqRel, Relaxed) {
                Ok(_) => {
                    // An atomic of the kernel that is fully ordered.
                    if full {
                        fence(SeqCst);
                    }
                    return true;
                }
                Err(now) => old = now,
            }
        }
        false
    }
}

impl World {
    /// `mms` mms, of which the first has a migration entry and, for its root, `references`.
    fn new(wrong: Option<Wrong>, mms: usize, references: usize) -> Arc<Self> {
        Self::with(wrong, (mms, mms), references, false)
    }

    /// The same; those behind `roots` have no root of their own, and a walk may be `trying`.
    fn with(
        wrong: Option<Wrong>,
        (mms, roots): (usize, usize),
        references: usize,
        trying: bool,
    ) -> Arc<Self> {
        let world = Arc::new(Self {
            wrong,
            trying,
            roots: (0..roots).map(Root::new).collect(),
            mms: (0..mms)
                .map(|id| Mm {
                    in_tree: AtomicBool::new(id == 0),
                    table: AtomicBool::new(id == 0),
                    upper: UnsafeCell::new(()),
                    entry: Mutex::new(if id == 0 {
                        Entry::Migration
                    } else {
                        Entry::None
                    }),
                    freed: UnsafeCell::new(false),
                })
                .collect(),
            dead: Mutex::new(Vec::new()),
            ended: AtomicBool::new(false),
            complaint: StdMutex::new(None),
        });
        world.roots[0].count.store(references, Release);
        world
    }

    fn complain(&self, what: impl Into<String>) {
        self.complaint
            .lock()
            .unwrap()
            .get_or_insert_with(|| what.into());
    }

    /// A root that the caller believes to be in use.
    fn root(&self, id: usize) -> &Root {
        let root = &self.roots[id];
        // SAFETY: loom reports a write that is not ordered with this.
        if root.freed.with(|freed| unsafe { *freed }) {
            self.complain(format!("root {id} is used, and is free"));
        }
        root
    }

    /// An mm that the caller believes to exist.
    fn mm(&self, id: usize) -> &Mm {
        let mm = &self.mms[id];
        // SAFETY: As above.
        if mm.freed.with(|freed| unsafe { *freed }) {
            self.complain(format!("mm {id} is used, and is free"));
        }
        mm
    }

    fn copy(&self, parent: usize, child: usize) {
        // Both page table locks.
        let from = self.mm(parent).entry.lock().unwrap();
        let mut to = self.mm(child).entry.lock().unwrap();
        if *from != Entry::None {
            self.mm(child).table.store(true, Relaxed);
        }
        *to = *from;
    }

    fn link(&self, parent: usize, child: usize) {
        let (parent, child) = (self.root(parent), &self.roots[child]);
        if self.wrong != Some(Wrong::NoParentReference) {
            parent.count.fetch_add(1, Relaxed);
        }
        // SAFETY: The child is not published yet; loom checks that.
        child.up.with_mut(|up| unsafe { *up = Some(parent.id) });
        child.count.store(1, Release);
        let _lock = parent.lock.lock().unwrap();
        // SAFETY: In no list yet, and the roots live as long as the world. The lock is held.
        parent
            .children
            .with_mut(|list| unsafe { (*list).push_front(NonNull::from(child)) });
        if self.wrong == Some(Wrong::ListWithoutLock) {
            parent.newest.store(child.id, Release);
        }
    }

    /// `parent` forks `child`.
    fn fork(&self, parent: usize, child: usize) {
        let store = || self.mm(child).in_tree.store(true, Release);
        match self.wrong {
            Some(Wrong::CopyBeforeLink) => {
                store();
                self.copy(parent, child);
                self.link(parent, child);
            }
            Some(Wrong::CopyBeforeTree) => {
                self.link(parent, child);
                self.copy(parent, child);
                store();
            }
            _ => {
                self.link(parent, child);
                store();
                self.copy(parent, child);
            }
        }
    }

    /// The same, which fails: behind the copy or, if not `stored`, before the VMA is in the tree.
    fn fork_fails(&self, parent: usize, child: usize, stored: bool) {
        self.link(parent, child);
        if stored {
            self.mm(child).in_tree.store(true, Release);
            self.copy(parent, child);
        }
        self.leave(child, Wrong::FailDetachesFirst, Wrong::FailDetachesLast);
    }

    /// `parent` forks `child`, whose VMA is linked to `root`.
    fn fork_foreign(&self, parent: usize, child: usize, root: usize) {
        let link = || {
            let root = self.root(root);
            if self.wrong != Some(Wrong::ForeignWithoutReference) {
                root.count.fetch_add(1, Relaxed);
            }
            root.rwsem.write().unwrap().foreign.push(child);
        };
        if self.wrong == Some(Wrong::ForeignBeforeLink) {
            self.copy(parent, child);
            link();
        } else {
            link();
            self.copy(parent, child);
        }
    }

    /// `mm` exits, whose VMA is linked to `root`.
    fn exit_foreign(&self, mm: usize, root: usize) {
        self.zap(mm);
        let linked = |other: &usize| *other != mm;
        let lock = &self.root(root).rwsem;
        lock.write().unwrap().foreign.retain(linked);
        self.free_mm(mm);
        if self.wrong != Some(Wrong::ForeignWithoutReference) {
            self.put(root);
        }
    }

    /// Clears the entry of `mm`.
    fn zap(&self, mm: usize) {
        let mut entry = self.mm(mm).entry.lock().unwrap();
        if *entry == Entry::Migration && self.ended.load(Acquire) {
            self.complain(format!("mm {mm} zaps a migration entry of a free folio"));
        }
        *entry = Entry::None;
    }

    /// The root is taken from its mm.
    fn detach(&self, mm: usize) {
        let root = self.root(mm);
        let mut lock = root.rwsem.write().unwrap();
        if self.trying {
            root.contended.store(true, Relaxed);
            root.contended.store(false, Relaxed);
        }
        lock.attached = false;
    }

    /// The last thread of `mm` exits.
    fn exit(&self, mm: usize) {
        self.leave(mm, Wrong::DetachBeforeZap, Wrong::DetachTooLate);
    }

    /// All that `mm` has is freed. It leaves its root between the entry and the rest or, if one of
    /// these rules is broken, before or behind that.
    fn leave(&self, mm: usize, early: Wrong, late: Wrong) {
        if self.wrong == Some(early) {
            self.detach(mm);
        }
        self.zap(mm);
        if self.wrong == Some(late) {
            self.free_mm(mm);
            self.detach(mm);
        } else if self.wrong == Some(early) {
            self.free_mm(mm);
        } else {
            self.detach(mm);
            self.free_mm(mm);
        }
        self.put(mm);
    }

    fn free_mm(&self, mm: usize) {
        self.mms[mm].in_tree.store(false, Release);
        // SAFETY: loom reports an access that is not ordered with this.
        self.mms[mm]
            .freed
            .with_mut(|freed| unsafe { *freed = true });
    }

    /// `mm` unmaps its page, and lives on.
    fn munmap(&self, mm: usize) {
        if self.wrong != Some(Wrong::NoDetachingList) {
            self.root(mm).rwsem.write().unwrap().detaching = true;
        }
        self.mm(mm).in_tree.store(false, Release);
        self.zap(mm);
        // Unlinked, before the page tables go.
        let unlink = || self.root(mm).rwsem.write().unwrap().detaching = false;
        let late = self.wrong == Some(Wrong::UnlinkTooLate);
        if !late {
            unlink();
        }
        self.mm(mm).table.store(false, Release);
        // SAFETY: It is a unit. loom reports an access that is not ordered with this.
        self.mm(mm).upper.with_mut(|upper| unsafe { *upper = () });
        if late {
            unlink();
        }
    }

    /// `MADV_DONTNEED`, and the page table is freed with the page: no lock of the root.
    ///
    /// The release stands for unlock before lock on one CPU, of which C11 makes nothing: what fork
    /// wrote under page table locks comes before what is written under the next one.
    fn reclaim_table(&self, mm: usize) {
        self.zap(mm);
        self.mm(mm).table.store(false, Release);
    }

    /// Drops a reference.
    fn put(&self, root: usize) {
        if self.root(root).count.fetch_sub(1, AcqRel) == 1 {
            if self.wrong == Some(Wrong::FreeUnderRootLock) {
                self.free(root);
            } else {
                self.dead.lock().unwrap().push(root);
            }
        }
    }

    /// The work item.
    fn work(&self) {
        loop {
            let dead = std::mem::take(&mut *self.dead.lock().unwrap());
            if dead.is_empty() {
                return;
            }
            for root in dead {
                self.free(root);
            }
        }
    }

    fn free(&self, id: usize) {
        let root = self.root(id);
        if self.wrong != Some(Wrong::NoHandshake) {
            drop(root.rwsem.write().unwrap());
        }
        let up = root.up();
        let listed = up.filter(|_| self.wrong != Some(Wrong::StaysOnList));
        if let Some(up) = listed {
            let up = self.root(up);
            let _lock = up.lock.lock().unwrap();
            // SAFETY: `link()` put it there. The lock is held.
            up.children
                .with_mut(|list| unsafe { (*list).remove(NonNull::from(root)) });
        }
        // SAFETY: loom reports an access that is not ordered with this.
        root.freed.with_mut(|freed| unsafe {
            if *freed {
                self.complain(format!("root {id} is freed twice"));
            }
            *freed = true;
        });
        if let Some(up) = up.filter(|_| self.wrong != Some(Wrong::NoParentReference)) {
            self.put(up);
        }
    }

    /// One visit: the VMA tree, the interval tree, the detaching list.
    fn visit(&self, id: usize, lock: &Locked) {
        let first = self.wrong == Some(Wrong::ForeignFirst);
        if first {
            self.visit_foreign(lock);
        }
        if lock.attached {
            let mm = self.mm(id);
            if mm.in_tree.load(Acquire) || lock.detaching {
                self.restore(mm);
            }
        }
        if !first {
            self.visit_foreign(lock);
        }
    }

    fn visit_foreign(&self, lock: &Locked) {
        for &mm in &lock.foreign {
            // The read barrier.
            if self.wrong != Some(Wrong::ForeignWithoutOrder) {
                fence(Acquire);
            }
            self.restore(self.mm(mm));
        }
    }

    fn restore(&self, mm: &Mm) {
        // SAFETY: As in `munmap()`.
        mm.upper.with(|upper| unsafe { *upper });
        // Without a page table there is nothing to lock.
        if !mm.table.load(Relaxed) {
            return;
        }
        let mut entry = mm.entry.lock().unwrap();
        if *entry == Entry::Migration {
            *entry = Entry::Mapped;
        }
    }

    /// A walk from root 0, whose lock the caller holds: `first`.
    ///
    /// With `keep` it stays locked, as `__folio_split()` does it.
    fn walk_from<'a>(&'a self, first: RwLockReadGuard<'a, Locked>, keep: bool) {
        let tree = Tree(self);
        let (mut cur, mut lock) = (0, Some(first));
        let (mut kept, mut early) = (None, None);
        if self.wrong == Some(Wrong::ListBeforeVisit) {
            early = family::successor(&tree, 0, 0);
        }
        loop {
            if self.wrong != Some(Wrong::ChildrenFirst) || cur != 0 {
                self.visit(cur, lock.as_ref().unwrap());
            }
            if self.wrong == Some(Wrong::UnlockBeforePin) {
                lock = None;
            }
            let next = match self.wrong {
                Some(Wrong::ListBeforeVisit) => early,
                _ => family::successor(&tree, 0, cur),
            };
            // `cur` is locked or pinned until the next is pinned.
            if cur == 0 && keep {
                kept = lock.take();
            }
            drop(lock.take());
            if cur != 0 {
                self.put(cur);
            }
            let Some(next) = next else { break };
            cur = next;
            if self.wrong == Some(Wrong::ListBeforeVisit) {
                early = family::successor(&tree, 0, cur);
            }
            lock = Some(self.root(cur).rwsem.read().unwrap());
        }
        if self.wrong == Some(Wrong::ChildrenFirst) {
            self.visit(0, &self.root(0).rwsem.read().unwrap());
        }
        drop(kept);
        self.ended.store(true, Release);
    }

    fn walk(&self) {
        self.walk_from(self.root(0).rwsem.read().unwrap(), false);
    }

    /// folio_referenced(): visits the roots whose lock can be had at once. Returns these.
    fn walk_trying(&self) -> Vec<usize> {
        let tree = Tree(self);
        let mut visited = Vec::new();
        // The first one makes it give up.
        let Some(first) = self.root(0).try_read() else {
            return visited;
        };
        let (mut cur, mut lock) = (0, Some(first));
        loop {
            let mut pinned = cur != 0;
            let next = match &lock {
                Some(lock) => {
                    self.visit(cur, lock);
                    visited.push(cur);
                    family::successor(&tree, 0, cur)
                }
                None if self.wrong == Some(Wrong::SkippedWithChildren) => {
                    let parent = self.root(cur).up().expect("not the first one");
                    // SAFETY: A child of its parent.
                    unsafe { tree.pin_child(parent, Some(cur)) }
                }
                None => {
                    if self.wrong == Some(Wrong::SkippedUnpinned) {
                        self.put(cur);
                        pinned = false;
                    }
                    family::successor(&tree, 0, cur)
                }
            };
            drop(lock.take());
            if pinned {
                self.put(cur);
            }
            let Some(next) = next else {
                return visited;
            };
            cur = next;
            lock = self.root(cur).try_read();
        }
    }

    /// What has to be true when all is done.
    fn judge(&self, live: &[usize]) {
        for &mm in live {
            let entry = *self.mm(mm).entry.lock().unwrap();
            if entry == Entry::Migration {
                self.complain(format!("a migration entry is left in mm {mm}"));
            }
        }
        for root in &self.roots {
            // SAFETY: All threads have ended.
            let freed = root.freed.with(|freed| unsafe { *freed });
            if freed != (root.count.load(Acquire) == 0) {
                self.complain(format!("root {} has leaked", root.id));
            }
        }
        if let Some(complaint) = &*self.complaint.lock().unwrap() {
            panic!("{complaint}");
        }
    }
}

/// Three generations and two siblings: 0 forks 1 and 2 while 1 forks 3 and exits.
fn family(wrong: Option<Wrong>) {
    // The references of the mm and of the walk.
    let world = World::new(wrong, 4, 2);
    let tasks = {
        let world = world.clone();
        thread::spawn(move || {
            world.fork(0, 1);
            let child = {
                let world = world.clone();
                thread::spawn(move || {
                    world.fork(1, 3);
                    world.exit(1);
                })
            };
            world.fork(0, 2);
            child.join().unwrap();
        })
    };
    world.walk();
    tasks.join().unwrap();
    world.put(0);
    world.work();
    world.judge(&[0, 2, 3]);
}

/// The same family, in which everybody exits. What keeps the first root for the walk is its lock.
fn extinction(wrong: Option<Wrong>) {
    let world = World::new(wrong, 4, 1);
    let first = world.root(0).rwsem.read().unwrap();
    let tasks = {
        let world = world.clone();
        thread::spawn(move || {
            world.fork(0, 1);
            let child = {
                let world = world.clone();
                thread::spawn(move || {
                    world.fork(1, 3);
                    world.exit(1);
                    world.exit(3);
                    world.work();
                })
            };
            world.fork(0, 2);
            world.exit(0);
            world.exit(2);
            world.work();
            child.join().unwrap();
        })
    };
    world.walk_from(first, false);
    world.work();
    tasks.join().unwrap();
    world.work();
    world.judge(&[]);
}

/// The first root has lost its mm: only its children keep it, and they exit. The walk has no
/// reference, but its lock, of which it knows that the folio is mapped in a child.
fn orphaned(wrong: Option<Wrong>, keep: bool) {
    let world = World::new(wrong, 4, 1);
    world.fork(0, 1);
    world.fork(0, 2);
    world.exit(0);
    let first = world.root(0).rwsem.read().unwrap();
    let tasks = {
        let world = world.clone();
        thread::spawn(move || {
            let sibling = {
                let world = world.clone();
                thread::spawn(move || {
                    world.exit(2);
                    world.work();
                })
            };
            world.fork(1, 3);
            world.exit(1);
            world.exit(3);
            world.work();
            sibling.join().unwrap();
        })
    };
    world.walk_from(first, keep);
    world.work();
    tasks.join().unwrap();
    world.work();
    world.judge(&[]);
}

/// The walk goes from root to root.
fn orphan(wrong: Option<Wrong>) {
    orphaned(wrong, false);
}

/// It keeps the first one locked.
fn kept(wrong: Option<Wrong>) {
    orphaned(wrong, true);
}

/// Two forks that fail, one of them early, and one that does not. The child of the latter is the
/// newest, so that a walk that sees it has the others yet to come. A fork of its own fails, too.
fn failing(wrong: Option<Wrong>) {
    let world = World::new(wrong, 5, 2);
    let tasks = {
        let world = world.clone();
        thread::spawn(move || {
            world.fork_fails(0, 1, false);
            world.fork_fails(0, 2, true);
            world.fork(0, 3);
            world.fork_fails(3, 4, true);
            world.work();
        })
    };
    world.walk();
    world.work();
    tasks.join().unwrap();
    world.put(0);
    world.work();
    world.judge(&[0, 3]);
}

/// munmap in two of three generations, and two siblings.
fn unmapping(wrong: Option<Wrong>) {
    let world = World::new(wrong, 4, 2);
    let tasks = {
        let world = world.clone();
        thread::spawn(move || {
            world.fork(0, 1);
            let child = {
                let world = world.clone();
                thread::spawn(move || {
                    world.fork(1, 3);
                    world.munmap(1);
                })
            };
            world.fork(0, 2);
            world.munmap(0);
            child.join().unwrap();
        })
    };
    world.walk();
    tasks.join().unwrap();
    world.put(0);
    world.work();
    world.judge(&[0, 1, 2, 3]);
}

/// Page tables are freed without the root's lock; the walk decides without theirs.
fn tables(wrong: Option<Wrong>) {
    let world = World::new(wrong, 4, 2);
    let tasks = {
        let world = world.clone();
        thread::spawn(move || {
            world.fork(0, 1);
            world.fork(0, 2);
            world.reclaim_table(0);
            world.fork(1, 3);
            world.reclaim_table(1);
        })
    };
    world.walk();
    tasks.join().unwrap();
    world.put(0);
    world.work();
    world.judge(&[0, 1, 2, 3]);
}

/// Two children and a grandchild without a root of their own, whose VMAs are linked to the first
/// one. Whose root that is goes, and so does the first child.
fn foreign(wrong: Option<Wrong>) {
    let world = World::with(wrong, (4, 1), 2, false);
    let tasks = {
        let world = world.clone();
        thread::spawn(move || {
            world.fork_foreign(0, 1, 0);
            let child = {
                let world = world.clone();
                thread::spawn(move || {
                    world.fork_foreign(1, 3, 0);
                    world.exit_foreign(1, 0);
                })
            };
            world.fork_foreign(0, 2, 0);
            world.exit(0);
            child.join().unwrap();
        })
    };
    world.walk();
    world.put(0);
    world.work();
    tasks.join().unwrap();
    world.work();
    world.judge(&[2, 3]);
    world.exit_foreign(2, 0);
    world.exit_foreign(3, 0);
    world.work();
    world.judge(&[]);
}

/// The parent's page table is freed without the root's lock, and the children are in the same
/// visit.
fn foreign_tables(wrong: Option<Wrong>) {
    let world = World::with(wrong, (4, 1), 2, false);
    let tasks = {
        let world = world.clone();
        thread::spawn(move || {
            world.fork_foreign(0, 1, 0);
            world.fork_foreign(0, 2, 0);
            world.reclaim_table(0);
            world.fork_foreign(1, 3, 0);
            world.reclaim_table(1);
        })
    };
    world.walk();
    tasks.join().unwrap();
    world.judge(&[0, 1, 2, 3]);
}

/// A walk that only tries, while a child with a child of its own and one without exit. Who goes has
/// its root locked now and then. The grandchild is there all the time, and nobody locks its root.
fn contended(wrong: Option<Wrong>) {
    let world = World::with(wrong, (4, 4), 2, true);
    world.fork(0, 1);
    world.fork(1, 2);
    world.fork(0, 3);
    let spawn = |mm: usize| {
        let world = world.clone();
        thread::spawn(move || {
            world.exit(mm);
            world.work();
        })
    };
    let tasks = [spawn(1), spawn(3)];
    let visited = world.walk_trying();
    for root in [0, 2] {
        if !visited.contains(&root) {
            world.complain(format!("root {root} is passed over: {visited:?}"));
        }
    }
    world.work();
    for task in tasks {
        task.join().unwrap();
    }
    world.put(0);
    world.work();
    world.judge(&[0, 2]);
}

/// A VMA's memory, which is that of some VMA whatever happens to it.
struct Area {
    mm: AtomicUsize,
    anon: AtomicUsize,
    start: AtomicUsize,
    /// Whether its list head is that of a VMA on the detaching list.
    marked: AtomicBool,
}

/// Three addresses, the VMA tree of mm 1, and what its root has.
struct Memory {
    wrong: Option<Wrong>,
    areas: [Area; 2],
    tree: [AtomicUsize; 3],
    rwsem: RwLock<()>,
    /// The VMA that a walk has found last.
    hint: AtomicUsize,
}

/// An `anon_vma` or a place in the tree: nothing.
const NONE: usize = usize::MAX;
/// The mm that walks look into, and its root.
const PARENT: usize = 1;
/// Its child.
const CHILD: usize = 2;
/// What a copy has in place of a root.
const PLACEHOLDER: usize = 3;

impl Memory {
    /// Area 0 is an Unfaulted VMA at address 0.
    fn new(wrong: Option<Wrong>) -> Arc<Self> {
        let area = || Area {
            mm: AtomicUsize::new(PARENT),
            anon: AtomicUsize::new(NONE),
            start: AtomicUsize::new(0),
            marked: AtomicBool::new(false),
        };
        Arc::new(Self {
            wrong,
            areas: [area(), area()],
            tree: [0, NONE, NONE].map(AtomicUsize::new),
            rwsem: RwLock::new(()),
            hint: AtomicUsize::new(NONE),
        })
    }

    /// mmap, and the first fault: neither takes the root's lock.
    fn map(&self, id: usize, at: usize) {
        let area = &self.areas[id];
        area.mm.store(PARENT, Relaxed);
        area.anon.store(NONE, Relaxed);
        area.start.store(at, Relaxed);
        self.tree[at].store(id, Release);
        area.anon.store(PARENT, Release);
    }

    /// munmap of a Lazy VMA at address 0: marked, taken from the tree without the lock, unlinked.
    fn unmap(&self, id: usize) {
        let area = &self.areas[id];
        {
            let _lock = self.rwsem.write().unwrap();
            if self.wrong != Some(Wrong::HintKept) && self.hint.load(Relaxed) == id {
                self.hint.store(NONE, Relaxed);
            }
            area.marked.store(true, Relaxed);
        }
        self.tree[0].store(NONE, Release);
        let _lock = self.rwsem.write().unwrap();
        area.anon.store(NONE, Relaxed);
        area.marked.store(false, Relaxed);
    }

    /// The first VMA at one of the addresses, and where it is.
    fn first(&self, pos: usize, last: usize) -> Option<(usize, usize)> {
        (pos..=last)
            .map(|at| (self.tree[at].load(Acquire), at))
            .find(|&(id, _)| id != NONE)
    }

    /// A VMA was found: where it is by now, and stays while the lock is held.
    fn take(&self, id: usize, pos: usize, last: usize) -> usize {
        let area = &self.areas[id];
        let mm = area.mm.fetch_add(0, AcqRel);
        let start = area.start.fetch_add(0, AcqRel);
        assert!(
            mm == PARENT && (pos..=last).contains(&start),
            "a VMA that is not there is taken: mm {mm}, start {start}"
        );
        start
    }

    /// `Walk::visit_vma_tree()` for a folio from address 0 to `last`: the VMAs that it finds.
    fn visit(&self, last: usize) -> Vec<usize> {
        let _lock = self.rwsem.read().unwrap();
        let hint = self.hint.load(Acquire);
        if let Some(area) = self.areas.get(hint).filter(|_| last == 0) {
            if area.start.load(Relaxed) == 0 {
                self.take(hint, 0, 0);
                return vec![hint];
            }
            assert!(
                area.anon.load(Relaxed) != PARENT || self.wrong == Some(Wrong::HintKept),
                "what was seen of a VMA is not seen by the next"
            );
        }
        let (mut pos, mut taken) = (0, Vec::new());
        while let Some((id, at)) = self.first(pos, last) {
            let area = &self.areas[id];
            let looks_lazy = area.mm.load(Relaxed) == PARENT
                && area.anon.load(Relaxed) == PARENT
                && !area.marked.load(Relaxed)
                && (pos..=last).contains(&area.start.load(Relaxed));
            if !looks_lazy {
                pos = at + 1;
                continue;
            }
            fence(Acquire);
            let again = match self.wrong {
                Some(Wrong::NoSecondLookup | Wrong::CopyCarriesRoot) => Some(id),
                Some(Wrong::SecondLookupByStart) => {
                    Some(self.tree[area.start.load(Relaxed)].load(Acquire))
                }
                _ => self.first(pos, last).map(|(id, _)| id),
            };
            if again != Some(id) {
                continue;
            }
            pos = self.take(id, pos, last) + 1;
            taken.push(id);
            let order = match self.wrong {
                Some(Wrong::HintWithoutRelease) => Relaxed,
                _ => Release,
            };
            self.hint.store(id, order);
        }
        taken
    }
}

/// The VMA that is found is unmapped, and its memory is a VMA elsewhere.
fn recycled(wrong: Option<Wrong>) {
    let memory = Memory::new(wrong);
    let task = {
        let memory = memory.clone();
        thread::spawn(move || {
            memory.tree[0].store(NONE, Release);
            memory.map(1, 0);
            memory.map(0, 1);
        })
    };
    memory.visit(0);
    task.join().unwrap();
}

/// Its memory is a copy that fork makes of the VMA that is there now.
fn copied(wrong: Option<Wrong>) {
    let memory = Memory::new(wrong);
    let task = {
        let memory = memory.clone();
        thread::spawn(move || {
            memory.tree[0].store(NONE, Release);
            memory.map(1, 0);
            // vm_area_dup(), then fork.
            let copy = &memory.areas[0];
            let anon = match memory.wrong {
                Some(Wrong::CopyCarriesRoot) => PARENT,
                _ => PLACEHOLDER,
            };
            copy.mm.store(PARENT, Relaxed);
            copy.start.store(0, Relaxed);
            copy.anon.store(anon, Relaxed);
            copy.mm.store(CHILD, Relaxed);
            copy.anon.store(CHILD, Release);
        })
    };
    memory.visit(0);
    task.join().unwrap();
}

/// The VMA that was found last is unmapped, and its memory is a VMA elsewhere.
fn remembered(wrong: Option<Wrong>) {
    let memory = Memory::new(wrong);
    memory.areas[0].anon.store(PARENT, Release);
    memory.visit(0);
    let task = {
        let memory = memory.clone();
        thread::spawn(move || {
            memory.unmap(0);
            memory.map(0, 1);
        })
    };
    memory.visit(0);
    task.join().unwrap();
}

/// Two walks while a VMA is mapped: one gets it from the other, and not from the tree.
fn shared(wrong: Option<Wrong>) {
    let memory = Memory::new(wrong);
    memory.tree[0].store(NONE, Release);
    memory.areas[1].start.store(1, Relaxed);
    let spawn = |run: fn(&Memory)| {
        let memory = memory.clone();
        thread::spawn(move || run(&memory))
    };
    let task = spawn(|memory| memory.map(1, 0));
    let walk = spawn(|memory| drop(memory.visit(0)));
    memory.visit(0);
    task.join().unwrap();
    walk.join().unwrap();
}

/// A large folio: the first VMA is unmapped, and its memory is a VMA behind the second.
fn overtaken(wrong: Option<Wrong>) {
    let memory = Memory::new(wrong);
    memory.map(1, 1);
    let task = {
        let memory = memory.clone();
        thread::spawn(move || {
            memory.tree[0].store(NONE, Release);
            memory.map(0, 2);
        })
    };
    let taken = memory.visit(2);
    task.join().unwrap();
    assert!(taken.contains(&1), "a VMA is passed over");
}

/// Explores `scenario`. Returns the number of interleavings and, if one of them failed, how.
fn explore(
    wrong: Option<Wrong>,
    preemptions: usize,
    scenario: fn(Option<Wrong>),
) -> (u64, Option<String>) {
    let count = Arc::new(AtomicU64::new(0));
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 100_000;
    // What stands in the environment must not cut an exploration short.
    builder.max_duration = None;
    builder.max_permutations = None;
    let counted = count.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            scenario(wrong);
        })
    }));
    let failure = outcome.err().map(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        text.or_else(|| cause.downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_default()
    });
    (count.load(std::sync::atomic::Ordering::Relaxed), failure)
}

/// No interleaving fails.
fn holds(name: &str, preemptions: usize, scenario: fn(Option<Wrong>)) {
    let started = Instant::now();
    let (count, failure) = explore(None, preemptions, scenario);
    println!(
        "figures: {name}: {count} interleavings without a failure, {:.1} s",
        started.elapsed().as_secs_f32()
    );
    assert_eq!(failure, None, "{name}, interleaving {count}");
}

/// Some interleaving fails, and says `how`.
fn found(wrong: Wrong, how: &str, scenario: fn(Option<Wrong>)) {
    let (count, failure) = explore(Some(wrong), 3, scenario);
    let Some(failure) = failure else {
        panic!("{wrong:?} was not found in {count} interleavings");
    };
    println!("figures: {wrong:?} is found in interleaving {count}: {failure}");
    assert!(failure.contains(how), "{wrong:?}: {failure}");
}

/// The protocol as it is: no interleaving fails.
mod holds {
    use super::*;

    #[test]
    fn three_generations_two_siblings() {
        holds("family", 4, family);
    }

    #[test]
    fn all_exit() {
        holds("extinction", 3, extinction);
    }

    #[test]
    fn orphaned_root() {
        holds("orphan", 3, orphan);
    }

    #[test]
    fn first_root_kept_locked() {
        holds("kept", 3, kept);
    }

    #[test]
    fn forks_that_fail() {
        holds("failing", 5, failing);
    }

    #[test]
    fn munmap() {
        holds("munmap", 4, unmapping);
    }

    #[test]
    fn page_tables_freed_without_the_root() {
        holds("tables", 4, tables);
    }

    #[test]
    fn foreign_vmas() {
        holds("foreign", 5, foreign);
    }

    #[test]
    fn foreign_vmas_and_freed_page_tables() {
        holds("foreign tables", 5, foreign_tables);
    }

    #[test]
    fn contended_roots() {
        holds("contended", 3, contended);
    }

    #[test]
    fn vma_memory_used_again() {
        holds("recycled", 5, recycled);
    }

    #[test]
    fn vma_memory_used_for_a_copy() {
        holds("copied", 5, copied);
    }

    #[test]
    fn vma_memory_used_further_on() {
        holds("overtaken", 4, overtaken);
    }

    #[test]
    fn vma_found_last_unmapped() {
        holds("remembered", 5, remembered);
    }

    #[test]
    fn vma_found_last_by_another() {
        holds("shared", 4, shared);
    }
}

/// Each rule, broken: some interleaving fails, and as it should.
mod found {
    use super::*;

    const LEFT: &str = "a migration entry is left";
    const ZAPPED: &str = "zaps a migration entry";
    /// Used after it was freed, or in no order with that: loom's words.
    const RACE: &str = "Causality violation";
    const STRANGER: &str = "a VMA that is not there";

    #[test]
    fn copy_before_link() {
        found(Wrong::CopyBeforeLink, LEFT, family);
    }

    #[test]
    fn copy_before_tree() {
        found(Wrong::CopyBeforeTree, LEFT, family);
    }

    #[test]
    fn list_before_visit() {
        found(Wrong::ListBeforeVisit, LEFT, family);
    }

    #[test]
    fn children_first() {
        found(Wrong::ChildrenFirst, LEFT, family);
    }

    #[test]
    fn list_without_lock() {
        found(Wrong::ListWithoutLock, LEFT, tables);
    }

    #[test]
    fn list_while_changed() {
        found(Wrong::ListWhileChanged, RACE, family);
    }

    #[test]
    fn pin_without_order() {
        found(Wrong::PinWithoutOrder, LEFT, tables);
    }

    #[test]
    fn detach_before_zap() {
        found(Wrong::DetachBeforeZap, ZAPPED, family);
    }

    #[test]
    fn detach_too_late() {
        found(Wrong::DetachTooLate, RACE, extinction);
    }

    #[test]
    fn fail_detaches_first() {
        found(Wrong::FailDetachesFirst, ZAPPED, failing);
    }

    #[test]
    fn fail_detaches_last() {
        found(Wrong::FailDetachesLast, RACE, failing);
    }

    #[test]
    fn stays_on_list() {
        found(Wrong::StaysOnList, "root 4 is used, and is free", failing);
    }

    #[test]
    fn foreign_before_link() {
        found(Wrong::ForeignBeforeLink, LEFT, foreign);
    }

    #[test]
    fn foreign_without_reference() {
        found(
            Wrong::ForeignWithoutReference,
            "root 0 is used, and is free",
            foreign,
        );
    }

    #[test]
    fn foreign_first() {
        found(Wrong::ForeignFirst, LEFT, foreign);
    }

    #[test]
    fn foreign_without_order() {
        found(Wrong::ForeignWithoutOrder, LEFT, foreign_tables);
    }

    #[test]
    fn skipped_with_children() {
        found(
            Wrong::SkippedWithChildren,
            "root 2 is passed over",
            contended,
        );
    }

    #[test]
    fn skipped_unpinned() {
        found(Wrong::SkippedUnpinned, RACE, contended);
    }

    #[test]
    fn no_detaching_list() {
        found(Wrong::NoDetachingList, ZAPPED, unmapping);
    }

    #[test]
    fn unlink_too_late() {
        found(Wrong::UnlinkTooLate, RACE, unmapping);
    }

    #[test]
    fn free_under_root_lock() {
        found(Wrong::FreeUnderRootLock, "deadlock", kept);
    }

    #[test]
    fn no_handshake() {
        found(Wrong::NoHandshake, RACE, orphan);
    }

    #[test]
    fn pin_unconditionally() {
        found(Wrong::PinUnconditionally, RACE, extinction);
    }

    #[test]
    fn no_parent_reference() {
        found(
            Wrong::NoParentReference,
            "root 0 is used, and is free",
            extinction,
        );
    }

    #[test]
    fn unlock_before_pin() {
        found(Wrong::UnlockBeforePin, RACE, extinction);
    }

    #[test]
    fn no_second_lookup() {
        found(Wrong::NoSecondLookup, STRANGER, recycled);
    }

    #[test]
    fn copies_carry_the_root() {
        found(Wrong::CopyCarriesRoot, STRANGER, copied);
    }

    #[test]
    fn second_lookup_by_start() {
        found(Wrong::SecondLookupByStart, "is passed over", overtaken);
    }

    #[test]
    fn hint_kept() {
        found(Wrong::HintKept, STRANGER, remembered);
    }

    #[test]
    fn hint_without_release() {
        found(Wrong::HintWithoutRelease, "is not seen by the next", shared);
    }
}
