// SPDX-License-Identifier: GPL-2.0

//! Processes, VMAs, page tables and folios, and random operations on them.
//!
//! What is decided in the module is decided by the module's own code here: the state of a VMA, what
//! becomes of a copy, what fork does, what is natural, the list of children and the order of a
//! walk. The rest is as simple as it can be: a page table is a map, a lock is not there.
//!
//! An operation that takes its time in the kernel is made of steps (fork, exit, munmap, mremap;
//! swap-out and migration are walks, which visit one root in a step), and steps of different
//! processes mix. After each of them each folio is walked, and what the walk finds is compared with
//! what all page tables say.

use crate::pure::{
    family::{
        self,
        Children,
        Family,
        Link,
        Member, //
    },
    mode::{
        Mode,
        ModeCell, //
    },
    natural::is_natural,
    state::{
        self,
        Anon,
        Attach,
        Chain,
        Fork,
        Source,
        State,
        MAX_ORPHANS, //
    },
};
use std::{
    cell::{
        Cell,
        RefCell, //
    },
    collections::{
        BTreeMap,
        BTreeSet, //
    },
    ptr::NonNull, //
};

/// Pages that an mm has.
const SPAN: usize = 32;
/// Pages of a large folio.
const LARGE: usize = 4;
/// Live processes that there are at most.
const PROCESSES: usize = 6;

type MmId = usize;
type VmaId = usize;
type RootId = usize;
type FolioId = usize;
/// What failed, in words.
pub(super) type Outcome = Result<(), String>;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A walk visits the first root only.
    NoChildren,
    /// A walk visits children before their parents.
    ChildrenFirst,
    /// Fork gives the child a root without a parent.
    NoParent,
    /// Fork copies page tables before the child's root is on the list.
    CopyBeforeLink,
    /// Every VMA counts as natural.
    AlwaysNatural,
    /// A copy is lazy, whatever it is a copy of and wherever it is.
    CopyNeverLinked,
    /// munmap takes Lazy VMAs out of the tree without putting them on the list.
    NoDetachingList,
    /// munmap that fails leaves its VMAs marked.
    MarksKept,
    /// exit leaves the root before it zaps.
    DetachBeforeZap,
    /// So does a fork that fails.
    FailDetachesFirst,
    /// A shared page that comes back from swap names the root of who faulted.
    SwapInNamesOwnRoot,
    /// A lookup takes a VMA of another mm.
    MmNotChecked,
    /// A lookup takes a VMA whose list head is not empty.
    ChainNotChecked,
    /// A lookup ends at the first VMA.
    FirstVmaOnly,
    /// The VMA that was found last is tried first also when it is Lazy no more.
    HintKept,
    /// The copy of a foreign VMA is attached to the child's own root.
    ForeignForgotten,
    /// A foreign VMA holds no reference to its root.
    ForeignWithoutReference,
    /// Restoring stops when as many pages were restored as the folio has.
    StopWithoutProof,
    /// Unmapping stops when one page was unmapped.
    StopAfterOne,
    /// A root that is contended is skipped together with its children.
    SkippedWithChildren,
    /// A walk that cannot have the lock of its first root goes on to the next.
    StartSkipped,
}

impl Wrong {
    pub(super) const ALL: [Wrong; 21] = [
        Wrong::NoChildren,
        Wrong::ChildrenFirst,
        Wrong::NoParent,
        Wrong::CopyBeforeLink,
        Wrong::AlwaysNatural,
        Wrong::CopyNeverLinked,
        Wrong::NoDetachingList,
        Wrong::MarksKept,
        Wrong::DetachBeforeZap,
        Wrong::FailDetachesFirst,
        Wrong::SwapInNamesOwnRoot,
        Wrong::MmNotChecked,
        Wrong::ChainNotChecked,
        Wrong::FirstVmaOnly,
        Wrong::HintKept,
        Wrong::ForeignForgotten,
        Wrong::ForeignWithoutReference,
        Wrong::StopWithoutProof,
        Wrong::StopAfterOne,
        Wrong::SkippedWithChildren,
        Wrong::StartSkipped,
    ];

    /// What has to be seen of it: a part of the message.
    pub(super) fn how(self) -> &'static str {
        match self {
            Wrong::NoChildren
            | Wrong::NoParent
            | Wrong::CopyBeforeLink
            | Wrong::AlwaysNatural
            | Wrong::CopyNeverLinked
            | Wrong::NoDetachingList
            | Wrong::DetachBeforeZap
            | Wrong::FailDetachesFirst
            | Wrong::FirstVmaOnly
            | Wrong::ForeignForgotten => "the walk misses",
            Wrong::MarksKept => "is marked, and stays",
            Wrong::ForeignWithoutReference => "is freed while in use",
            Wrong::MmNotChecked | Wrong::ChainNotChecked | Wrong::HintKept => "the walk has twice",
            Wrong::StopWithoutProof => "a walk that restores has left",
            Wrong::ChildrenFirst | Wrong::StopAfterOne => "a walk that unmaps has left",
            Wrong::SwapInNamesOwnRoot => "comes back to root",
            Wrong::SkippedWithChildren => "hides",
            Wrong::StartSkipped => "goes on without its first root",
        }
    }
}

/// A page table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pte {
    /// Page `.1` of a folio; `.2`: exclusive.
    Page(FolioId, usize, bool),
    /// The same, while it migrates.
    Migration(FolioId, usize, bool),
    /// A slot; `.1`: exclusive.
    Swap(usize, bool),
}

/// `vma->anon_vma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Av {
    None,
    Root(RootId),
    Regular,
}

impl Av {
    /// Whether VMAs with these two may become one.
    fn goes_with(self, other: Self) -> bool {
        self == other || self == Av::None || other == Av::None
    }
}

#[derive(Clone, Copy, Debug)]
struct Vma {
    mm: MmId,
    start: usize,
    end: usize,
    /// The anonymous page offset of `start`.
    pgoff: usize,
    anon: Av,
    chain: Chain,
    wipe: bool,
}

/// `mmap_lock`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lock {
    /// Nobody holds it for longer than an operation takes that is one step.
    #[default]
    Free,
    /// The task that has steps to do holds it for reading.
    Read,
    /// That task holds it for writing.
    Write,
}

/// How a munmap ends.
#[derive(Clone, Copy, Debug)]
enum Unmap {
    /// By itself: it downgrades `mmap_lock` when the tree is changed.
    Alone,
    /// It is a part of mremap, which does not.
    Within,
    /// The tree cannot be changed.
    Fails,
}

/// mremap of one VMA, or of a part of it.
#[derive(Clone, Copy, Debug)]
struct Remap {
    from: usize,
    len: usize,
    to: usize,
    new_len: usize,
    /// MREMAP_DONTUNMAP.
    keep: bool,
    /// What was moved cannot be unmapped where it was.
    stays: bool,
}

/// What a fork has not done yet.
#[derive(Debug)]
struct Forking {
    child: MmId,
    left: Vec<VmaId>,
    /// It fails when so many are left.
    fails: Option<usize>,
    /// And has made the child's root by then.
    rooted: bool,
}

/// What a task does next that has taken `mmap_lock` for writing.
#[derive(Debug)]
enum Step {
    /// munmap: VMAs of a range are split off, marked,
    Gather(usize, usize, Unmap),
    Mark(Vec<VmaId>, Unmap),
    /// leave the tree (or the marks are taken back), are zapped and unlinked.
    Undo(Vec<VmaId>),
    Remove(Vec<VmaId>, Unmap),
    Zap(Vec<VmaId>),
    Unlink(Vec<VmaId>),
    /// fork: the next VMA is put into the child's tree,
    Fork(Forking),
    /// and the page table of that one is copied.
    Copy(Forking, VmaId),
    /// A fork that failed: the child is zapped, unlinked, detached, freed.
    Fail(MmId, usize),
    /// mremap: the VMA is copied, then so many of its pages were moved.
    Remap(Remap),
    Pages(Remap, usize),
    Exit(usize),
}

#[derive(Debug, Default)]
struct Mm {
    tree: BTreeMap<usize, VmaId>,
    ptes: BTreeMap<usize, Pte>,
    root: Option<RootId>,
    /// What a task has to do yet, the next thing last.
    steps: Vec<Step>,
    lock: Lock,
    /// vma_start_write(): the VMAs whose own lock is taken until `mmap_lock` is not held for
    /// writing any more.
    locked: BTreeSet<VmaId>,
    /// Fork has finished it.
    born: bool,
    live: bool,
}

impl Mm {
    /// The mm of a process without a parent.
    fn first() -> Self {
        Self {
            born: true,
            live: true,
            ..Self::default()
        }
    }

    fn is_busy(&self) -> bool {
        !self.steps.is_empty()
    }

    /// A task takes `mmap_lock` for writing, and has this to do.
    fn start(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.steps.extend(steps);
        self.lock = Lock::Write;
    }
}

struct Root {
    id: RootId,
    link: Link<Root>,
    children: RefCell<Children<Root>>,
    up: Option<RootId>,
    mm: Option<MmId>,
    refs: Cell<usize>,
    /// The interval tree, in the order of insertion.
    linked: Vec<VmaId>,
    detaching: Vec<VmaId>,
    /// The VMA that a walk has found last in the tree.
    hint: Cell<Option<VmaId>>,
    freed: bool,
}

