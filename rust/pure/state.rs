// SPDX-License-Identifier: GPL-2.0

//! The states of a VMA, and what becomes of a VMA that is prepared or copied.
//!
//! A state is derived from `vma->anon_vma` and from the list head `vma->anon_vma_chain`, and stored
//! nowhere else:
//!
//! | state | `anon_vma` | list head | found by a walk |
//! |---|---|---|---|
//! | Unfaulted | NULL | empty | - |
//! | Lazy | its mm's root | empty | in the VMA tree, at its address |
//! | Linked | a lazy root | one `anon_vma_chain` | in that root's interval tree |
//! | Detaching | its mm's root | on the root's detaching list | on that list |
//! | Regular | an ordinary one | ordinary | in ordinary interval trees |

/// What `vma->anon_vma` points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anon {
    /// Nothing.
    None,
    /// The lazy root of the VMA's own mm.
    Own,
    /// The lazy root of another mm.
    Foreign,
    /// An ordinary `anon_vma`.
    Regular,
}

/// What the list head `vma->anon_vma_chain` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chain {
    /// Nothing.
    Empty,
    /// `anon_vma_chain` objects.
    Links,
    /// The mark that the VMA is on a root's detaching list.
    Detaching,
}

/// The state of a VMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It took no anonymous fault yet.
    Unfaulted,
    /// It shares the root of its mm, and is found by its address.
    Lazy,
    /// It is linked into the interval tree of a lazy root.
    Linked,
    /// It was Lazy and is being unmapped: it has left the VMA tree, and may have PTEs.
    Detaching,
    /// It has an `anon_vma` as Linux makes it without a module.
    Regular,
}

impl State {
    /// The number that tracepoints use, which `rust/anon_vma_lazy_trace.h` gives names to.
    pub(crate) const fn code(self) -> u8 {
        match self {
            State::Unfaulted => 0,
            State::Lazy => 1,
            State::Linked => 2,
            State::Detaching => 3,
            State::Regular => 4,
        }
    }

    /// The name that debugfs shows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Unfaulted => "unfaulted",
            State::Lazy => "lazy",
            State::Linked => "linked",
            State::Detaching => "detaching",
            State::Regular => "regular",
        }
    }

    /// What a copy of such a VMA is made of, if it has a lazy root and can be copied.
    pub(crate) fn source(self) -> Option<Source> {
        match self {
            State::Lazy => Some(Source::Lazy),
            State::Linked => Some(Source::Linked),
            State::Unfaulted | State::Detaching | State::Regular => None,
        }
    }
}

/// Derives the state.
///
/// # Errors
///
/// The two facts, if no transition leads to them together.
pub(crate) fn decode(anon: Anon, chain: Chain) -> Result<State, (Anon, Chain)> {
    match (anon, chain) {
        (Anon::None, Chain::Empty) => Ok(State::Unfaulted),
        (Anon::Own, Chain::Empty) => Ok(State::Lazy),
        (Anon::Own | Anon::Foreign, Chain::Links) => Ok(State::Linked),
        (Anon::Own, Chain::Detaching) => Ok(State::Detaching),
        (Anon::Regular, _) => Ok(State::Regular),
        wrong => Err(wrong),
    }
}

/// How a VMA is attached to a lazy root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attach {
    /// By the pointer alone.
    Lazy,
    /// By an `anon_vma_chain` in the root's interval tree.
    Link,
}

/// The state of a VMA with a lazy root that is copied. Others are not: Detaching ones have left the
/// VMA tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// See [`State::Lazy`].
    Lazy,
    /// See [`State::Linked`].
    Linked,
}

/// How the copy of a lazy VMA inside its mm is attached, by split, merge or mremap.
///
/// `natural` is a fact about the copy, `remap` says that mremap makes it. Such a copy is always
/// linked. It would be without that: a Lazy VMA is not natural where it is moved to, and what comes home
/// is Linked. The rule keeps this from resting on how mremap works.
pub(crate) fn copy(source: Source, natural: bool, remap: bool) -> Attach {
    if source == Source::Lazy && natural && !remap {
        Attach::Lazy
    } else {
        Attach::Link
    }
}

