# SPDX-License-Identifier: GPL-2.0
from . import common, kernel
from .toolchain import Toolchain
import sys
def main(argv):
    try:
        tc = Toolchain()
        kernel.Kernel(tc, common.arch(), common.setting("VARIANT","release")).build()
    except common.Failure as e:
        print(f"avl: {e}", file=sys.stderr); return 2
