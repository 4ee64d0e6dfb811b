# SPDX-License-Identifier: GPL-2.0
"""make facts: what the series takes for granted about a kernel tree, looked up in the tree."""

import re

from . import common, source
from .common import Failure


class Tree:
    """The files of one kernel tree."""

    def __init__(self, top):
        self.top = top
        self._texts = {}

    def text(self, name):
        """A file, or nothing."""
        if name not in self._texts:
            try:
                self._texts[name] = (self.top / name).read_text(errors="replace")
            except OSError:
                self._texts[name] = ""
        return self._texts[name]

    def body(self, name, function):
        """The definition of a C function in a file, without comments, or nothing."""
        text = re.sub(r"/\*.*?\*/", "", self.text(name), flags=re.S)
        match = re.search(rf"^[A-Za-z_][^;{{}}()]*\b{function}\([^;{{]*\)\s*\{{", text, re.M)
        if not match:
            return ""
        depth, at = 1, match.end()
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        return text[match.start():at]


def ordered(text, *words):
    """Whether the words occur in the text, in this order."""
    at = 0
    for word in words:
        at = text.find(word, at)
        if at < 0:
            return False
        at += len(word)
    return True


def squeezed(text):
    """The text with single blanks."""
    return re.sub(r"\s+", " ", text)


def check(name, *words, function=None):
    """A check: these words in this order, in a file or in one function of it."""
    def run(tree):
        text = tree.body(name, function) if function else tree.text(name)
        return ordered(squeezed(text), *words)
    return name + (f", {function}()" if function else ""), run


RMAP, VMA, MEMORY = "mm/rmap.c", "mm/vma.c", "mm/memory.c"

