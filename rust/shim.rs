// SPDX-License-Identifier: GPL-2.0

//! The module's own C, `rust/shim.c`: what is inline or a macro in C, and has no helper.

use crate::{
    pure::counters::Event,
    vma::{
        Locked,
        Mm, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::{
        c_uint,
        c_ulong,
        c_void, //
    }, //
};

// In some configurations bindgen has empty structs inside of these: only pointers are passed.
#[allow(improper_ctypes)]
extern "C" {
    fn anon_vma_lazy_shim_init();
    fn anon_vma_lazy_taken_by_reclaim(lock: *mut bindings::rw_semaphore);
    fn anon_vma_lazy_in_rcu_mode(mm: *mut bindings::mm_struct) -> bool;
    fn anon_vma_lazy_id(address: *const c_void) -> u32;
    fn anon_vma_lazy_pid(mm: *const bindings::mm_struct) -> bindings::pid_t;
    fn anon_vma_lazy_get_page(
        mm: *mut bindings::mm_struct,
        address: c_ulong,
    ) -> *mut bindings::page;
    fn anon_vma_lazy_put_page(page: *mut bindings::page);
    fn anon_vma_lazy_page_anon_vma(page: *mut bindings::page, pgoff: *mut c_ulong) -> *mut c_void;
    fn anon_vma_lazy_sum(event: c_uint) -> u64;
    /// A per-CPU variable: only its address means something.
    static mut anon_vma_lazy_events: [u64; EVENTS];
}

/// `ANON_VMA_LAZY_EVENTS`: room for as many.
const EVENTS: usize = 32;

const _: () = assert!(Event::ALL.len() <= EVENTS);

/// Counts an event. Any context.
#[inline]
pub(crate) fn count(event: usize) {
    if event < EVENTS {
        // SAFETY: A counter of that per-CPU variable. The helper is one instruction on this CPU, or
        // one that cannot be interrupted by another task of it.
        unsafe {
            bindings::this_cpu_inc_u64((&raw mut anon_vma_lazy_events).cast::<u64>().add(event))
        };
    }
}

/// The sum of an event's counts, of all CPUs. Any context.
pub(crate) fn sum(event: usize) -> u64 {
    // SAFETY: A number that is too large gives 0.
    unsafe { anon_vma_lazy_sum(event as c_uint) }
}

/// Prepares the others. Process context.
///
/// # Safety
///
/// To be called once, before anything else of the module runs.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirements nothing reads the key yet.
    unsafe { anon_vma_lazy_shim_init() };
}

/// Has lockdep find allocations under `lock`, as reclaim may want it. May sleep.
///
/// # Safety
///
/// The lock is initialized.
#[inline]
pub(crate) unsafe fn taken_by_reclaim(lock: *mut bindings::rw_semaphore) {
    if cfg!(CONFIG_LOCKDEP) {
        // SAFETY: By the safety requirements.
        unsafe { anon_vma_lazy_taken_by_reclaim(lock) };
    }
}

/// Whether the VMA tree of the mm is in RCU mode, which is all that lets one read it without a lock.
/// Any context.
#[inline]
pub(crate) fn in_rcu_mode(mm: &Mm) -> bool {
    // SAFETY: By its type invariant the mm is valid.
    unsafe { anon_vma_lazy_in_rcu_mode(mm.as_ptr()) }
}

/// A name for the object that does not tell where it is; never 0. Any context.
///
/// Two objects may have the same name, and it is used again with the memory.
pub(crate) fn id<T>(object: &T) -> u32 {
    // SAFETY: The address is hashed only.
    unsafe { anon_vma_lazy_id(core::ptr::from_ref(object).cast()) }
}

/// A process that has the mm, in the namespace of the current one, or [`None`]. Any context that
/// may take the RCU read lock; looks at all processes.
pub(crate) fn pid(mm: &Mm) -> Option<i32> {
    // SAFETY: The mm is only compared.
    let pid = unsafe { anon_vma_lazy_pid(mm.as_ptr()) };
    (pid != 0).then_some(pid)
}

/// A page with a reference.
///
/// # Invariants
///
/// The pointer is valid, and the value owns one reference to the page's folio.
pub(crate) struct PageRef(NonNull<bindings::page>);

impl PageRef {
    /// The page that is mapped at `address`. Nothing is faulted in. May sleep.
    pub(crate) fn at(mm: &Locked<'_>, address: usize) -> Option<Self> {
        // SAFETY: `mmap_lock` is held for reading, by the type of `mm`.
        let page = unsafe { anon_vma_lazy_get_page(mm.as_ptr(), address) };
        // INVARIANT: Just referenced.
        NonNull::new(page).map(Self)
    }

    /// Whether both are the same page.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// The `anon_vma` that the folio names, and the anonymous page offset of the page. [`None`] if it
    /// is not anonymous, or of KSM.
    ///
    /// The first is to be compared only: by now nothing may keep it.
    pub(crate) fn anon_vma(&self) -> Option<(*mut bindings::anon_vma, usize)> {
        let mut pgoff = 0;
        // SAFETY: By the type invariant the page is valid, and its folio is not split.
        let anon_vma = unsafe { anon_vma_lazy_page_anon_vma(self.0.as_ptr(), &raw mut pgoff) };
        (!anon_vma.is_null()).then_some((anon_vma.cast(), pgoff))
    }
}

impl Drop for PageRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { anon_vma_lazy_put_page(self.0.as_ptr()) };
    }
}