// SAFETY: The link is a field.
unsafe impl Member for Root {
    fn link(&self) -> &Link<Self> {
        &self.link
    }
}

#[derive(Debug)]
struct Folio {
    /// `folio->mapping`, unless that is an ordinary `anon_vma`.
    root: Option<RootId>,
    index: usize,
    pages: usize,
    locked: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    count: usize,
    cache: Option<(FolioId, usize)>,
}

/// What becomes of the entries that a walk finds.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// Swap entries, of the slots from this one on.
    SwapOut(usize),
    /// Migration entries.
    Migrate,
    /// What they were before.
    Restore,
}

/// A walk that has the folio locked: `cur` has not been visited yet.
#[derive(Clone, Copy)]
struct Walk {
    folio: FolioId,
    goal: Goal,
    cur: RootId,
    /// Entries that were changed, and those of them that were restored and are exclusive.
    changed: usize,
    exclusive: usize,
}

pub(super) struct World {
    wrong: Option<Wrong>,
    mode: ModeCell,
    mms: Vec<Mm>,
    vmas: Vec<Option<Vma>>,
    #[expect(clippy::vec_box, reason = "members of lists must not move")]
    roots: Vec<Box<Root>>,
    dead: RefCell<Vec<RootId>>,
    folios: Vec<Folio>,
    slots: Vec<Slot>,
    walks: Vec<Walk>,
    pub(super) counts: Counts,
}

/// What was done, to see that the operations do something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) steps: u64,
    pub(super) walks: u64,
    pub(super) mappings: u64,
    /// Page faults that changed an entry while the mm was in the middle of a munmap that has
    /// downgraded `mmap_lock`, of a fork, of mremap or a munmap that has not.
    pub(super) beside_munmap: u64,
    pub(super) beside_fork: u64,
    pub(super) beside_others: u64,
    pub(super) forks: u64,
    /// Of these: they failed.
    pub(super) failed: u64,
    pub(super) exits: u64,
    pub(super) unmaps: u64,
    /// VMAs whose marks were taken back.
    pub(super) undone: u64,
    /// Pages that UFFDIO_MOVE has moved.
    pub(super) uffd: u64,
    pub(super) moves: u64,
    /// Those with MREMAP_DONTUNMAP that have left an unfaulted VMA.
    pub(super) kept: u64,
    /// Those onto other VMAs, and what they have moved there became a part of the VMA before,
    /// of the one behind, or of both in one.
    pub(super) fixed: u64,
    pub(super) before: u64,
    pub(super) behind: u64,
    pub(super) between: u64,
    /// VMAs that grew in place, and those that became one with the next by that.
    pub(super) grown: u64,
    pub(super) closed: u64,
    pub(super) splits: u64,
    pub(super) merges: u64,
    /// Of these: of three VMAs.
    pub(super) threes: u64,
    pub(super) migrations: u64,
    /// Walks that were to unmap, and to restore, and stopped early.
    pub(super) unmapped: u64,
    pub(super) restored: u64,
    pub(super) swaps: u64,
    /// Walks that only try to get locks, roots that they skipped and went on behind, and mappings
    /// that this has hidden.
    pub(super) tried: u64,
    pub(super) skipped: u64,
    pub(super) hidden: u64,
    pub(super) foreign: u64,
    pub(super) deepest: usize,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Counts) {
        self.steps += other.steps;
        self.walks += other.walks;
        self.mappings += other.mappings;
        self.beside_munmap += other.beside_munmap;
        self.beside_fork += other.beside_fork;
        self.beside_others += other.beside_others;
        self.forks += other.forks;
        self.failed += other.failed;
        self.exits += other.exits;
        self.unmaps += other.unmaps;
        self.undone += other.undone;
        self.uffd += other.uffd;
        self.moves += other.moves;
        self.kept += other.kept;
        self.fixed += other.fixed;
        self.before += other.before;
        self.behind += other.behind;
        self.between += other.between;
        self.grown += other.grown;
        self.closed += other.closed;
        self.splits += other.splits;
        self.merges += other.merges;
        self.threes += other.threes;
        self.migrations += other.migrations;
        self.unmapped += other.unmapped;
        self.restored += other.restored;
        self.swaps += other.swaps;
        self.tried += other.tried;
        self.skipped += other.skipped;
        self.hidden += other.hidden;
        self.foreign += other.foreign;
        self.deepest = self.deepest.max(other.deepest);
    }

    /// Whether there was some of each.
    pub(super) fn nothing_idle(&self) -> bool {
        let some = [
            self.steps,
            self.walks,
            self.mappings,
            self.beside_munmap,
            self.beside_fork,
            self.beside_others,
            self.forks,
            self.failed,
            self.exits,
            self.unmaps,
            self.undone,
            self.uffd,
            self.moves,
            self.kept,
            self.fixed,
            self.before,
            self.behind,
            self.between,
            self.grown,
            self.closed,
            self.splits,
            self.merges,
            self.threes,
            self.migrations,
            self.unmapped,
            self.restored,
            self.swaps,
            self.tried,
            self.skipped,
            self.hidden,
            self.foreign,
        ];
        some.iter().all(|&count| count > 0) && self.deepest > 2
    }
}

/// What an operation does; its numbers pick a process, an address, a length...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Mmap,
    MmapWipe,
    Fault,
    FaultLarge,
    Write,
    SwapIn,
    Fork,
    Exit,
    Munmap,
    MunmapFails,
    Split,
    Merge,
    Mremap,
    MremapFixed,
    MremapGrow,
    MremapKeep,
    MoveHome,
    UffdMove,
    SwapOut,
    DropCache,
    Migrate,
    Referenced,
    Step,
    Finish,
    Mode,
    Chain,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    pub(super) kind: Kind,
    pub(super) a: u8,
    pub(super) b: u8,
    pub(super) c: u8,
    pub(super) d: u8,
}

/// The tree of roots as a walk sees it, maybe without the children of one of them.
struct Tree<'a>(&'a World, Option<RootId>);

impl Family for Tree<'_> {
    type Root = RootId;

    fn parent(&self, root: RootId) -> Option<RootId> {
        self.0.roots[root].up
    }

    unsafe fn pin_child(&self, parent: RootId, after: Option<RootId>) -> Option<RootId> {
        if self.1 == Some(parent) {
            return None;
        }
        let after = after.map(|root| NonNull::from(&*self.0.roots[root]));
        let list = self.0.roots[parent].children.borrow();
        // SAFETY: Roots live as long as the world; `after` or a descendant is pinned.
        let child = unsafe {
            list.pin_next(after, |root| {
                let refs = root.refs.get();
                root.refs.set(refs + usize::from(refs != 0));
                refs != 0
            })
        };
        // SAFETY: As above.
        child.map(|root| unsafe { root.as_ref() }.id)
    }
}

impl World {
    pub(super) fn new(wrong: Option<Wrong>) -> Self {
        let world = Self {
            wrong,
            mode: ModeCell::new(),
            mms: vec![Mm::first()],
            vmas: Vec::new(),
            roots: Vec::new(),
            dead: RefCell::default(),
            folios: Vec::new(),
            slots: Vec::new(),
            walks: Vec::new(),
            counts: Counts::default(),
        };
        world.mode.set(Mode::On);
        world
    }

