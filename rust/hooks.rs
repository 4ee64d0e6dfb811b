// SPDX-License-Identifier: GPL-2.0

//! The boundary to the kernel: what it calls, and what is registered with it.
//!
//! Raw pointers enter the module here and nowhere else. Each function that the kernel calls turns
//! them into views whose type states the locks that its caller holds, and does nothing more.

use crate::{
    policy::{
        self,
        Verdict, //
    },
    pure::mode::Mode,
    vma::MmapLocked, //
};
use core::{
    mem::size_of,
    ptr,
    slice, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    ModuleMetadata, //
};

/// [`bindings::anon_vma_lazy_ops`] in memory that lives as long as the module.
#[repr(transparent)]
struct Ops(bindings::anon_vma_lazy_ops);

// SAFETY: The operations are never written after they were made; the functions that they point to
// may be called from any thread.
unsafe impl Sync for Ops {}

impl Ops {
    const fn new(owner: *mut bindings::module, layout: bindings::anon_vma_lazy_layout) -> Self {
        Self(bindings::anon_vma_lazy_ops {
            owner,
            layout,
            prepare: Some(prepare),
        })
    }
}

/// The sizes of the structures that this module was compiled with.
const LAYOUT: bindings::anon_vma_lazy_layout = bindings::anon_vma_lazy_layout {
    mm: size_of::<bindings::mm_struct>() as u32,
    vma: size_of::<bindings::vm_area_struct>() as u32,
    anon_vma: size_of::<bindings::anon_vma>() as u32,
    avc: size_of::<bindings::anon_vma_chain>() as u32,
};

/// This module, for the core to hold on to.
const OWNER: *mut bindings::module = <crate::LocalModule as ModuleMetadata>::THIS_MODULE.as_ptr();

static OPS: Ops = Ops::new(OWNER, LAYOUT);

/// `anon_vma_lazy_ops.prepare`: the first anonymous fault of a VMA.
///
/// # Safety
///
/// To be called by the core only: `vma` is a VMA in the tree of its mm, whose `mmap_lock` is held
/// for reading or writing during the call.
unsafe extern "C" fn prepare(vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: `__anon_vma_prepare()`, the only caller, asserts that `mmap_lock` is held, and has
    // taken `vma` from the tree under it.
    let vma = unsafe { MmapLocked::from_raw(vma) };
    match policy::first_fault(vma) {
        Verdict::Regular => bindings::ANON_VMA_LAZY_REGULAR as c_int,
    }
}

/// The operations are registered for as long as this lives.
///
/// # Invariants
///
/// [`OPS`] is registered with the core, by this value alone.
pub(crate) struct Registration(());

impl Registration {
    /// Registers the operations; from then on the kernel calls them. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOEXEC`] if the module was compiled for another kernel configuration, [`EBUSY`] if
    /// operations are registered already. The core logs which.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: `OPS` is static and never changes.
        to_result(unsafe { bindings::anon_vma_lazy_register(&raw const OPS.0) })?;
        // INVARIANT: Registered just now, and the core registers no operations twice.
        Ok(Self(()))
    }
}

impl Drop for Registration {
    /// Unregisters the operations, and waits for those that are running. May sleep.
    fn drop(&mut self) {
        // SAFETY: By the type invariant these operations are registered.
        unsafe { bindings::anon_vma_lazy_unregister(&raw const OPS.0) };
    }
}

/// A [`bindings::ctl_table`] in memory that lives as long as the module.
#[repr(transparent)]
struct Table(bindings::ctl_table);

// SAFETY: The table is never written after it was made, and holds no pointer but to functions and
// to its own name.
unsafe impl Sync for Table {}

static SYSCTL: Table = Table(bindings::ctl_table {
    procname: c"anon_vma_lazy".as_ptr().cast(),
    data: ptr::null_mut(),
    maxlen: 1,
    mode: 0o644,
    proc_handler: Some(sysctl),
    poll: ptr::null_mut(),
    extra1: ptr::null_mut(),
    extra2: ptr::null_mut(),
});

