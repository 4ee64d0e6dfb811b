// SPDX-License-Identifier: GPL-2.0

//! The tree of roots: lists of children, and the order in which a walk visits them.

use core::{
    cell::Cell,
    ptr::NonNull, //
};

/// A place in a list of children, embedded in each of them.
///
/// # Invariants
///
/// While its owner is a member of a list, the neighbours are members of the same list. It is read
/// and written by holders of that list's lock only.
pub(crate) struct Link<T> {
    next: Cell<Option<NonNull<T>>>,
    prev: Cell<Option<NonNull<T>>>,
}

impl<T> Link<T> {
    /// Makes a link of something that is in no list.
    pub(crate) const fn new() -> Self {
        Self {
            next: Cell::new(None),
            prev: Cell::new(None),
        }
    }
}

/// Something that can be a member of one list of children.
///
/// # Safety
///
/// [`Member::link`] returns the same link in each call, a part of `self`.
pub(crate) unsafe trait Member: Sized {
    /// The link.
    fn link(&self) -> &Link<Self>;
}

/// A list of children, newest first. The lock that holds it is the list's lock.
///
/// A child is put at the head, so that one that keeps forking cannot prolong a walk by its children. (A
/// chain, in which each child forks the next, can: a visit takes less time than a fork.)
///
/// # Invariants
///
/// All members are valid for as long as they are members.
pub(crate) struct Children<T> {
    first: Option<NonNull<T>>,
}

// SAFETY: The list only hands out pointers; who uses them says why they are valid.
unsafe impl<T: Send + Sync> Send for Children<T> {}

impl<T: Member> Children<T> {
    /// Makes an empty list.
    pub(crate) const fn new() -> Self {
        Self { first: None }
    }

    /// Whether there are no children.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Puts `child` at the head.
    ///
    /// # Safety
    ///
    /// `child` is in no list, and stays valid until it is removed.
    pub(crate) unsafe fn push_front(&mut self, child: NonNull<T>) {
        // SAFETY: By the safety requirements.
        let link = unsafe { child.as_ref() }.link();
        link.prev.set(None);
        link.next.set(self.first);
        if let Some(second) = self.first {
            // SAFETY: By the type invariant members are valid.
            unsafe { second.as_ref() }.link().prev.set(Some(child));
        }
        // INVARIANT: The caller keeps `child` valid until it is removed.
        self.first = Some(child);
    }

    /// Takes `child` out.
    ///
    /// # Safety
    ///
    /// `child` is in this list.
    pub(crate) unsafe fn remove(&mut self, child: NonNull<T>) {
        // SAFETY: A member, by the safety requirements, and so valid.
        let link = unsafe { child.as_ref() }.link();
        let (next, prev) = (link.next.take(), link.prev.take());
        match prev {
            // SAFETY: By the type invariant members are valid.
            Some(prev) => unsafe { prev.as_ref() }.link().next.set(next),
            None => self.first = next,
        }
        if let Some(next) = next {
            // SAFETY: As above.
            unsafe { next.as_ref() }.link().prev.set(prev);
        }
    }

    /// The first of the members, from the head or else behind `after`, that `pin` can take.
    ///
    /// # Safety
    ///
    /// `after` is in this list.
    pub(crate) unsafe fn pin_next(
        &self,
        after: Option<NonNull<T>>,
        pin: impl Fn(&T) -> bool,
    ) -> Option<NonNull<T>> {
        let mut at = match after {
            // SAFETY: A member, by the safety requirements, and so valid.
            Some(after) => unsafe { after.as_ref() }.link().next.get(),
            None => self.first,
        };
        while let Some(child) = at {
            // SAFETY: By the type invariant members are valid.
            let child_ref = unsafe { child.as_ref() };
            if pin(child_ref) {
                return Some(child);
            }
            at = child_ref.link().next.get();
        }
        None
    }
}

/// What a walk has to know of the tree of roots.
pub(crate) trait Family {
    /// A root.
    type Root: Copy + PartialEq;

    /// The parent.
    fn parent(&self, root: Self::Root) -> Option<Self::Root>;

    /// The first child of `parent`, from the head or else behind `after`, that can be pinned, which
    /// it then is. The look happens under the lock of the list, the one that fork links under.
    ///
    /// # Safety
    ///
    /// `after` is a child of `parent`.
    unsafe fn pin_child(&self, parent: Self::Root, after: Option<Self::Root>)
        -> Option<Self::Root>;
}