    fn is_wrong(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    fn vma(&self, id: VmaId) -> &Vma {
        self.vmas[id].as_ref().expect("a VMA that is used exists")
    }

    fn vma_mut(&mut self, id: VmaId) -> &mut Vma {
        self.vmas[id].as_mut().expect("a VMA that is used exists")
    }

    fn add_vma(&mut self, vma: Vma) -> VmaId {
        self.vmas.push(Some(vma));
        self.vmas.len() - 1
    }

    fn natural(&self, vma: &Vma) -> bool {
        self.is_wrong(Wrong::AlwaysNatural) || is_natural(vma.pgoff, vma.start << 12, 12)
    }

    fn state(&self, id: VmaId) -> State {
        let vma = self.vma(id);
        let anon = match vma.anon {
            Av::None => Anon::None,
            Av::Regular => Anon::Regular,
            Av::Root(root) if self.mms[vma.mm].root == Some(root) => Anon::Own,
            Av::Root(_) => Anon::Foreign,
        };
        state::decode(anon, vma.chain).expect("no transition leads here")
    }

    /// What a copy is made of: only those that the design lets be copied are.
    fn source(&self, id: VmaId) -> Source {
        self.state(id).source().expect("it cannot be copied")
    }

    /// The VMA in the tree of `mm` that covers `page`.
    fn find(&self, mm: MmId, page: usize) -> Option<VmaId> {
        self.lookup(mm, page, page)
    }

    /// The first VMA in the tree of `mm` that covers one of the pages.
    fn lookup(&self, mm: MmId, first: usize, last: usize) -> Option<VmaId> {
        let tree = &self.mms[mm].tree;
        let before = tree.range(..=first).next_back();
        before
            .filter(|(_, &id)| self.vma(id).end > first)
            .or_else(|| tree.range(first..=last).next())
            .map(|(_, &id)| id)
    }

    // The module: policy.rs, root.rs, vma.rs.

    fn new_root(&mut self, mm: MmId, up: Option<RootId>) -> RootId {
        let id = self.roots.len();
        let up = up.filter(|_| !self.is_wrong(Wrong::NoParent));
        self.roots.push(Box::new(Root {
            id,
            link: Link::new(),
            children: RefCell::new(Children::new()),
            up,
            mm: Some(mm),
            refs: Cell::new(1),
            linked: Vec::new(),
            detaching: Vec::new(),
            hint: Cell::new(None),
            freed: false,
        }));
        if let Some(up) = up {
            self.get(up);
            let child = NonNull::from(&*self.roots[id]);
            // SAFETY: In no list yet; boxes do not move, and live as long as the world.
            unsafe { self.roots[up].children.borrow_mut().push_front(child) };
            let depth = std::iter::successors(Some(id), |&root| self.roots[root].up).count();
            self.counts.deepest = self.counts.deepest.max(depth);
        }
        self.mms[mm].root = Some(id);
        id
    }

    fn get(&self, root: RootId) {
        let refs = &self.roots[root].refs;
        refs.set(refs.get() + 1);
    }

    fn put(&self, root: RootId) {
        let refs = &self.roots[root].refs;
        refs.set(refs.get() - 1);
        if refs.get() == 0 {
            self.dead.borrow_mut().push(root);
        }
    }

    /// The work item.
    fn work(&mut self) -> Outcome {
        loop {
            let Some(id) = self.dead.borrow_mut().pop() else {
                return Ok(());
            };
            let root = &self.roots[id];
            let used = root.mm.is_some()
                || !root.linked.is_empty()
                || !root.detaching.is_empty()
                || !root.children.borrow().is_empty();
            if used || root.freed || root.refs.get() != 0 {
                return Err(format!("root {id} is freed while in use"));
            }
            let up = root.up;
            if let Some(up) = up {
                let member = NonNull::from(&**root);
                // SAFETY: `new_root()` put it there.
                unsafe { self.roots[up].children.borrow_mut().remove(member) };
            }
            self.roots[id].freed = true;
            if let Some(up) = up {
                self.put(up);
            }
        }
    }

    fn orphans(&self, root: RootId) -> usize {
        std::iter::successors(Some(root), |&root| self.roots[root].up)
            .filter(|&root| self.roots[root].mm.is_none())
            .count()
    }

    fn attach(&mut self, id: VmaId, how: Attach, root: RootId) {
        let vma = *self.vma(id);
        let natural = self.natural(&vma) || self.is_wrong(Wrong::CopyNeverLinked);
        self.vma_mut(id).anon = Av::Root(root);
        if how == Attach::Lazy && natural {
            return;
        }
        self.vma_mut(id).chain = Chain::Links;
        self.roots[root].linked.push(id);
        if self.mms[vma.mm].root != Some(root) {
            if !self.is_wrong(Wrong::ForeignWithoutReference) {
                self.get(root);
            }
            self.counts.foreign += 1;
        }
    }

    /// `policy::first_fault()`.
    fn prepare(&mut self, id: VmaId) {
        let vma = *self.vma(id);
        if vma.anon != Av::None {
            return;
        }
        let root = match self.mms[vma.mm].root {
            Some(root) => root,
            None if self.mode.get() == Mode::Off => {
                self.vma_mut(id).anon = Av::Regular;
                return;
            }
            None => self.new_root(vma.mm, None),
        };
        let how = if self.natural(&vma) {
            Attach::Lazy
        } else {
            Attach::Link
        };
        self.attach(id, how, root);
    }

    /// `policy::clone()`.
    fn clone_anon(&mut self, dst: VmaId, src: VmaId, remap: bool) {
        match self.vma(src).anon {
            Av::None => (),
            Av::Regular => self.vma_mut(dst).anon = Av::Regular,
            Av::Root(root) => {
                let natural = self.natural(self.vma(dst));
                let how = match self.wrong {
                    Some(Wrong::CopyNeverLinked) => Attach::Lazy,
                    _ => state::copy(self.source(src), natural, remap),
                };
                self.attach(dst, how, root);
            }
        }
    }

    /// `policy::fork()`.
    fn fork_anon(&mut self, child: VmaId, parent: VmaId) {
        let (mm, pmm) = (self.vma(child).mm, self.vma(parent).mm);
        match self.vma(parent).anon {
            Av::None => (),
            Av::Regular => self.vma_mut(child).anon = Av::Regular,
            Av::Root(root) => {
                let own = self.mms[pmm].root == Some(root);
                let has_root = self.mms[mm].root.is_some();
                let orphans = if own && !has_root {
                    self.orphans(root)
                } else {
                    0
                };
                let natural = self.natural(self.vma(child));
                let own = own || self.is_wrong(Wrong::ForeignForgotten);
                match state::fork(self.source(parent), own, has_root, orphans, natural) {
                    Fork::Own(how) => {
                        let root = match self.mms[mm].root {
                            Some(root) => root,
                            None => self.new_root(mm, Some(root)),
                        };
                        self.attach(child, how, root);
                    }
                    Fork::Foreign => self.attach(child, Attach::Link, root),
                }
            }
        }
    }

    /// A VMA of `root` is about to be Lazy no more.
    fn forget(&self, root: RootId, id: VmaId) {
        let hint = &self.roots[root].hint;
        if hint.get() == Some(id) && !self.is_wrong(Wrong::HintKept) {
            hint.set(None);
        }
    }

    /// `policy::unlink()`.
    fn unlink(&mut self, id: VmaId) {
        let vma = *self.vma(id);
        if let Av::Root(root) = vma.anon {
            self.forget(root, id);
            match self.state(id) {
                State::Linked => {
                    self.roots[root].linked.retain(|&other| other != id);
                    let foreign = self.mms[vma.mm].root != Some(root);
                    if foreign && !self.is_wrong(Wrong::ForeignWithoutReference) {
                        self.put(root);
                    }
                }
                State::Detaching => self.roots[root].detaching.retain(|&other| other != id),
                _ => (),
            }
        }
        let vma = self.vma_mut(id);
        vma.anon = Av::None;
        vma.chain = Chain::Empty;
    }

    // The walk: walk.rs.

    /// The VMAs that a visit of `root` finds, for `pages` pages from `index`.
    fn visit(&self, root: RootId, index: usize, pages: usize) -> Vec<VmaId> {
        let last = index + pages - 1;
        let meets = |first: usize, end: usize| first <= last && end > index;
        let root = &self.roots[root];
        let mut seen = Vec::new();

        if let Some(mm) = root.mm {
            let mut at = index;
            let covers = |&id: &VmaId| {
                let vma = self.vmas[id].as_ref();
                vma.is_some_and(|vma| vma.start <= index && vma.end > last)
            };
            if let Some(id) = root.hint.get().filter(covers) {
                seen.push(id);
                at = last + 1;
            }
            while at <= last {
                let Some(id) = self.lookup(mm, at, last) else {
                    break;
                };
                let vma = self.vma(id);
                let empty = vma.chain == Chain::Empty || self.is_wrong(Wrong::ChainNotChecked);
                let here = vma.mm == mm && vma.anon == Av::Root(root.id)
                    || self.is_wrong(Wrong::MmNotChecked) && vma.anon != Av::None;
                if here && empty && self.natural(vma) {
                    seen.push(id);
                    root.hint.set(Some(id));
                }
                at = vma.end;
                if self.is_wrong(Wrong::FirstVmaOnly) {
                    break;
                }
            }
        }
        for &id in &root.linked {
            let vma = self.vma(id);
            if meets(vma.pgoff, vma.pgoff + (vma.end - vma.start)) {
                seen.push(id);
            }
        }
        for &id in &root.detaching {
            let vma = self.vma(id);
            if meets(vma.start, vma.end) {
                seen.push(id);
            }
        }
        seen
    }

    /// What `rmap_one` finds: the places in `vma` that have a page of the folio.
    fn places(&self, vma: VmaId, folio: FolioId) -> Vec<(MmId, usize)> {
        let vma = self.vma(vma);
        let Folio { index, pages, .. } = self.folios[folio];
        (0..pages)
            .filter(|page| (index + page).wrapping_sub(vma.pgoff) < vma.end - vma.start)
            .map(|page| (page, vma.start + index + page - vma.pgoff))
            .filter(|&(page, at)| match self.mms[vma.mm].ptes.get(&at) {
                Some(&(Pte::Page(f, p, _) | Pte::Migration(f, p, _))) => (f, p) == (folio, page),
                _ => false,
            })
            .map(|(_, at)| (vma.mm, at))
            .collect()
    }

    /// Where all page tables say that the folio is.
    fn scan(&self, folio: FolioId) -> Vec<(MmId, usize)> {
        let mut found = Vec::new();
        for (id, mm) in self.mms.iter().enumerate() {
            for (&at, pte) in &mm.ptes {
                if matches!(pte, Pte::Page(f, ..) | Pte::Migration(f, ..) if *f == folio) {
                    found.push((id, at));
                }
            }
        }
        found
    }

    fn mapped(&self, folio: FolioId) -> usize {
        let ptes = self.mms.iter().flat_map(|mm| mm.ptes.values());
        ptes.filter(|pte| matches!(pte, Pte::Page(f, ..) if *f == folio))
            .count()
    }

    fn order(&self, start: RootId) -> Vec<RootId> {
        let mut order = vec![start];
        if self.is_wrong(Wrong::NoChildren) {
            return order;
        }
        let mut cur = start;
        while let Some(next) = family::successor(&Tree(self, None), start, cur) {
            if cur != start {
                self.put(cur);
            }
            cur = next;
            order.push(cur);
        }
        if cur != start {
            self.put(cur);
        }
        order
    }

    /// Walks every folio, and compares.
    fn judge(&mut self) -> Outcome {
        for (id, mm) in self.mms.iter().enumerate() {
            let leaving = matches!(mm.steps.last(), Some(Step::Remove(..) | Step::Undo(_)));
            let marked = |vma: &&VmaId| self.vma(**vma).chain == Chain::Detaching;
            // A child's tree begins as a copy of the parent's.
            if let (Some(vma), true) = (mm.tree.values().find(marked), mm.born && !leaving) {
                return Err(format!("VMA {vma} of mm {id} is marked, and stays"));
            }
        }
        let mut ptes: BTreeMap<FolioId, Vec<(MmId, usize)>> = BTreeMap::new();
        for (id, mm) in self.mms.iter().enumerate() {
            for (&at, pte) in &mm.ptes {
                if let Pte::Page(folio, ..) | Pte::Migration(folio, ..) = *pte {
                    ptes.entry(folio).or_default().push((id, at));
                }
            }
        }
        for (folio, wanted) in ptes {
            let Folio {
                root, index, pages, ..
            } = self.folios[folio];
            let Some(root) = root else { continue };
            if self.roots[root].freed {
                return Err(format!(
                    "folio {folio} is mapped, and its root {root} is free"
                ));
            }
            let mut found = Vec::new();
            for root in self.order(root) {
                for vma in self.visit(root, index, pages) {
                    found.extend(self.places(vma, folio));
                }
            }
            found.sort_unstable();
            self.counts.walks += 1;
            self.counts.mappings += wanted.len() as u64;
            let what = format!("folio {folio}, root {root}, index {index}: the walk");
            if let Some(missed) = wanted.iter().find(|place| !found.contains(place)) {
                return Err(format!("{what} misses {missed:?} of {wanted:?}"));
            }
            if let Some(twice) = found.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(format!("{what} has twice {:?} of {wanted:?}", twice[0]));
            }
            // What it finds, page tables have.
            assert_eq!(found, wanted);
        }
        Ok(())
    }
}

