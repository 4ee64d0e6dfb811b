# SPDX-License-Identifier: GPL-2.0
"""The build and test harness of anon_vma_lazy; entry point: scripts/avl.py."""
