#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Build, boot and test anon_vma_lazy. Users call it through the Makefile: make help."""

import sys

sys.dont_write_bytecode = True

from avl.cli import main  # noqa: E402 (the line above has to come first)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