/// Memory management, as simple as it can be.
impl World {
    /// An mm whose `mmap_lock` can be taken for writing.
    fn pick(&self, a: u8) -> Option<MmId> {
        let idle = |mm: &Mm| mm.live && mm.born && !mm.is_busy();
        let idle: Vec<MmId> = (0..self.mms.len())
            .filter(|&id| idle(&self.mms[id]))
            .collect();
        (!idle.is_empty()).then(|| idle[a as usize % idle.len()])
    }

    /// An mm in which there may be a page fault, and places in it where there may.
    fn pick_faulting(&self, a: u8) -> Option<(MmId, Vec<usize>)> {
        let places = |mm: MmId| -> Vec<usize> {
            let vmas = self.mms[mm].tree.values().copied();
            vmas.filter(|&id| self.may_fault(id))
                .flat_map(|id| self.vma(id).start..self.vma(id).end)
                .collect()
        };
        let mut mms: Vec<_> = (0..self.mms.len())
            .filter(|&id| self.mms[id].live && self.mms[id].born)
            .map(|id| (id, places(id)))
            .filter(|(_, places)| !places.is_empty())
            .collect();
        (!mms.is_empty()).then(|| mms.swap_remove(a as usize % mms.len()))
    }

    /// Whether a page fault in the VMA goes on.
    fn may_fault(&self, id: VmaId) -> bool {
        let vma = self.vma(id);
        let mm = &self.mms[vma.mm];
        match (mm.lock, mm.steps.last()) {
            // Of those who would have faults, nobody is there any more.
            (_, Some(Step::Exit(_))) => false,
            (Lock::Free | Lock::Read, _) => true,
            // With the lock of the VMA alone. __vmf_anon_prepare() takes `mmap_lock` for the first.
            (Lock::Write, _) => vma.anon != Av::None && !mm.locked.contains(&id),
        }
    }

    fn lock(&mut self, vmas: impl IntoIterator<Item = VmaId>) {
        for id in vmas {
            let mm = self.vma(id).mm;
            self.mms[mm].locked.insert(id);
        }
    }

    fn living(&self) -> usize {
        self.mms.iter().filter(|mm| mm.live).count()
    }

    /// A page of `mm` that has a VMA.
    fn place(&self, mm: MmId, b: u8) -> usize {
        let vmas = self.mms[mm].tree.values().map(|&id| self.vma(id));
        let pages: Vec<usize> = vmas.flat_map(|vma| vma.start..vma.end).collect();
        pages
            .get(b as usize % pages.len().max(1))
            .copied()
            .unwrap_or(0)
    }

    /// Where `len` pages are free, from `start` on.
    fn room(&self, mm: MmId, start: usize, len: usize) -> usize {
        let free = (start..SPAN).find(|&at| self.is_free(mm, at, len));
        free.unwrap_or(start)
    }

    fn is_free(&self, mm: MmId, start: usize, len: usize) -> bool {
        start + len <= SPAN && self.lookup(mm, start, start + len - 1).is_none()
    }

    fn mmap(&mut self, mm: MmId, start: usize, len: usize, wipe: bool) {
        if !self.is_free(mm, start, len) {
            return;
        }
        let id = self.add_vma(Vma {
            mm,
            start,
            end: start + len,
            pgoff: start,
            anon: Av::None,
            chain: Chain::Empty,
            wipe,
        });
        self.mms[mm].tree.insert(start, id);
    }

    fn split_at(&mut self, mm: MmId, page: usize) {
        let Some(old) = self.find(mm, page) else {
            return;
        };
        let vma = *self.vma(old);
        if vma.start == page {
            return;
        }
        let new = self.add_vma(Vma {
            start: page,
            pgoff: vma.pgoff + (page - vma.start),
            anon: Av::None,
            chain: Chain::Empty,
            ..vma
        });
        self.lock([old, new]);
        self.clone_anon(new, old, false);
        self.vma_mut(old).end = page;
        self.mms[mm].tree.insert(page, new);
        self.counts.splits += 1;
    }

    /// Whether two neighbours may become one.
    fn mergeable(prev: &Vma, next: &Vma) -> bool {
        prev.end == next.start
            && prev.pgoff + (prev.end - prev.start) == next.pgoff
            && prev.wipe == next.wipe
            && prev.anon.goes_with(next.anon)
    }

    /// dup_anon_vma()
    fn dup_anon(&mut self, to: VmaId, from: VmaId) {
        if self.vma(to).anon == Av::None {
            self.clone_anon(to, from, false);
        }
    }

    /// commit_merge(): `to` has the range from now on, and `gone` are freed.
    fn commit_merge(&mut self, to: VmaId, gone: &[VmaId], start: usize, end: usize, pgoff: usize) {
        let vma = *self.vma(to);
        self.lock(gone.iter().copied().chain([to]));
        for &id in gone {
            let start = self.vma(id).start;
            self.unlink(id);
            self.mms[vma.mm].tree.remove(&start);
            self.vmas[id] = None;
        }
        let tree = &mut self.mms[vma.mm].tree;
        tree.remove(&vma.start);
        tree.insert(start, to);
        let vma = self.vma_mut(to);
        (vma.start, vma.end, vma.pgoff) = (start, end, pgoff);
    }

    /// vma_merge_new_range(): makes what is to be mapped, maybe as a copy of `from`, a part of its
    /// neighbours. Returns whether it is one of `prev` and of `next`.
    fn merge_new(
        &mut self,
        new: Vma,
        from: Option<VmaId>,
        prev: Option<VmaId>,
        next: Option<VmaId>,
    ) -> (bool, bool) {
        let prev = prev.filter(|&prev| Self::mergeable(self.vma(prev), &new));
        let next = next.filter(|&next| {
            let anon = self.vma(next).anon;
            Self::mergeable(&new, self.vma(next))
                && prev.is_none_or(|prev| self.vma(prev).anon.goes_with(anon))
        });
        let Some(to) = prev.or(next) else {
            return (false, false);
        };
        let gone = next.filter(|_| prev.is_some());
        for from in gone.into_iter().chain(from) {
            self.dup_anon(to, from);
        }
        let (start, pgoff) = prev.map_or((new.start, new.pgoff), |prev| {
            (self.vma(prev).start, self.vma(prev).pgoff)
        });
        let end = next.map_or(new.end, |next| self.vma(next).end);
        self.commit_merge(to, gone.as_slice(), start, end, pgoff);
        (prev.is_some(), next.is_some())
    }

