// SPDX-License-Identifier: GPL-2.0
/*
 * The stress test in processes that have anon_vmas when the module is loaded, while they are at
 * work, and get VMAs with a lazy root besides. It is unloaded at the end.
 */
#define LOADED_MEANWHILE true
#include "stress.c"