/// What fork does with a VMA of a lazy root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fork {
    /// Attach the child's VMA to the root of the child's mm, which is made if there is none.
    Own(Attach),
    /// Link it to the root that the parent's VMA has, and hold a reference to that.
    Foreign,
}

/// The number of ancestors without an mm that a new root may have.
///
/// A loop of fork and exit leaves one such root behind in each generation, held by its child.
pub(crate) const MAX_ORPHANS: usize = 8;

/// Decides how fork attaches the copy of a VMA.
///
/// `own` says that the parent's VMA has the root of the parent's mm, `child_has_root` that the child
/// has one by now, `orphans` how many of the roots that would be the ancestors of a new one have no
/// mm. `natural` is a fact about the copy.
pub(crate) fn fork(
    source: Source,
    own: bool,
    child_has_root: bool,
    orphans: usize,
    natural: bool,
) -> Fork {
    if !own || (!child_has_root && orphans > MAX_ORPHANS) {
        Fork::Foreign
    } else {
        Fork::Own(copy(source, natural, false))
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(anon_vma_lazy_state))]
mod tests {
    use super::*;

    const ANON: [Anon; 4] = [Anon::None, Anon::Own, Anon::Foreign, Anon::Regular];
    const CHAIN: [Chain; 3] = [Chain::Empty, Chain::Links, Chain::Detaching];

    #[test]
    fn states_have_names_and_codes_of_their_own() {
        let all = [
            State::Unfaulted,
            State::Lazy,
            State::Linked,
            State::Detaching,
            State::Regular,
        ];
        for (index, state) in all.into_iter().enumerate() {
            assert_eq!(usize::from(state.code()), index);
            assert_eq!(all.iter().filter(|s| s.name() == state.name()).count(), 1);
        }
    }

    #[test]
    fn each_pair_of_facts_has_one_meaning() {
        for anon in ANON {
            for chain in CHAIN {
                let wanted = match (anon, chain) {
                    (Anon::None, Chain::Empty) => Some(State::Unfaulted),
                    (Anon::None, _) => None,
                    (Anon::Own, Chain::Empty) => Some(State::Lazy),
                    (Anon::Own, Chain::Links) => Some(State::Linked),
                    (Anon::Own, Chain::Detaching) => Some(State::Detaching),
                    (Anon::Foreign, Chain::Links) => Some(State::Linked),
                    (Anon::Foreign, _) => None,
                    (Anon::Regular, _) => Some(State::Regular),
                };
                assert_eq!(decode(anon, chain).ok(), wanted);
            }
        }
    }

    #[test]
    fn only_a_natural_copy_of_a_lazy_vma_is_lazy() {
        for source in [Source::Lazy, Source::Linked] {
            for natural in [false, true] {
                for remap in [false, true] {
                    let lazy = source == Source::Lazy && natural && !remap;
                    let wanted = if lazy { Attach::Lazy } else { Attach::Link };
                    assert_eq!(copy(source, natural, remap), wanted);
                }
            }
        }
    }

    #[test]
    fn fork_keeps_a_foreign_root_whatever_the_depth() {
        for orphans in [0, MAX_ORPHANS, MAX_ORPHANS + 1] {
            for has_root in [false, true] {
                assert_eq!(
                    fork(Source::Linked, false, has_root, orphans, true),
                    Fork::Foreign
                );
            }
        }
    }

    #[test]
    fn fork_makes_no_root_below_too_many_orphans() {
        let make = |orphans| fork(Source::Lazy, true, false, orphans, true);

        assert_eq!(make(MAX_ORPHANS), Fork::Own(Attach::Lazy));
        assert_eq!(make(MAX_ORPHANS + 1), Fork::Foreign);
        // A root that was made for an earlier VMA of the same fork serves the others.
        assert_eq!(
            fork(Source::Linked, true, true, MAX_ORPHANS + 1, true),
            Fork::Own(Attach::Link)
        );
    }
}