    /// vma_merge_existing_range(): merges the VMA at `page` into the one before, into the one
    /// behind, or all three: `how` is 0, 1 or more.
    fn merge_at(&mut self, mm: MmId, page: usize, how: u8) {
        let Some(middle) = self.find(mm, page) else {
            return;
        };
        let vma = *self.vma(middle);
        let prev = vma.start.checked_sub(1).and_then(|at| self.find(mm, at));
        let prev = prev.filter(|&prev| how != 1 && Self::mergeable(self.vma(prev), &vma));
        let next = self.find(mm, vma.end).filter(|&next| {
            let anon = self.vma(next).anon;
            how != 0
                && Self::mergeable(&vma, self.vma(next))
                && prev.is_none_or(|prev| self.vma(prev).anon.goes_with(anon))
        });
        match (prev, next) {
            (Some(prev), None) if how < 2 => {
                self.dup_anon(prev, middle);
                let Vma { start, pgoff, .. } = *self.vma(prev);
                self.commit_merge(prev, &[middle], start, vma.end, pgoff);
            }
            (None, Some(next)) if how < 2 => {
                self.dup_anon(next, middle);
                let end = self.vma(next).end;
                self.commit_merge(next, &[middle], vma.start, end, vma.pgoff);
            }
            (Some(prev), Some(next)) => {
                let other = self.vma(next).anon != Av::None;
                self.dup_anon(prev, if other { next } else { middle });
                let Vma { start, pgoff, .. } = *self.vma(prev);
                let end = self.vma(next).end;
                self.commit_merge(prev, &[middle, next], start, end, pgoff);
                self.counts.threes += 1;
            }
            _ => return,
        }
        self.counts.merges += 1;
    }

    fn add_folio(&mut self, vma: VmaId, at: usize, pages: usize, top: bool) -> FolioId {
        let vma = self.vma(vma);
        let root = match vma.anon {
            Av::Root(mut root) => {
                while let Some(up) = self.roots[root].up.filter(|_| top) {
                    root = up;
                }
                Some(root)
            }
            _ => None,
        };
        let index = vma.pgoff + (at - vma.start);
        self.folios.push(Folio {
            root,
            index,
            pages,
            locked: false,
        });
        self.folios.len() - 1
    }

    fn cached(&self, folio: FolioId) -> bool {
        let holds = |slot: &Slot| slot.cache.is_some_and(|(cached, _)| cached == folio);
        self.slots.iter().any(holds)
    }

    fn drop_slot(&mut self, slot: usize) {
        self.slots[slot].count -= 1;
        let Slot { count, cache } = self.slots[slot];
        // Who holds the lock of the folio takes it from the swap cache.
        if count == 0 && cache.is_some_and(|(folio, _)| !self.folios[folio].locked) {
            self.slots[slot].cache = None;
        }
    }

    fn fault(&mut self, mm: MmId, at: usize, write: bool, large: bool) -> Outcome {
        let Some(id) = self.find(mm, at) else {
            return Ok(());
        };
        assert!(self.may_fault(id), "a fault that has to wait goes on");
        self.prepare(id);
        let vma = *self.vma(id);
        let before = self.mms[mm].ptes.get(&at).copied();
        match before {
            None => {
                let start = at / LARGE * LARGE;
                let fits = start >= vma.start && start + LARGE <= vma.end;
                let empty = self.mms[mm]
                    .ptes
                    .range(start..start + LARGE)
                    .next()
                    .is_none();
                let (start, pages) = if large && fits && empty {
                    (start, LARGE)
                } else {
                    (at, 1)
                };
                let folio = self.add_folio(id, start, pages, false);
                let ptes = (0..pages).map(|page| (start + page, Pte::Page(folio, page, true)));
                self.mms[mm].ptes.extend(ptes);
            }
            Some(Pte::Page(folio, page, false)) if write => {
                let places = self.scan(folio);
                let Folio { pages, locked, .. } = self.folios[folio];
                let small = pages == 1;
                let alone = places.iter().all(|place| place.0 == mm);
                // Who has it locked, or in the swap cache, has a reference.
                let alone = alone && !locked && !self.cached(folio);
                // A large folio that is reused keeps the root that it names.
                let pte = if alone && (places.len() == 1 || !small) {
                    if let (Av::Root(root), true) = (vma.anon, small) {
                        self.folios[folio].root = Some(root);
                    }
                    Pte::Page(folio, page, true)
                } else {
                    Pte::Page(self.add_folio(id, at, 1, false), 0, true)
                };
                self.mms[mm].ptes.insert(at, pte);
            }
            Some(Pte::Swap(slot, exclusive)) => {
                let (folio, page) = match self.slots[slot].cache {
                    Some((folio, _)) if self.folios[folio].locked => return Ok(()),
                    Some(cached) => cached,
                    None => {
                        let top = !exclusive && !self.is_wrong(Wrong::SwapInNamesOwnRoot);
                        let new = (self.add_folio(id, at, 1, top), 0);
                        self.slots[slot].cache = Some(new);
                        new
                    }
                };
                self.related(folio, &vma)?;
                self.drop_slot(slot);
                let pte = Pte::Page(folio, page, exclusive);
                self.mms[mm].ptes.insert(at, pte);
                self.counts.swaps += 1;
            }
            _ => (),
        }
        if self.mms[mm].ptes.get(&at).copied() != before {
            let Mm { lock, steps, .. } = &self.mms[mm];
            let counts = &mut self.counts;
            match (lock, steps.last()) {
                (Lock::Free, _) => (),
                (Lock::Read, _) => counts.beside_munmap += 1,
                (Lock::Write, Some(Step::Fork(_) | Step::Copy(..))) => counts.beside_fork += 1,
                (Lock::Write, _) => counts.beside_others += 1,
            }
        }
        Ok(())
    }

    /// A folio of the swap cache names the VMA's root or one of its ancestors.
    fn related(&self, folio: FolioId, vma: &Vma) -> Outcome {
        let (Some(root), Av::Root(own)) = (self.folios[folio].root, vma.anon) else {
            return Ok(());
        };
        let mut line = std::iter::successors(Some(own), |&root| self.roots[root].up);
        if line.any(|other| other == root) && !self.roots[root].freed {
            return Ok(());
        }
        Err(format!(
            "folio {folio} comes back to root {own}, and names {root}"
        ))
    }

    fn zap(&mut self, mm: MmId, start: usize, end: usize) {
        let gone: Vec<usize> = self.mms[mm].ptes.range(start..end).map(|p| *p.0).collect();
        for at in gone {
            if let Some(Pte::Swap(slot, _)) = self.mms[mm].ptes.remove(&at) {
                self.drop_slot(slot);
            }
        }
    }

    fn copy_ptes(&mut self, vma: VmaId, parent: MmId) {
        let Vma {
            mm,
            start,
            end,
            wipe,
            ..
        } = *self.vma(vma);
        if wipe {
            return;
        }
        let ptes: Vec<_> = self.mms[parent].ptes.range(start..end).collect();
        let shared: Vec<_> = ptes
            .into_iter()
            .map(|(&at, &pte)| match pte {
                Pte::Page(folio, page, _) => (at, Pte::Page(folio, page, false)),
                Pte::Migration(folio, page, _) => (at, Pte::Migration(folio, page, false)),
                Pte::Swap(slot, _) => (at, Pte::Swap(slot, false)),
            })
            .collect();
        for &(_, pte) in &shared {
            if let Pte::Swap(slot, _) = pte {
                self.slots[slot].count += 1;
            }
        }
        self.mms[parent].ptes.extend(shared.iter().copied());
        self.mms[mm].ptes.extend(shared);
    }

    fn uffd_move(&mut self, mm: MmId, from: usize, to: usize) {
        let Some(&Pte::Page(folio, page, true)) = self.mms[mm].ptes.get(&from) else {
            return;
        };
        let Some(target) = self.find(mm, to) else {
            return;
        };
        let source = self.find(mm, from).expect("it has an entry");
        assert!(self.may_fault(target) && self.may_fault(source));
        let Folio { pages, locked, .. } = self.folios[folio];
        if pages > 1 || locked || self.cached(folio) || self.mms[mm].ptes.contains_key(&to) {
            return;
        }
        self.prepare(target);
        let vma = *self.vma(target);
        self.folios[folio].root = match vma.anon {
            Av::Root(root) => Some(root),
            _ => None,
        };
        self.folios[folio].index = vma.pgoff + (to - vma.start);
        self.mms[mm].ptes.remove(&from);
        self.mms[mm].ptes.insert(to, Pte::Page(folio, page, true));
        self.counts.uffd += 1;
    }

    /// A folio that can be unmapped: whole, quiet, and of a lazy root.
    fn pick_folio(&self, a: u8) -> Option<FolioId> {
        let mapped: BTreeSet<FolioId> = self
            .mms
            .iter()
            .flat_map(|mm| mm.ptes.values())
            .filter_map(|pte| match *pte {
                Pte::Page(folio, ..) => Some(folio),
                _ => None,
            })
            .filter(|&folio| !self.folios[folio].locked && self.folios[folio].root.is_some())
            .collect();
        let count = mapped.len().max(1);
        mapped.into_iter().nth(a as usize % count)
    }