# What is taken for granted; where it is seen. Documentation/porting.rst says what stands on each.
FACTS = (
    ("version", "the tree is Linux 7.3",
     check("Makefile", "VERSION = 7 ", "PATCHLEVEL = 3 ")),
    ("offset", "each VMA has an anonymous page offset apart from that in its file",
     check("include/linux/mm.h", "static inline pgoff_t vma_start_anon_pgoff(")),
    ("index", "the index of an anonymous folio is that offset",
     check(RMAP, "folio->index = linear_anon_page_index(vma, address)",
           function="__folio_set_anon")),
    ("mapping", "two low bits of folio->mapping tell anonymous and KSM folios",
     check("include/linux/page-flags.h", "#define FOLIO_MAPPING_ANON 0x1",
           "#define FOLIO_MAPPING_ANON_KSM 0x2")),
    ("parent", "an ordinary anon_vma has a parent from the beginning, itself if no other",
     check(RMAP, "anon_vma->parent = anon_vma;", function="anon_vma_alloc")),
    ("type-stable-anon_vma", "anon_vmas are type-safe by RCU",
     check(RMAP, 'kmem_cache_create("anon_vma"', "SLAB_TYPESAFE_BY_RCU",
           function="anon_vma_init")),
    ("type-stable-vma", "VMAs are type-safe by RCU",
     check("mm/vma_init.c", "SLAB_TYPESAFE_BY_RCU", function="vma_state_init")),
    ("rcu-tree", "the VMA tree of an mm is in RCU mode while it runs",
     check("include/linux/mm_types.h", "#define MM_MT_FLAGS", "MT_FLAGS_USE_RCU)")),
    ("first-fault", "a first anonymous fault holds mmap_lock, also where it has the VMA's lock",
     check(MEMORY, "FAULT_FLAG_VMA_LOCK", "mmap_read_trylock(", "__anon_vma_prepare(vma)",
           function="__vmf_anon_prepare")),
    ("prepare", "a VMA gets its anon_vma under page_table_lock",
     check(RMAP, "spin_lock(&mm->page_table_lock)", "smp_store_release(&vma->anon_vma, anon_vma)",
           function="__anon_vma_prepare")),
    ("copied-mm", "fork copies the parent's mm_struct as a whole, before mm_init()",
     check("kernel/fork.c", "memcpy(mm, oldmm", "mm_init(mm, tsk", "dup_mmap(mm, oldmm)",
           function="dup_mm")),
    ("fork-order", "fork: the anon_vma, then the VMA into the child's tree, then its PTEs",
     check("mm/mmap.c", "anon_vma_fork(tmp, mpnt)", "vma_iter_bulk_store(&vmi, tmp)",
           "copy_page_range(tmp, mpnt)", function="dup_mmap")),
    ("fork-fails", "a fork that fails zaps what it has copied before it frees VMAs",
     check("mm/mmap.c", "unmap_region(&unmap)", "tear_down_vmas(mm,", function="dup_mmap")),
    ("two-locks", "fork copies PTEs under the locks of both page tables",
     check(MEMORY, "pte_alloc_map_lock(", "spin_lock_nested(src_ptl",
           function="copy_pte_range")),
    ("exit-order", "exit: zap all, take the tree out of RCU mode, free page tables, free VMAs",
     check("mm/mmap.c", "unmap_vmas(", "mt_clear_in_rcu(", "free_pgtables(", "tear_down_vmas(",
           function="exit_mmap")),
    ("unlink-first", "a VMA loses its anon_vma before its page tables are freed",
     check(MEMORY, "unlink_anon_vmas(vma)", "free_pgd_range(", function="free_pgtables")),
    ("munmap-detached", "munmap collects its VMAs in a tree of its own before it zaps them",
     check(VMA, "mt_init_flags(&mt_detach", "vms_gather_munmap_vmas(",
           "vms_complete_munmap_vmas(", function="do_vmi_align_munmap")),
    ("munmap-zaps-late", "munmap may have only a read lock when it zaps",
     check(VMA, "mmap_write_downgrade(", "vms_clear_ptes(",
           function="vms_complete_munmap_vmas")),
    ("range-locked", "split and merge change a range under the lock of the anon_vma",
     check(VMA, "anon_vma_lock_write(vp->anon_vma)", function="vma_prepare")),
    ("stack-grows-locked", "so does a stack that grows",
     check(VMA, "anon_vma_lock_write(", "vma->vm_start = address",
           function="expand_downwards")),
    ("mremap-may-lock", "mremap can be told to take the rmap locks around moving PTEs",
     check("mm/mremap.c", "if (pmc->need_rmap_locks)", "take_rmap_locks(",
           function="move_ptes")),
    ("temporary-stack", "the stack that exec is about to move can be told",
     check("include/linux/mm.h", "static inline bool vma_is_temporary_stack(")),
    ("folio-locked", "a walk over an anonymous folio has the folio locked",
     check(RMAP, "VM_WARN_ON_FOLIO(!folio_test_locked(folio), folio)",
           function="rmap_walk_anon")),
    ("read-lock", "a walk holds the anon_vma's lock for reading",
     check(RMAP, "anon_vma_lock_read(anon_vma)", function="rmap_walk_anon_lock")),
    ("handshake", "whoever frees an anon_vma waits for those who hold its lock",
     check(RMAP, "rwsem_is_locked(&anon_vma->root->rwsem)", "anon_vma_lock_write(",
           "kmem_cache_free(anon_vma_cachep", function="anon_vma_free")),
    ("migration-restores", "migration entries are restored by a walk",
     check("mm/migrate.c", "rmap_walk(dst, &rwc)", function="remove_migration_ptes")),
    ("rust-mm", "the kernel crate has guards of mmap_lock and of mm_users",
     check("rust/kernel/mm.rs", "pub struct MmWithUser", "pub fn mmap_read_lock(")),
    ("rust-static-keys", "the kernel crate tests static keys of any C symbol",
     check("rust/kernel/jump_label.rs", "macro_rules! static_branch_unlikely")),
    ("rust-tracepoints", "C makes functions that hit a tracepoint for Rust",
     check("include/trace/define_trace.h", "CREATE_RUST_TRACE_POINTS", "DEFINE_RUST_DO_TRACE")),
    ("rust-helpers", "C helpers may be inlined into Rust of a module",
     check("scripts/Makefile.build", "CONFIG_RUST_INLINE_HELPERS", "helpers")),
)


def examine(top):
    """(name, whether it holds, what, where) for each fact."""
    tree = Tree(top)
    return [(name, run(tree), what, where) for name, what, (where, run) in FACTS]


def facts(*_):
    """`make facts KSRC=...`: one line for each fact. True if one does not hold."""
    user = common.path_setting("KSRC")
    if user:
        source.tree_version(user)
        top = user
    else:
        top, _ = source.pristine()
    results = examine(top)
    for name, holds, what, where in results:
        print(f"{'holds' if holds else 'DOES NOT HOLD':<13}  {name:<20}  {what} ({where})")
    missing = sum(not holds for _, holds, _, _ in results)
    print(f"{len(results) - missing} of {len(results)} hold in {top}")
    if not results:
        raise Failure("no facts")
    return missing > 0
