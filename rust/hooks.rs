// SPDX-License-Identifier: GPL-2.0

//! The boundary to the kernel: what it calls, and what is registered with it.
//!
//! Raw pointers enter the module here: each function that the kernel calls turns them into slices
//! and views, whose type states the locks that its caller holds, and leaves the rest to code that
//! sees views. (The slab allocator's constructor is beside what it constructs, in `root.rs`; what
//! the views are made of, in `vma.rs`, `root.rs`, `walk.rs` and `shim.rs`, follows pointers that lie
//! in the kernel's structures, each for a reason that is stated there.)
//!
//! # Lifetime
//!
//! What is registered with the kernel points to statics and functions of this module. They go when
//! it is unloaded, and so each registration must be dropped before that: its constructor is
//! `unsafe`, and the module keeps the value, which the end of the module drops.

#[cfg(CONFIG_DEBUG_FS)]
use crate::{
    debug,
    pure::pid, //
};
use crate::{
    policy::{
        self,
        Verdict, //
    },
    pure::{
        counters::Event,
        mode::Mode, //
    },
    root::{
        self,
        Given,
        Root, //
    },
    stats,
    vma::{
        Exclusive,
        Leaving,
        MmapLocked, //
    },
    walk::Walk,
    who::{
        self,
        Mapping, //
    },
};
use core::{
    mem::size_of,
    ptr,
    slice, //
};
use kernel::{
    bindings,
    error::to_result,
    mm::MmWithUser,
    prelude::*,
    str::as_char_ptr_in_const_context,
    sync::aref::ARef,
    ModuleMetadata, //
};
#[cfg(CONFIG_DEBUG_FS)]
use kernel::{
    seq_file::SeqFile,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// [`struct@bindings::anon_vma_lazy_ops`] in memory that lives as long as the module.
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
            clone: Some(clone),
            fork: Some(fork),
            unlink: Some(unlink),
            unmap: Some(unmap),
            detach: Some(detach),
            free: Some(free),
            walk: Some(walk),
        })
    }
}

/// The sizes of the structures that this module was compiled with.
const LAYOUT: bindings::anon_vma_lazy_layout = bindings::anon_vma_lazy_layout {
    mm_struct: size_of::<bindings::mm_struct>() as u32,
    vm_area_struct: size_of::<bindings::vm_area_struct>() as u32,
    anon_vma: size_of::<bindings::anon_vma>() as u32,
    anon_vma_chain: size_of::<bindings::anon_vma_chain>() as u32,
};

/// This module, for files to hold on to and for messages to name.
pub(crate) const OWNER: *mut bindings::module =
    <crate::LocalModule as ModuleMetadata>::THIS_MODULE.as_ptr();

static OPS: Ops = Ops::new(OWNER, LAYOUT);

/// `anon_vma_lazy_ops.prepare`: the first anonymous fault of a VMA.
///
/// # Safety
///
/// To be called by the core only: `vma` is a VMA in the tree of its mm, whose `mmap_lock` is held
/// for reading or writing during the call.
unsafe extern "C" fn prepare(vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: `__anon_vma_prepare()` requires the `mmap_lock`. A fault that came with the VMA's own
    // lock took `mmap_lock` later, but the VMA lock has kept `vma` in the tree since it was looked
    // up.
    let vma = unsafe { MmapLocked::from_raw(vma) };
    match policy::first_fault(vma) {
        Ok(Verdict::Attached) => 0,
        Ok(Verdict::Regular) => bindings::ANON_VMA_LAZY_REGULAR as c_int,
        Err(e) => e.to_errno(),
    }
}

/// `anon_vma_lazy_ops.clone`: `dst` is the copy of `src` that a split, a merge or mremap makes.
///
/// # Safety
///
/// To be called by the core only: `src` has a lazy root, `dst` has no `anon_vma`; both are VMAs of
/// one mm, whose `mmap_lock` is held for writing.
unsafe extern "C" fn clone(
    dst: *mut bindings::vm_area_struct,
    src: *mut bindings::vm_area_struct,
    remap: bool,
) -> c_int {
    // SAFETY: By the safety requirements: who else attaches or unlinks one needs `mmap_lock`.
    let (dst, src) = unsafe { (Exclusive::from_raw(dst), Exclusive::from_raw(src)) };
    errno(policy::clone(dst, src, remap))
}