    /// folio_referenced(), in one step: who tries to get a lock, and gets none of those of some
    /// roots. It has to find what is in the others; nothing, if its first root is contended.
    fn referenced(&mut self, folio: FolioId, contended: u8) -> Outcome {
        let Folio {
            root, index, pages, ..
        } = self.folios[folio];
        let start = root.expect("picked for having a root");
        let contended = |root: RootId| contended >> (root % 8) & 1 == 1;
        let mut wanted = self.scan(folio);
        let mut found = Vec::new();
        if contended(start) {
            wanted.clear();
        }
        if !contended(start) || self.is_wrong(Wrong::StartSkipped) {
            let mut cur = start;
            loop {
                let skipped = contended(cur);
                if !skipped {
                    for vma in self.visit(cur, index, pages) {
                        found.extend(self.places(vma, folio));
                    }
                }
                // walk.rs, descend(): the children are asked all the same.
                let barren = skipped && self.is_wrong(Wrong::SkippedWithChildren);
                let tree = Tree(self, barren.then_some(cur));
                let next = family::successor(&tree, start, cur);
                if cur != start {
                    self.put(cur);
                }
                self.counts.skipped += u64::from(skipped && next.is_some());
                match next {
                    Some(next) => cur = next,
                    None => break,
                }
            }
        }
        found.sort_unstable();
        // Whose root was skipped is not found.
        let root_of = |&(mm, at): &(MmId, usize)| {
            let mut vmas = self.vmas.iter().flatten();
            let here = |vma: &&Vma| vma.mm == mm && (vma.start..vma.end).contains(&at);
            match vmas.find(here).map(|vma| vma.anon) {
                Some(Av::Root(root)) => root,
                other => panic!("a page of a lazy root is in a VMA with {other:?}"),
            }
        };
        let all = wanted.len();
        wanted.retain(|place| !contended(root_of(place)));
        self.counts.hidden += (all - wanted.len()) as u64;
        self.counts.tried += 1;

        if contended(start) && !found.is_empty() {
            return Err(format!(
                "folio {folio}: a walk goes on without its first root, and finds {found:?}"
            ));
        }
        if let Some(missed) = wanted.iter().find(|place| !found.contains(place)) {
            return Err(format!(
                "folio {folio}: a contended root hides {missed:?} of {wanted:?}"
            ));
        }
        assert_eq!(found, wanted);
        Ok(())
    }

    /// try_to_unmap() of a folio that is in the swap cache.
    fn start_swap_out(&mut self, folio: FolioId) {
        if self.cached(folio) {
            return;
        }
        let first = self.slots.len();
        let slots = (0..self.folios[folio].pages).map(|page| Slot {
            count: 0,
            cache: Some((folio, page)),
        });
        self.slots.extend(slots);
        self.start_walk(folio, Goal::SwapOut(first));
    }

    fn start_migration(&mut self, folio: FolioId) {
        self.start_walk(folio, Goal::Migrate);
        self.counts.migrations += 1;
    }

    fn start_walk(&mut self, folio: FolioId, goal: Goal) {
        let cur = self.folios[folio].root.expect("picked for having a root");
        self.get(cur);
        self.folios[folio].locked = true;
        self.walks.push(Walk {
            folio,
            goal,
            cur,
            changed: 0,
            exclusive: 0,
        });
    }

    /// One visit of a walk, and the end of it if that was the last.
    fn step_walk(&mut self, which: usize) -> Outcome {
        let Walk { folio, cur, .. } = self.walks[which];
        let start = self.folios[folio].root;
        let start = start.expect("a locked folio keeps its root");
        if self.roots[cur].freed {
            return Err(format!("a walk comes to root {cur}, which is free"));
        }

        let late = self.is_wrong(Wrong::ChildrenFirst);
        let done = !(late && cur == start) && self.visit_walk(which, cur);
        let next = if done || self.is_wrong(Wrong::NoChildren) {
            None
        } else {
            family::successor(&Tree(self, None), start, cur)
        };
        if cur != start {
            self.put(cur);
        }
        match next {
            Some(next) => {
                self.walks[which].cur = next;
                Ok(())
            }
            None => {
                if late {
                    self.visit_walk(which, start);
                }
                self.end_walk(which, start)
            }
        }
    }

    /// Visits a root. True if the walk may stop.
    fn visit_walk(&mut self, which: usize, root: RootId) -> bool {
        let Walk { folio, goal, .. } = self.walks[which];
        let Folio { index, pages, .. } = self.folios[folio];
        for vma in self.visit(root, index, pages) {
            for (mm, at) in self.places(vma, folio) {
                let pte = self.mms[mm].ptes.get_mut(&at).expect("found just now");
                let walk = &mut self.walks[which];
                *pte = match (goal, *pte) {
                    (Goal::SwapOut(first), Pte::Page(_, page, exclusive)) => {
                        self.slots[first + page].count += 1;
                        Pte::Swap(first + page, exclusive)
                    }
                    (Goal::Migrate, Pte::Page(_, page, exclusive)) => {
                        Pte::Migration(folio, page, exclusive)
                    }
                    (Goal::Restore, Pte::Migration(_, page, exclusive)) => {
                        walk.exclusive += usize::from(exclusive);
                        Pte::Page(folio, page, exclusive)
                    }
                    _ => continue,
                };
                walk.changed += 1;
            }
            // rmap_walk_anon(): after each VMA.
            if self.may_stop(which) {
                return true;
            }
        }
        // The module: between two roots, also where nothing was found. Restoring has no `done`.
        !matches!(goal, Goal::Restore) && self.may_stop(which)
    }

    /// folio_not_mapped(), or what remove_migration_pte() returns.
    fn may_stop(&mut self, which: usize) -> bool {
        let Walk {
            folio,
            goal,
            changed,
            exclusive,
            ..
        } = self.walks[which];
        let pages = self.folios[folio].pages;
        let stop = match (goal, self.wrong) {
            (Goal::Restore, Some(Wrong::StopWithoutProof)) => changed >= pages,
            (Goal::Restore, _) => exclusive == pages,
            (_, Some(Wrong::StopAfterOne)) => changed > 0,
            _ => self.mapped(folio) == 0,
        };
        match goal {
            Goal::Restore => self.counts.restored += u64::from(stop),
            _ => self.counts.unmapped += u64::from(stop),
        }
        stop
    }

    /// No entry may be left, also where the walk stopped early.
    fn end_walk(&mut self, which: usize, start: RootId) -> Outcome {
        let Walk { folio, goal, .. } = self.walks[which];
        let left = |pte: &Pte| match (goal, *pte) {
            (Goal::Restore, Pte::Migration(f, ..)) => f == folio,
            (Goal::SwapOut(_) | Goal::Migrate, Pte::Page(f, ..)) => f == folio,
            _ => false,
        };
        for (id, mm) in self.mms.iter().enumerate() {
            if let Some((at, _)) = mm.ptes.iter().find(|(_, pte)| left(pte)) {
                let walk = match goal {
                    Goal::Restore => "restores",
                    _ => "unmaps",
                };
                return Err(format!(
                    "folio {folio}: a walk that {walk} has left an entry of mm {id} at {at}"
                ));
            }
        }
        if let Goal::Migrate = goal {
            self.walks[which] = Walk {
                folio,
                goal: Goal::Restore,
                cur: start,
                changed: 0,
                exclusive: 0,
            };
            return Ok(());
        }
        self.folios[folio].locked = false;
        for slot in &mut self.slots {
            let unused = |&(cached, _): &(FolioId, usize)| cached != folio || slot.count > 0;
            slot.cache = slot.cache.filter(unused);
        }
        self.walks.remove(which);
        self.put(start);
        Ok(())
    }

    fn start_munmap(&mut self, mm: MmId, start: usize, len: usize, how: Unmap) {
        let end = (start + len).min(SPAN);
        self.mms[mm].start([Step::Gather(start, end, how)]);
        self.counts.unmaps += 1;
    }

    /// mremap to a place that is free.
    fn start_move(&mut self, mm: MmId, mut remap: Remap) {
        let Some(id) = self.find(mm, remap.from) else {
            return;
        };
        let grows = remap.new_len - remap.len;
        remap.len = remap.len.min(self.vma(id).end - remap.from);
        remap.new_len = remap.len + grows;
        if self.is_free(mm, remap.to, remap.new_len) {
            self.mms[mm].start([Step::Remap(remap)]);
            self.counts.moves += 1;
        }
    }

    /// mremap with MREMAP_FIXED: what is in the way is unmapped. Without growth this moves all VMAs
    /// of the range, one by one.
    fn start_move_onto(&mut self, mm: MmId, remap: Remap) {
        let Remap {
            from,
            len,
            to,
            new_len,
            ..
        } = remap;
        let Some(first) = self.find(mm, from) else {
            return;
        };
        let end = match new_len {
            _ if new_len == len => from + len,
            _ => self.vma(first).end.min(from + len),
        };
        let to_end = to + (end - from) + (new_len - len);
        if to_end > SPAN || to < end && from < to_end {
            return;
        }
        let tree = self.mms[mm].tree.values().map(|&id| self.vma(id));
        let pieces: Vec<(usize, usize)> = tree
            .map(|vma| (vma.start.max(from), vma.end.min(end)))
            .filter(|piece| piece.0 < piece.1)
            .collect();
        for (start, end) in pieces.into_iter().rev() {
            let piece = Remap {
                from: start,
                len: end - start,
                to: to + (start - from),
                new_len: end - start + (new_len - len),
                ..remap
            };
            let end = piece.to + piece.new_len;
            let unmap = Step::Gather(piece.to, end, Unmap::Within);
            self.mms[mm].start([Step::Remap(piece), unmap]);
            self.counts.moves += 1;
            self.counts.fixed += u64::from(!self.is_free(mm, piece.to, piece.new_len));
        }
    }

