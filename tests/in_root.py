"""Run a command; from a chroot, with its tree as the root of a mount namespace of its own.

In a chroot a test could not make a user namespace, nor a mount tree private.
"""

from __future__ import annotations

import os
import sys

from nativert.isolation import chroot

if __name__ == "__main__":
    if os.geteuid() == 0 and chroot.chrooted():
        directory = os.getcwd()
        chroot.make_root()
        os.chdir(directory)
        # It is not PID 1's namespace any more.
        os.environ["NATIVERT_HERE"] = "1"
    os.execvp(sys.argv[1], sys.argv[1:])