/// Reads or sets `vm.anon_vma_lazy`.
///
/// # Safety
///
/// To be called by the sysctl core only: `buffer` holds `*len` bytes in kernel memory, `len` and
/// `pos` point to variables of the caller.
unsafe extern "C" fn sysctl(
    _table: *const bindings::ctl_table,
    write: c_int,
    buffer: *mut c_void,
    len: *mut usize,
    pos: *mut bindings::loff_t,
) -> c_int {
    // SAFETY: By the safety requirements of this function.
    let (len, pos) = unsafe { (&mut *len, &mut *pos) };
    if *len == 0 {
        return 0;
    }
    // SAFETY: By the safety requirements of this function; the sysctl core has copied what was
    // written into `buffer`, or cleared it for what is read.
    let text = unsafe { slice::from_raw_parts_mut(buffer.cast::<u8>(), *len) };

    if write != 0 {
        // The value is one write at the start of the file.
        return match Mode::parse(text) {
            Some(mode) if *pos == 0 => {
                policy::MODE.set(mode);
                *pos += *len as bindings::loff_t;
                0
            }
            _ => EINVAL.to_errno(),
        };
    }

    let rest = usize::try_from(*pos)
        .ok()
        .and_then(|pos| policy::MODE.get().text().get(pos..))
        .unwrap_or_default();
    *len = rest.len().min(text.len());
    for (to, from) in text.iter_mut().zip(rest) {
        *to = *from;
    }
    *pos += *len as bindings::loff_t;
    0
}

/// `vm.anon_vma_lazy` exists for as long as this lives.
///
/// # Invariants
///
/// The pointer is what `register_sysctl_sz()` returned, and not NULL.
pub(crate) struct SysctlRegistration(ptr::NonNull<bindings::ctl_table_header>);

// SAFETY: Sysctls may be unregistered by any thread.
unsafe impl Send for SysctlRegistration {}

// SAFETY: A shared reference gives access to nothing.
unsafe impl Sync for SysctlRegistration {}

impl SysctlRegistration {
    /// Registers the sysctl. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if that failed; the sysctl core logs a name that is taken.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The path and the table are static and never change.
        let header =
            unsafe { bindings::register_sysctl_sz(c"vm".as_ptr().cast(), &raw const SYSCTL.0, 1) };
        // INVARIANT: Returned by `register_sysctl_sz()`, and checked.
        ptr::NonNull::new(header).map(Self).ok_or(ENOMEM)
    }
}

impl Drop for SysctlRegistration {
    /// Removes the sysctl, and waits for handlers that are running. May sleep.
    fn drop(&mut self) {
        // SAFETY: By the type invariant; this is the only place that unregisters it.
        unsafe { bindings::unregister_sysctl_table(self.0.as_ptr()) };
    }
}

#[cfg(CONFIG_KUNIT)]
#[kernel::macros::kunit_tests(anon_vma_lazy_hooks)]
mod tests {
    use super::*;

    // These run when the module has been loaded, so `OPS` is registered.

    #[test]
    fn a_second_registration_is_busy() {
        assert!(Registration::new().map(core::mem::forget) == Err(EBUSY));
    }

    #[test]
    fn another_configuration_is_refused() {
        for field in 0..4 {
            let mut layout = LAYOUT;
            *[
                &mut layout.mm,
                &mut layout.vma,
                &mut layout.anon_vma,
                &mut layout.avc,
            ][field] += 8;
            let ops = Ops::new(OWNER, layout);
            // SAFETY: The layout is refused, so that the core does not keep the pointer.
            let ret = unsafe { bindings::anon_vma_lazy_register(&raw const ops.0) };
            assert_eq!(ret, ENOEXEC.to_errno());
        }
    }
}