    /// mremap that lets a VMA grow, in place if there is room behind it.
    fn grow(&mut self, mm: MmId, page: usize, by: usize) {
        let Some(id) = self.find(mm, page) else {
            return;
        };
        let vma = *self.vma(id);
        if !self.is_free(mm, vma.end, by) {
            let new_len = vma.end - page + by;
            let remap = Remap {
                from: page,
                len: vma.end - page,
                to: self.room(mm, 0, new_len),
                new_len,
                keep: false,
                stays: false,
            };
            self.start_move(mm, remap);
            return;
        }
        let new = Vma {
            start: vma.end,
            end: vma.end + by,
            pgoff: vma.pgoff + (vma.end - vma.start),
            ..vma
        };
        let next = self.find(mm, new.end);
        let (prev, next) = self.merge_new(new, None, Some(id), next);
        assert!(prev, "a VMA goes with itself");
        self.counts.grown += 1;
        self.counts.closed += u64::from(next);
    }

    /// copy_vma()
    fn copy_vma(&mut self, mm: MmId, remap: &Remap) {
        let Remap { from, to, keep, .. } = *remap;
        let id = self.find(mm, from).expect("only the target was unmapped");
        self.lock([id]);
        let source = *self.vma(id);
        let unfaulted = source.anon == Av::None;
        let new = Vma {
            start: to,
            end: to + remap.new_len,
            pgoff: if unfaulted {
                to
            } else {
                source.pgoff + (from - source.start)
            },
            chain: Chain::Empty,
            ..source
        };
        // What is kept must not become one with its copy.
        let other = |&beside: &VmaId| beside != id || !(unfaulted && keep);
        let prev = to.checked_sub(1).and_then(|page| self.find(mm, page));
        let next = self.find(mm, new.end).filter(other);
        match self.merge_new(new, Some(id), prev.filter(other), next) {
            (false, false) => {
                let new = self.add_vma(Vma {
                    anon: Av::None,
                    ..new
                });
                self.lock([new]);
                self.clone_anon(new, id, true);
                self.mms[mm].tree.insert(to, new);
            }
            (true, true) => self.counts.between += 1,
            (true, false) => self.counts.before += 1,
            (false, true) => self.counts.behind += 1,
        }
    }

    fn start_fork(&mut self, parent: MmId, fails: Option<usize>, rooted: bool) -> Option<MmId> {
        if self.living() >= PROCESSES {
            return None;
        }
        let child = self.mms.len();
        // __mt_dup(): the child's tree has the parent's VMAs at first.
        let tree = self.mms[parent].tree.clone();
        let left: Vec<VmaId> = tree.values().rev().copied().collect();
        let fails = fails.map(|n| n % (left.len() + 1));
        self.mms.push(Mm {
            tree,
            live: true,
            ..Mm::default()
        });
        let fork = Forking {
            child,
            left,
            fails,
            rooted,
        };
        self.mms[parent].start([Step::Fork(fork)]);
        self.counts.forks += 1;
        Some(child)
    }

    fn detach(&mut self, mm: MmId) {
        if let Some(root) = self.mms[mm].root {
            self.roots[root].mm = None;
        }
    }

    /// The VMAs that are the mm's own: in a child, fork may have got to some only.
    fn own_vmas(&self, mm: MmId) -> Vec<VmaId> {
        let all = self.mms[mm].tree.values().copied();
        all.filter(|&id| self.vma(id).mm == mm).collect()
    }

    fn bury(&mut self, mm: MmId) {
        for id in self.own_vmas(mm) {
            self.unlink(id);
            self.vmas[id] = None;
        }
        self.mms[mm].tree.clear();
        if let Some(root) = self.mms[mm].root.take() {
            self.put(root);
        }
        self.mms[mm].live = false;
    }

    /// The next step of a task.
    fn step(&mut self, mm: MmId) {
        let Some(step) = self.mms[mm].steps.pop() else {
            return;
        };
        let next = match step {
            Step::Gather(start, end, how) => {
                self.split_at(mm, start);
                self.split_at(mm, end);
                let vmas = self.mms[mm].tree.range(start..end).map(|vma| *vma.1);
                let vmas: Vec<VmaId> = vmas.collect();
                self.lock(vmas.iter().copied());
                (!vmas.is_empty()).then_some(Step::Mark(vmas, how))
            }
            Step::Mark(vmas, how) => {
                for &id in &vmas {
                    let lazy = self.state(id) == State::Lazy;
                    if let (Av::Root(root), true) = (self.vma(id).anon, lazy) {
                        if !self.is_wrong(Wrong::NoDetachingList) {
                            self.forget(root, id);
                            self.vma_mut(id).chain = Chain::Detaching;
                            self.roots[root].detaching.push(id);
                        }
                    }
                }
                Some(match how {
                    Unmap::Fails => Step::Undo(vmas),
                    _ => Step::Remove(vmas, how),
                })
            }
            Step::Undo(vmas) => {
                for &id in &vmas {
                    let undo = !self.is_wrong(Wrong::MarksKept);
                    if undo && self.state(id) == State::Detaching {
                        let root = self.mms[mm].root.expect("a Detaching VMA has a root");
                        self.roots[root].detaching.retain(|&other| other != id);
                        self.vma_mut(id).chain = Chain::Empty;
                        self.counts.undone += 1;
                    }
                }
                None
            }
            Step::Remove(vmas, how) => {
                for &id in &vmas {
                    let start = self.vma(id).start;
                    self.mms[mm].tree.remove(&start);
                }
                if let Unmap::Alone = how {
                    self.mms[mm].lock = Lock::Read;
                }
                Some(Step::Zap(vmas))
            }
            Step::Zap(vmas) => {
                for &id in &vmas {
                    let Vma { start, end, .. } = *self.vma(id);
                    self.zap(mm, start, end);
                }
                Some(Step::Unlink(vmas))
            }
            Step::Unlink(vmas) => {
                for &id in &vmas {
                    self.unlink(id);
                    self.vmas[id] = None;
                }
                None
            }
            Step::Fork(fork) if fork.fails == Some(fork.left.len()) => {
                if let (Some(&parent), true) = (fork.left.last(), fork.rooted) {
                    // anon_vma_fork() fails behind what makes the root.
                    let new = self.copy_for(fork.child, parent);
                    if !self.vma(new).wipe {
                        self.fork_anon(new, parent);
                    }
                    self.unlink(new);
                    self.vmas[new] = None;
                }
                self.counts.failed += 1;
                Some(Step::Fail(fork.child, 0))
            }
            Step::Fork(mut fork) => match fork.left.pop() {
                None => {
                    self.mms[fork.child].born = true;
                    None
                }
                Some(parent) => {
                    self.lock([parent]);
                    let new = self.copy_for(fork.child, parent);
                    let start = self.vma(new).start;
                    self.mms[fork.child].tree.insert(start, new);
                    if self.is_wrong(Wrong::CopyBeforeLink) {
                        self.copy_ptes(new, mm);
                    } else if !self.vma(new).wipe {
                        self.fork_anon(new, parent);
                    }
                    Some(Step::Copy(fork, parent))
                }
            },
            Step::Copy(fork, parent) => {
                let start = self.vma(parent).start;
                let new = self.find(fork.child, start);
                let new = new.expect("stored by the step before");
                if !self.is_wrong(Wrong::CopyBeforeLink) {
                    self.copy_ptes(new, mm);
                } else if !self.vma(new).wipe {
                    self.fork_anon(new, parent);
                }
                Some(Step::Fork(fork))
            }
            Step::Fail(child, step) => {
                match (step, self.is_wrong(Wrong::FailDetachesFirst)) {
                    (0, false) | (1, true) => self.zap(child, 0, SPAN),
                    (0, true) | (2, false) => self.detach(child),
                    (1, false) | (2, true) => {
                        for id in self.own_vmas(child) {
                            self.unlink(id);
                        }
                    }
                    _ => self.bury(child),
                }
                (step < 3).then_some(Step::Fail(child, step + 1))
            }
            Step::Remap(remap) => {
                self.copy_vma(mm, &remap);
                Some(Step::Pages(remap, 0))
            }
            Step::Pages(remap, done) if done < remap.len => {
                if let Some(pte) = self.mms[mm].ptes.remove(&(remap.from + done)) {
                    self.mms[mm].ptes.insert(remap.to + done, pte);
                }
                Some(Step::Pages(remap, done + 1))
            }
            Step::Pages(remap, _) if remap.keep => {
                let id = self.find(mm, remap.from).expect("it was kept");
                let Vma { start, end, .. } = *self.vma(id);
                if (start, end) == (remap.from, remap.from + remap.len) {
                    self.unlink(id);
                    self.vma_mut(id).pgoff = start;
                    self.counts.kept += 1;
                }
                None
            }
            Step::Pages(
                Remap {
                    from, len, stays, ..
                },
                _,
            ) => {
                let how = if stays { Unmap::Fails } else { Unmap::Within };
                Some(Step::Gather(from, from + len, how))
            }
            Step::Exit(step) => {
                match (step, self.is_wrong(Wrong::DetachBeforeZap)) {
                    (0, false) | (1, true) => self.zap(mm, 0, SPAN),
                    (0, true) | (1, false) => self.detach(mm),
                    _ => self.bury(mm),
                }
                (step < 2).then_some(Step::Exit(step + 1))
            }
        };
        self.mms[mm].steps.extend(next);
        if !self.mms[mm].is_busy() {
            self.mms[mm].lock = Lock::Free;
        }
        if self.mms[mm].lock != Lock::Write {
            self.mms[mm].locked.clear();
        }
    }

