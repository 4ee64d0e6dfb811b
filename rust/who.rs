// SPDX-License-Identifier: GPL-2.0

//! Who maps an anonymous page: the walk of this module, as other modules may use it.
//!
//! First a walk collects the VMAs that may map the page, with a reference to the users of each mm.
//! Then, with no root's lock held, the page tables of each are looked at: `mmap_lock` comes before the
//! roots' locks, and the last reference to an mm may only be dropped without them.

use crate::{
    pure::state::State,
    shim::{
        self,
        PageRef, //
    },
    vma::Locked,
    walk::OwnWalk, //
};
use kernel::{
    mm::MmWithUser,
    prelude::*,
    sync::aref::ARef, //
};

/// One mapping: `struct anon_rmap_where` of `include/anon_rmap.h`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Mapping {
    address: u64,
    pid: i32,
    how: u32,
}

const _: () = assert!(core::mem::size_of::<Mapping>() == 16);

// `ANON_RMAP_LAZY`, `_LINKED`, `_DETACHING`.
const _: () =
    assert!(State::Lazy.code() == 1 && State::Linked.code() == 2 && State::Detaching.code() == 3);

/// A VMA that may map the page.
struct Candidate {
    users: ARef<MmWithUser>,
    address: usize,
    how: State,
}

/// So many VMAs may map the page at most.
const LIMIT: usize = 1 << 16;

/// Calls `found` for each mapping of the page that the mm has at `address`, and returns their number.
///
/// May sleep; no lock may be held. The caller keeps the module.
///
/// # Errors
///
/// [`ENOENT`]: nothing is mapped there. [`EOPNOTSUPP`]: not a page of a lazy root. [`ENOMEM`].
/// [`E2BIG`]: more than [`LIMIT`] VMAs may map it.
pub(crate) fn who(
    user: &MmWithUser,
    address: usize,
    mut found: impl FnMut(Mapping),
) -> Result<usize> {
    let mut room = 32;
    let (page, candidates) = loop {
        // Nothing is allocated under a root's lock: ask for more, and begin again.
        let mut candidates = KVVec::with_capacity(room, GFP_KERNEL)?;
        let (page, needed) = collect(user, address, &mut candidates)?;
        if needed <= candidates.capacity() {
            break (page, candidates);
        }
        if needed > LIMIT {
            return Err(E2BIG);
        }
        room = needed.next_power_of_two();
    };

    let mut count = 0usize;
    for candidate in candidates {
        let locked = Locked::new(&candidate.users);
        if PageRef::at(&locked, candidate.address).is_some_and(|other| other.is(&page)) {
            count = count.saturating_add(1);
            found(Mapping {
                address: candidate.address as u64,
                pid: shim::pid(locked.mm()).unwrap_or(0),
                how: candidate.how.code().into(),
            });
        }
    }
    Ok(count)
}

/// Puts the VMAs that may map the page into `candidates`, as far as there is room, and returns the
/// page and the number of VMAs.
fn collect(
    user: &MmWithUser,
    address: usize,
    candidates: &mut KVVec<Candidate>,
) -> Result<(PageRef, usize)> {
    let locked = Locked::new(user);
    let vma = locked
        .next(address)
        .filter(|vma| vma.start() <= address)
        .ok_or(ENOENT)?;
    let page = PageRef::at(&locked, address).ok_or(ENOENT)?;
    let (anon_vma, pgoff) = page.anon_vma().ok_or(EOPNOTSUPP)?;
    // `mmap_lock` keeps the VMA's root, and that its ancestors: what the folio names is one of them
    // or, if it is not, nothing that may be looked into. It may become another one of the family
    // meanwhile, a descendant of this, whose mappings are found as well.
    let start = vma
        .root()
        .and_then(|root| root.ancestor(anon_vma))
        .ok_or(EOPNOTSUPP)?;

    let mut needed = 0usize;
    let mut walk = OwnWalk::new(start, pgoff);
    while candidates.len() < candidates.capacity() {
        let Some(found) = walk.next() else {
            return Ok((page, needed));
        };
        needed = needed.saturating_add(1);
        // A VMA whose mm has no users any more is about to go.
        if let Some(users) = found.users {
            // There is room: the loop's condition.
            let _ = candidates.push_within_capacity(Candidate {
                users,
                address: found.area.address_of(pgoff),
                how: found.how,
            });
        }
    }
    while walk.skip() {
        needed = needed.saturating_add(1);
    }
    Ok((page, needed))
}
