// SPDX-License-Identifier: GPL-2.0
/* The tracepoints of anon_vma_lazy_trace.h, and what Rust calls to hit them. */
#include <linux/mm_types.h>

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "anon_vma_lazy_trace.h"