    /// vm_area_dup() for fork.
    fn copy_for(&mut self, child: MmId, parent: VmaId) -> VmaId {
        self.add_vma(Vma {
            mm: child,
            anon: Av::None,
            chain: Chain::Empty,
            ..*self.vma(parent)
        })
    }

    fn step_and_judge(&mut self, mm: MmId) -> Outcome {
        self.step(mm);
        self.counts.steps += 1;
        self.judge()
    }

    fn finish(&mut self, mm: MmId) -> Outcome {
        while self.mms[mm].is_busy() {
            self.step_and_judge(mm)?;
        }
        Ok(())
    }

    /// Goes on with the oldest walk until it is over. A migration is two of them.
    fn finish_walk(&mut self) -> Outcome {
        let folio = self.walks.first().map(|walk| walk.folio);
        while folio.is_some() && folio == self.walks.first().map(|walk| walk.folio) {
            self.step_walk(0)?;
            self.counts.steps += 1;
            self.judge()?;
        }
        Ok(())
    }

    fn exit(&mut self, mm: MmId) {
        self.mms[mm].start([Step::Exit(0)]);
        self.counts.exits += 1;
    }

    /// Does one operation, and judges.
    pub(super) fn apply(&mut self, op: Op) -> Outcome {
        let Op { kind, a, b, c, d } = op;
        let at = b as usize % SPAN;
        let len = 1 + c as usize % 8;
        if self.living() == 0 {
            self.mms.push(Mm::first());
        }
        let mm = self.pick(a);
        let (faulting, places) = self.pick_faulting(a).unwrap_or_default();
        let fault = |at: u8| places.get(at as usize % places.len().max(1)).copied();
        // Most operations are of use where something is.
        let place = mm.map_or(0, |mm| self.place(mm, b));
        // mremap lets what it moves grow in one case of four.
        let new_len = len + (d as usize / 4 % 8).saturating_sub(5);
        let remap = Remap {
            from: place,
            len,
            to: mm.map_or(0, |mm| self.room(mm, c as usize % SPAN, new_len)),
            new_len,
            keep: false,
            stays: d / 32 == 0,
        };
        match (kind, mm) {
            (Kind::Mmap, Some(mm)) => self.mmap(mm, self.room(mm, at, len), len, false),
            (Kind::MmapWipe, Some(mm)) => self.mmap(mm, self.room(mm, at, len), len, true),
            (Kind::Fault | Kind::FaultLarge | Kind::Write, _) => {
                if let Some(at) = fault(b) {
                    let large = kind == Kind::FaultLarge;
                    self.fault(faulting, at, kind != Kind::Fault, large)?;
                }
            }
            (Kind::SwapIn, _) => {
                let ptes = &self.mms[faulting].ptes;
                let swapped = |at: &&usize| matches!(ptes.get(at), Some(Pte::Swap(..)));
                let places: Vec<usize> = places.iter().filter(swapped).copied().collect();
                if let Some(&at) = places.get(b as usize % places.len().max(1)) {
                    self.fault(faulting, at, c % 2 == 0, false)?;
                }
            }
            (Kind::UffdMove, _) => {
                if let (Some(from), Some(to)) = (fault(b), fault(c)) {
                    self.uffd_move(faulting, from, to);
                }
            }
            (Kind::Fork, Some(mm)) => {
                let fails = (b % 8 == 0).then_some(c as usize);
                self.start_fork(mm, fails, d % 2 == 0);
            }
            (Kind::Exit, Some(mm)) => self.exit(mm),
            (Kind::Munmap, Some(mm)) => self.start_munmap(mm, place, len, Unmap::Alone),
            (Kind::MunmapFails, Some(mm)) => self.start_munmap(mm, place, len, Unmap::Fails),
            (Kind::Split, Some(mm)) => self.split_at(mm, place),
            (Kind::Merge, Some(mm)) => {
                let starts: Vec<usize> = self.mms[mm].tree.keys().copied().collect();
                let first = b as usize % starts.len().max(1);
                // Three that go together are not often there.
                let tries = if c % 4 < 2 { 1 } else { starts.len() };
                for at in starts.iter().cycle().skip(first).take(tries) {
                    self.merge_at(mm, *at, c % 4);
                }
            }
            (Kind::Mremap, Some(mm)) => self.start_move(mm, remap),
            (Kind::MremapFixed, Some(mm)) => {
                let to = c as usize % SPAN;
                self.start_move_onto(mm, Remap { to, ..remap });
            }
            (Kind::MremapGrow, Some(mm)) => {
                // Also by what is free up to the next one.
                let end = self.find(mm, place).map_or(0, |id| self.vma(id).end);
                let next = self.mms[mm].tree.range(end..).next();
                let gap = next
                    .map(|next| next.0 - end)
                    .filter(|gap| d % 2 == 0 && *gap > 0);
                self.grow(mm, place, gap.unwrap_or(1 + d as usize % 4));
            }
            (Kind::MremapKeep, Some(mm)) => {
                let keep = Remap {
                    new_len: len,
                    keep: true,
                    ..remap
                };
                if d % 4 == 0 {
                    let to = c as usize % SPAN;
                    self.start_move_onto(mm, Remap { to, ..keep });
                } else {
                    self.start_move(mm, keep);
                }
            }
            (Kind::MoveHome, Some(mm)) => {
                let away = |vma: &&Vma| vma.mm == mm && vma.pgoff != vma.start;
                let vmas = self.mms[mm].tree.values().map(|&id| self.vma(id));
                if let Some(vma) = vmas.filter(away).last().copied() {
                    let len = vma.end - vma.start;
                    let home = Remap {
                        from: vma.start,
                        len,
                        to: vma.pgoff,
                        new_len: len,
                        ..remap
                    };
                    if d % 4 == 0 {
                        self.start_move_onto(mm, home);
                    } else {
                        self.start_move(mm, home);
                    }
                }
            }
            (Kind::SwapOut, _) => {
                if let Some(folio) = self.pick_folio(a) {
                    self.start_swap_out(folio);
                }
            }
            (Kind::DropCache, _) => {
                if !self.slots.is_empty() {
                    let slot = a as usize % self.slots.len();
                    let cached = self.slots[slot].cache;
                    let unused =
                        |folio: FolioId| !self.folios[folio].locked && self.scan(folio).is_empty();
                    if cached.is_some_and(|(folio, _)| unused(folio)) {
                        self.slots[slot].cache = None;
                    }
                }
            }
            (Kind::Migrate, _) => {
                if let Some(folio) = self.pick_folio(a) {
                    self.start_migration(folio);
                }
            }
            (Kind::Referenced, _) => {
                if let Some(folio) = self.pick_folio(a) {
                    self.referenced(folio, c)?;
                }
            }
            (Kind::Step, _) => self.progress(b)?,
            (Kind::Finish, _) => {
                let busy = self.mms.iter().position(Mm::is_busy);
                match busy {
                    Some(mm) if b % 4 != 0 => self.finish(mm)?,
                    _ => self.finish_walk()?,
                }
            }
            (Kind::Mode, _) => self.mode.set(Mode::from(c % 2 == 0)),
            (Kind::Chain, Some(mut mm)) => {
                for _ in 0..MAX_ORPHANS + 2 {
                    let Some(child) = self.start_fork(mm, None, false) else {
                        break;
                    };
                    self.finish(mm)?;
                    self.exit(mm);
                    self.finish(mm)?;
                    mm = child;
                }
            }
            (_, None) => (),
        }
        if let Some(mm) = mm.filter(|&mm| !self.mms[mm].is_busy()) {
            self.mms[mm].locked.clear();
        }
        if c % 4 == 0 {
            self.work()?;
        }
        self.judge()
    }

    /// One step of one of those that are in the middle of something.
    fn progress(&mut self, which: u8) -> Outcome {
        let busy: Vec<MmId> = (0..self.mms.len())
            .filter(|&id| self.mms[id].is_busy())
            .collect();
        let count = busy.len() + self.walks.len();
        if count == 0 {
            return Ok(());
        }
        self.counts.steps += 1;
        let which = which as usize % count;
        match busy.get(which) {
            Some(&mm) => self.step(mm),
            None => self.step_walk(which - busy.len())?,
        }
        Ok(())
    }

    /// Lets all end, and all exit: nothing may be left.
    pub(super) fn end(&mut self) -> Outcome {
        for mm in 0..self.mms.len() {
            self.finish(mm)?;
        }
        while !self.walks.is_empty() {
            self.finish_walk()?;
        }
        for mm in 0..self.mms.len() {
            if self.mms[mm].live {
                self.exit(mm);
                self.finish(mm)?;
            }
        }
        self.work()?;
        if let Some(root) = self.roots.iter().find(|root| !root.freed) {
            return Err(format!("root {} has leaked", root.id));
        }
        if self.slots.iter().any(|slot| slot.count > 0) {
            return Err("a swap slot has leaked".into());
        }
        Ok(())
    }
}
