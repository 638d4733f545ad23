"""Load a compiled seccomp filter as an application's child does, then become a program.

python load_filter.py FILTER PROGRAM [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    instructions = ctypes.create_string_buffer(data, len(data))
    # struct sock_fprog; one instruction has 8 bytes.
    program = struct.pack("=HxxxxxxQ", len(data) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
