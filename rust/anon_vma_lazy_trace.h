/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of anon_vma_lazy.ko. Roots are named by the ids that debugfs shows:
 * a keyed hash of their address, 0 for none.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM anon_vma_lazy

#if !defined(_ANON_VMA_LAZY_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _ANON_VMA_LAZY_TRACE_H

#include <linux/tracepoint.h>

/* The codes of pure::state::State. */
#define show_lazy_state(state)		\
	__print_symbolic(state,		\
		{ 0, "unfaulted" },	\
		{ 1, "lazy" },		\
		{ 2, "linked" },	\
		{ 3, "detaching" },	\
		{ 4, "regular" })

DECLARE_EVENT_CLASS(lazy_root,
	TP_PROTO(u32 root, u32 up),
	TP_ARGS(root, up),
	TP_STRUCT__entry(
		__field(u32, root)
		__field(u32, up)
	),
	TP_fast_assign(
		__entry->root = root;
		__entry->up = up;
	),
	TP_printk("root=%08x up=%08x", __entry->root, __entry->up)
);

/* A root was made, for the mm of the task or (with a parent) of its child. */
DEFINE_EVENT(lazy_root, lazy_root_new,
	TP_PROTO(u32 root, u32 up),
	TP_ARGS(root, up)
);

/* It was put at the head of the list of its parent's children. */
DEFINE_EVENT(lazy_root, lazy_root_link,
	TP_PROTO(u32 root, u32 up),
	TP_ARGS(root, up)
);

/* It lost its mm: no walk enters that any more. */
DEFINE_EVENT(lazy_root, lazy_root_detach,
	TP_PROTO(u32 root, u32 up),
	TP_ARGS(root, up)
);

/* It is freed, and off its parent's list. In the core's work item. */
DEFINE_EVENT(lazy_root, lazy_root_free,
	TP_PROTO(u32 root, u32 up),
	TP_ARGS(root, up)
);

/* A VMA went from one state to another; the root is the one that it has or had. */
TRACE_EVENT(lazy_vma,
	TP_PROTO(u32 root, unsigned long start, unsigned long end, u8 from, u8 to),
	TP_ARGS(root, start, end, from, to),
	TP_STRUCT__entry(
		__field(u32, root)
		__field(u8, from)
		__field(u8, to)
		__field(unsigned long, start)
		__field(unsigned long, end)
	),
	TP_fast_assign(
		__entry->root = root;
		__entry->from = from;
		__entry->to = to;
		__entry->start = start;
		__entry->end = end;
	),
	TP_printk("root=%08x vma=%lx-%lx from=%s to=%s", __entry->root,
		  __entry->start, __entry->end, show_lazy_state(__entry->from),
		  show_lazy_state(__entry->to))
);

/* A walk is about to look into a root, the one that it began with or a descendant. */
TRACE_EVENT(lazy_walk_visit,
	TP_PROTO(u32 start, u32 root, unsigned long first, unsigned long last),
	TP_ARGS(start, root, first, last),
	TP_STRUCT__entry(
		__field(u32, start)
		__field(u32, root)
		__field(unsigned long, first)
		__field(unsigned long, last)
	),
	TP_fast_assign(
		__entry->start = start;
		__entry->root = root;
		__entry->first = first;
		__entry->last = last;
	),
	TP_printk("start=%08x root=%08x pgoff=%lx-%lx", __entry->start,
		  __entry->root, __entry->first, __entry->last)
);

/* A walk found nothing more, or (early) was told that all is done. */
TRACE_EVENT(lazy_walk_end,
	TP_PROTO(u32 start, u32 root, bool early),
	TP_ARGS(start, root, early),
	TP_STRUCT__entry(
		__field(u32, start)
		__field(u32, root)
		__field(bool, early)
	),
	TP_fast_assign(
		__entry->start = start;
		__entry->root = root;
		__entry->early = early;
	),
	TP_printk("start=%08x root=%08x early=%d", __entry->start,
		  __entry->root, __entry->early)
);

#endif /* _ANON_VMA_LAZY_TRACE_H */

/* Outside of the guard: read once more for each thing that is made of the above. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE anon_vma_lazy_trace
#include <trace/define_trace.h>