/// `anon_vma_lazy_ops.fork`: `vma` is the child's copy of `pvma`.
///
/// # Safety
///
/// To be called by the core only: `pvma` has a lazy root, `vma` has no `anon_vma` and is in no tree
/// yet; the `mmap_lock` of both mms is held for writing.
unsafe extern "C" fn fork(
    vma: *mut bindings::vm_area_struct,
    pvma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: As in `clone()`.
    let (vma, pvma) = unsafe { (Exclusive::from_raw(vma), Exclusive::from_raw(pvma)) };
    errno(policy::fork(vma, pvma))
}

/// `anon_vma_lazy_ops.unlink`: `vma` loses its `anon_vma`, before its page tables go.
///
/// # Safety
///
/// To be called by the core only: `vma` has a lazy root. The `mmap_lock` is held for writing; or for
/// reading, and the VMA has left the tree.
unsafe extern "C" fn unlink(vma: *mut bindings::vm_area_struct) -> *mut bindings::anon_vma {
    // SAFETY: By the safety requirements.
    policy::unlink(unsafe { Exclusive::from_raw(vma) }).map_or(ptr::null_mut(), Given::into_raw)
}

/// `anon_vma_lazy_ops.unmap`: the `nr` VMAs in `mas`, of which `vma` is the first, are about to leave the
/// VMA tree of their mm; with `undo`, they stay after all.
///
/// # Safety
///
/// To be called by the core only: the `mmap_lock` of the mm is held for writing, `vma` is one of its
/// VMAs, and `mas` is the state of a tree of the caller's own, whose entries, from index 0 on, are
/// `nr` of them, one at least.
unsafe extern "C" fn unmap(
    vma: *mut bindings::vm_area_struct,
    nr: c_int,
    mas: *mut bindings::ma_state,
    undo: bool,
) {
    // SAFETY: By the safety requirements.
    policy::unmap(unsafe { Leaving::from_raw(vma, nr, mas) }, undo);
}

/// `anon_vma_lazy_ops.detach`: the PTEs of the root's mm are gone, its VMA tree is about to go.
///
/// # Safety
///
/// To be called by the core only: `anon_vma` is a lazy root that is in use, and the `mmap_lock` of its
/// mm is held for writing.
unsafe extern "C" fn detach(anon_vma: *mut bindings::anon_vma) {
    // SAFETY: By the safety requirements.
    let root = unsafe { Root::from_anon_vma(anon_vma) };
    if !root.is_detached() {
        root.write().detach();
    }
}

/// `anon_vma_lazy_ops.free`.
///
/// # Safety
///
/// To be called by the core only: nobody has a reference to `anon_vma`, a lazy root, or its lock.
unsafe extern "C" fn free(anon_vma: *mut bindings::anon_vma) {
    // SAFETY: By the safety requirements.
    unsafe { root::free(anon_vma) };
}

/// `anon_vma_lazy_ops.walk`: the next VMA of a walk, or NULL.
///
/// # Safety
///
/// To be called by `__anon_rmap_next()` only: `it` was made by `anon_rmap_iter()` for a lazy root whose
/// lock is held, and nobody else has changed it since.
unsafe extern "C" fn walk(it: *mut bindings::anon_rmap_iter) -> *mut bindings::vm_area_struct {
    // SAFETY: By the safety requirements.
    let walk = unsafe { Walk::from_raw(it) };
    walk.next().map_or(ptr::null_mut(), ptr::NonNull::as_ptr)
}

/// What C expects of an operation that may fail.
fn errno(result: Result) -> c_int {
    result.map_or_else(|e| e.to_errno(), |()| 0)
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
    /// # Safety
    ///
    /// The value must be dropped before the module is unloaded.
    ///
    /// # Errors
    ///
    /// [`ENOEXEC`] if the module was compiled for another kernel configuration, [`EBUSY`] if
    /// operations are registered already. The core logs which.
    pub(crate) unsafe fn new() -> Result<Self> {
        // SAFETY: `OPS` never changes, and lives until the module is unloaded; by the safety
        // requirement it is unregistered before.
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
        // Nothing counts any more.
        pr_info!(
            "unregistered after {} first anonymous faults\n",
            stats::sum(Event::FirstFault)
        );
    }
}