/// Whom a walk that began at `start` visits after `cur`: parents before their children.
///
/// `cur` is `start` or is pinned, and has been visited. Its pin keeps all of its ancestors, and so
/// each of them stays in its parent's list. Returns a pinned root, or [`None`] at the end.
pub(crate) fn successor<F: Family>(family: &F, start: F::Root, cur: F::Root) -> Option<F::Root> {
    // SAFETY: There is no `after` that would have to be a child of `cur`.
    if let Some(child) = unsafe { family.pin_child(cur, None) } {
        return Some(child);
    }
    let mut at = cur;
    while at != start {
        let parent = family.parent(at)?;
        // SAFETY: `parent` is the parent of `at`.
        if let Some(sibling) = unsafe { family.pin_child(parent, Some(at)) } {
            return Some(sibling);
        }
        at = parent;
    }
    None
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(anon_vma_lazy_family))]
mod tests {
    use super::*;

    struct Node {
        link: Link<Node>,
        children: Cell<Option<NonNull<Node>>>,
        parent: Option<usize>,
        alive: bool,
    }

    // SAFETY: The link is a field.
    unsafe impl Member for Node {
        fn link(&self) -> &Link<Self> {
            &self.link
        }
    }

    /// A tree in an array: `parent` is an index below its own.
    struct Tree<'a>(&'a [Node]);

    impl Tree<'_> {
        fn index(&self, node: NonNull<Node>) -> usize {
            let index = self.0.iter().position(|other| NonNull::from(other) == node);
            index.unwrap_or(usize::MAX)
        }

        fn list(&self, parent: usize) -> Children<Node> {
            Children {
                first: self.0[parent].children.get(),
            }
        }
    }

    impl Family for Tree<'_> {
        type Root = usize;

        fn parent(&self, root: usize) -> Option<usize> {
            self.0[root].parent
        }

        unsafe fn pin_child(&self, parent: usize, after: Option<usize>) -> Option<usize> {
            // SAFETY: The nodes live in the array, and `after` is a child of `parent`.
            let child = unsafe {
                self.list(parent)
                    .pin_next(after.map(|index| NonNull::from(&self.0[index])), |node| {
                        node.alive
                    })
            };
            child.map(|child| self.index(child))
        }
    }

    const fn node(parent: Option<usize>, alive: bool) -> Node {
        Node {
            link: Link::new(),
            children: Cell::new(None),
            parent,
            alive,
        }
    }

    fn grow<'a>(nodes: &'a [Node]) -> Tree<'a> {
        let tree = Tree(nodes);
        for node in nodes {
            if let Some(parent) = node.parent {
                let mut list = tree.list(parent);
                // SAFETY: In no list yet, and the array outlives the tree.
                unsafe { list.push_front(NonNull::from(node)) };
                nodes[parent].children.set(list.first);
            }
        }
        tree
    }

    fn walk(tree: &Tree<'_>, start: usize, seen: &mut [usize]) -> usize {
        let (mut cur, mut count) = (start, 0);
        loop {
            seen[count] = cur;
            count += 1;
            match successor(tree, start, cur) {
                Some(next) => cur = next,
                None => return count,
            }
        }
    }

    #[test]
    fn parents_come_before_children_newest_first() {
        let nodes = [
            node(None, true),
            node(Some(0), true),
            node(Some(1), true),
            node(Some(0), true),
            node(Some(3), true),
            node(Some(3), true),
        ];
        let tree = grow(&nodes);
        let mut seen = [0; 6];

        assert_eq!(walk(&tree, 0, &mut seen), 6);
        assert_eq!(seen, [0, 3, 5, 4, 1, 2]);
        // A walk never leaves the subtree that it began with.
        assert_eq!(walk(&tree, 3, &mut seen), 3);
        assert_eq!(seen[..3], [3, 5, 4]);
        assert_eq!(walk(&tree, 2, &mut seen), 1);
    }

    #[test]
    fn those_that_cannot_be_pinned_are_passed_over() {
        let nodes = [
            node(None, true),
            node(Some(0), false),
            node(Some(0), true),
            node(Some(0), false),
        ];
        let tree = grow(&nodes);
        let mut seen = [0; 4];

        assert_eq!(walk(&tree, 0, &mut seen), 2);
        assert_eq!(seen[..2], [0, 2]);
    }

    #[test]
    fn removal_keeps_the_others_in_order() {
        for gone in 0..3 {
            let nodes = [node(None, true), node(None, true), node(None, true)];
            let mut list = Children::new();
            assert!(list.is_empty());
            for node in &nodes {
                // SAFETY: In no list yet; the array outlives the list.
                unsafe { list.push_front(NonNull::from(node)) };
            }
            // SAFETY: It was put there just now.
            unsafe { list.remove(NonNull::from(&nodes[gone])) };
            let mut at = None;
            for index in (0..3).rev().filter(|&index| index != gone) {
                // SAFETY: `at` is what this returned before, and is still there.
                at = unsafe { list.pin_next(at, |_| true) };
                assert_eq!(at, Some(NonNull::from(&nodes[index])));
            }
            // SAFETY: As above.
            assert!(unsafe { list.pin_next(at, |_| true) }.is_none());
        }
    }
}