/// A [`bindings::ctl_table`] in memory that lives as long as the module.
#[repr(transparent)]
struct Table(bindings::ctl_table);

// SAFETY: The table is never written after it was made, and holds no pointer but to functions and
// to its own name.
unsafe impl Sync for Table {}

static SYSCTL: Table = Table(bindings::ctl_table {
    procname: as_char_ptr_in_const_context(c"anon_vma_lazy"),
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
/// To be called by the sysctl core only: `len` and `pos` point to variables of the caller, and
/// `buffer` to `*len` bytes of kernel memory, which hold what was written if `write` is not 0, and
/// need not be initialized otherwise.
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

    if write != 0 {
        // SAFETY: By the safety requirements of this function: this is a write.
        let text = unsafe { slice::from_raw_parts(buffer.cast::<u8>(), *len) };
        // The value is one write, at the start of the file.
        return match Mode::parse(text) {
            Some(mode) if *pos == 0 => {
                policy::MODE.set(mode);
                *pos = pos.saturating_add(*len as bindings::loff_t);
                0
            }
            _ => {
                pr_err!("vm.anon_vma_lazy takes 0 or 1\n");
                EINVAL.to_errno()
            }
        };
    }

    let rest = usize::try_from(*pos)
        .ok()
        .and_then(|pos| policy::MODE.get().text().get(pos..))
        .unwrap_or_default();
    *len = rest.len().min(*len);
    // SAFETY: `rest` has at least `*len` bytes, and so has `buffer`, by the safety requirements of
    // this function: `*len` was only made smaller. The text is a static of this module.
    unsafe { ptr::copy_nonoverlapping(rest.as_ptr(), buffer.cast::<u8>(), *len) };
    *pos = pos.saturating_add(*len as bindings::loff_t);
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
    /// # Safety
    ///
    /// The value must be dropped before the module is unloaded.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if that failed; the sysctl core logs a name that is taken.
    pub(crate) unsafe fn new() -> Result<Self> {
        // SAFETY: The path and the table never change, and live until the module is unloaded; by
        // the safety requirement the table is unregistered before.
        let header =
            unsafe { bindings::register_sysctl_sz(c"vm".as_char_ptr(), &raw const SYSCTL.0, 1) };
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

/// [`bindings::file_operations`] in memory that lives as long as the module.
#[cfg(CONFIG_DEBUG_FS)]
#[repr(transparent)]
struct FileOperations(bindings::file_operations);

#[cfg(CONFIG_DEBUG_FS)]
// SAFETY: The operations are never written after they were made; the functions that they point to
// may be called from any thread.
unsafe impl Sync for FileOperations {}

/// The file `counters`.
///
/// Not [`kernel::debugfs`]: its files name no owner, so that a file that is open while the module
/// is unloaded calls through operations that are gone (seen as an oops in `full_proxy_release()`;
/// `lifetime/global.files_open_across_unload` is the test). With an owner, an open file holds the module.
#[cfg(CONFIG_DEBUG_FS)]
static COUNTERS: FileOperations = FileOperations(bindings::file_operations {
    owner: OWNER,
    open: Some(counters_open),
    read: Some(bindings::seq_read),
    llseek: Some(bindings::seq_lseek),
    release: Some(bindings::single_release),
    ..pin_init::zeroed()
});

/// The file `mm`: write a pid, and read about that process from the same open file.
#[cfg(CONFIG_DEBUG_FS)]
static MM: FileOperations = FileOperations(bindings::file_operations {
    owner: OWNER,
    open: Some(mm_open),
    read: Some(bindings::seq_read),
    write: Some(mm_write),
    llseek: Some(bindings::seq_lseek),
    release: Some(bindings::single_release),
    ..pin_init::zeroed()
});

/// Opens `mm`, which then is about the process that opens it.
///
/// # Safety
///
/// To be called by the file system only: `file` is a file that is being opened.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn mm_open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: `file` is being opened; what `mm_show()` takes for private data is a pid, no pointer.
    unsafe { bindings::single_open(file, Some(mm_show), ptr::null_mut()) }
}

/// The pid in an open file `mm`: 0 for whoever reads. It is kept in the place of the private data.
///
/// # Safety
///
/// `seq` was opened by [`mm_open`], and stays open for all of `'a`.
#[cfg(CONFIG_DEBUG_FS)]
unsafe fn pid_of<'a>(seq: *mut bindings::seq_file) -> &'a Atomic<*mut c_void> {
    // SAFETY: By the safety requirements; once the file is open only this function makes accesses.
    unsafe { Atomic::from_ptr(&raw mut (*seq).private) }
}

/// Takes a pid, of the writer's namespace, for what is read next. The file is at its start then.
///
/// Returns the number of bytes, or a negative errno: `EINVAL` for what is no number, `ESRCH` for a
/// process that is not there or has no mm.
///
/// # Safety
///
/// To be called by the file system only: `file` was opened by [`mm_open`], `buffer` has `len` bytes of
/// user memory, `pos` points to a variable of the caller.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn mm_write(
    file: *mut bindings::file,
    buffer: *const c_char,
    len: usize,
    pos: *mut bindings::loff_t,
) -> isize {
    let mut text = [0; 16];
    let pid = text.get_mut(..len).ok_or(EINVAL).and_then(|text| {
        UserSlice::new(UserPtr::from_ptr(buffer.cast_mut().cast()), len)
            .reader()
            .read_slice(text)?;
        let pid = pid::parse(text).filter(|&pid| pid != 0).ok_or(EINVAL)?;
        // Only to say so at once.
        users_of(pid).map(|_| pid)
    });
    match pid {
        Ok(pid) => {
            // SAFETY: By the safety requirements.
            unsafe {
                let seq = (*file).private_data.cast();
                pid_of(seq).store(ptr::without_provenance_mut(pid as usize), Relaxed);
                *pos = 0;
            }
            len as isize
        }
        Err(e) => e.to_errno() as isize,
    }
}

/// Writes the text of `mm`.
///
/// # Safety
///
/// To be called by the seq_file code only: `seq` belongs to this call, and was opened by [`mm_open`].
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn mm_show(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements.
    let (pid, out) = unsafe { (pid_of(seq).load(Relaxed), SeqFile::from_raw(seq)) };
    let users = match pid.addr() as i32 {
        0 => kernel::current!().mm().map(ARef::from).ok_or(ESRCH),
        pid => users_of(pid),
    };
    errno(users.map(|users| debug::show_mm(out, &users)))
}

/// The mm of a process, with a reference to its users. May sleep; so may dropping it.
///
/// # Errors
///
/// [`ESRCH`]: there is no such process (in the namespace of the current one), or it has no mm: a
/// kernel thread, or one that exits.
fn users_of(pid: bindings::pid_t) -> Result<ARef<MmWithUser>> {
    // SAFETY: Any number will do. `get_pid_task()` and `put_pid()` take NULL, the task is looked at.
    // Each reference is dropped once, after its use.
    let mm = unsafe {
        let pid = bindings::find_get_pid(pid);
        let task = bindings::get_pid_task(pid, bindings::pid_type_PIDTYPE_PID);
        bindings::put_pid(pid);
        if task.is_null() {
            return Err(ESRCH);
        }
        let mm = bindings::get_task_mm(task);
        bindings::put_task_struct(task);
        mm
    };
    let mm = ptr::NonNull::new(mm.cast::<MmWithUser>()).ok_or(ESRCH)?;
    // SAFETY: The reference that `get_task_mm()` took, to the users, is given away.
    Ok(unsafe { ARef::from_raw(mm) })
}

/// `anon_rmap_who()`, for other modules: see `include/anon_rmap.h`, and [`who`].
///
/// Exported by `rust/shim.c`. Whoever calls it holds this module, by the dependency on the symbol.
///
/// # Safety
///
/// `where_` has room for `max` mappings, which nobody else looks at meanwhile; any pointer will do if
/// `max` is 0. Process context, no lock of an mm or of a root is held.
#[no_mangle]
unsafe extern "C" fn anon_rmap_who(
    pid: bindings::pid_t,
    address: c_ulong,
    where_: *mut Mapping,
    max: usize,
) -> c_long {
    let mut at = 0usize;
    let count = users_of(pid).and_then(|users| {
        who::who(&users, address, |mapping| {
            if at < max {
                // SAFETY: By the safety requirements there is room for `max`.
                unsafe { where_.add(at).write(mapping) };
                at = at.saturating_add(1);
            }
        })
    });
    count.map_or_else(|e| e.to_errno() as c_long, |count| count as c_long)
}

/// Opens `counters`.
///
/// # Safety
///
/// To be called by the file system only: `file` is a file that is being opened.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn counters_open(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: `file` is being opened, and `counters_show()` uses no private data.
    unsafe { bindings::single_open(file, Some(counters_show), ptr::null_mut()) }
}

/// Writes the text of `counters`.
///
/// # Safety
///
/// To be called by the seq_file code only: `seq` belongs to this call.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn counters_show(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements of this function.
    debug::show_counters(unsafe { SeqFile::from_raw(seq) });
    0
}

/// `anon_vma_lazy/` in debugfs exists for as long as this lives.
///
/// debugfs is an aid: where it cannot be had, the module works without.
///
/// # Invariants
///
/// The pointer is what `debugfs_create_dir()` returned, errors included.
pub(crate) struct DebugfsRegistration(#[cfg(CONFIG_DEBUG_FS)] *mut bindings::dentry);

// SAFETY: Directories of debugfs may be removed by any thread.
unsafe impl Send for DebugfsRegistration {}

// SAFETY: A shared reference gives access to nothing.
unsafe impl Sync for DebugfsRegistration {}

impl DebugfsRegistration {
    /// Makes the directory and its files. May sleep.
    ///
    /// # Safety
    ///
    /// The value must be dropped before the module is unloaded. Loading must not fail after this:
    /// a file that somebody has opened keeps a module from being unloaded, not from being given up.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: The name is a C string; NULL is the root of debugfs.
        let dir = unsafe {
            bindings::debugfs_create_dir(c"anon_vma_lazy".as_char_ptr(), ptr::null_mut())
        };
        // SAFETY: The name is a C string, debugfs takes the error that `dir` may be, and the
        // operations live until the module is unloaded: by the safety requirement the file is
        // removed before, and an open one holds the module, its owner.
        unsafe {
            bindings::debugfs_create_file_full(
                c"counters".as_char_ptr(),
                0o444,
                dir,
                ptr::null_mut(),
                ptr::null(),
                &raw const COUNTERS.0,
            )
        };
        // SAFETY: As above. For root only: it shows the address space of any process.
        unsafe {
            bindings::debugfs_create_file_full(
                c"mm".as_char_ptr(),
                0o600,
                dir,
                ptr::null_mut(),
                ptr::null(),
                &raw const MM.0,
            )
        };
        // INVARIANT: Returned by `debugfs_create_dir()`.
        Self(dir)
    }

    /// Does nothing: this kernel has no debugfs.
    ///
    /// # Safety
    ///
    /// None; the other variant has some.
    #[cfg(not(CONFIG_DEBUG_FS))]
    pub(crate) unsafe fn new() -> Self {
        Self()
    }
}

#[cfg(CONFIG_DEBUG_FS)]
impl Drop for DebugfsRegistration {
    /// Removes the directory and its files. May sleep.
    fn drop(&mut self) {
        // SAFETY: By the type invariant; debugfs ignores an error.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}

#[cfg(CONFIG_KUNIT)]
#[kernel::macros::kunit_tests(anon_vma_lazy_hooks)]
mod tests {
    use super::*;

    // These run when the module has been loaded, so that `OPS` is registered. They may also be run
    // again through debugfs while the module is being unloaded, and then it may not be.

    #[test]
    fn a_second_registration_is_busy() {
        // SAFETY: Dropped at once, if there is anything to drop.
        let second = unsafe { Registration::new() };
        assert!(second.map(drop) == Err(EBUSY));
    }

    #[test]
    fn another_configuration_is_refused() {
        for field in 0..4 {
            let mut layout = LAYOUT;
            *[
                &mut layout.mm_struct,
                &mut layout.vm_area_struct,
                &mut layout.anon_vma,
                &mut layout.anon_vma_chain,
            ][field] += 8;
            let ops = Ops::new(OWNER, layout);
            // SAFETY: The layout is refused, so that the core does not keep the pointer.
            let ret = unsafe { bindings::anon_vma_lazy_register(&raw const ops.0) };
            assert_eq!(ret, ENOEXEC.to_errno());
        }
    }
}
