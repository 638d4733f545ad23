"""What a sandbox and a program are made of: plain data that travels as JSON.

`init/create.c` and `init/rootfs.c` read a Sandbox, `init/program.c` a Program.
"""

from __future__ import annotations

from collections import namedtuple

# kind    bind | tmpfs | overlay | symlink
#   bind     source at target; flags: words of FLAGS
#   tmpfs    new at target; data: mount options
#   overlay  of the directories in data, the first of them on top; flags as with bind
#   symlink  at target, pointing to source
Step = namedtuple("Step", ("kind", "source", "target", "flags", "data"), defaults=("", "", (), ""))  # noqa: PYI024
FLAGS = ("ro", "nosuid", "nodev", "noexec")

# instance     identifier, for messages
# directory    where init.sock and exit.json live (boot-scoped)
# log          {"directory", "max_bytes", "files"}
# hostname     of the UTS namespace
# id_base, id_count   the host ids that 0.. inside map to
# network      own network namespace, or the host's
# root         list of Step
# shm_bytes    size of /dev/shm
# cgroup       {"tasks", "into", "oom", "peak", "cpu", "pids"}: isolation.cgroups Entry as a dict
# seccomp      path of the compiled filter
Sandbox = namedtuple(  # noqa: PYI024
    "Sandbox",
    "instance directory log hostname id_base id_count network root shm_bytes cgroup seccomp",
)

# argv            argv[0] without "/" is looked up in env's PATH, inside
# env             complete: nothing is inherited
# cwd             inside
# uid, gid, groups   as the user namespace numbers them
# umask           number
# rlimits         {name: (soft, hard)}, -1 unlimited
# oom_score_adj   number
Program = namedtuple("Program", "argv env cwd uid gid groups umask rlimits oom_score_adj")  # noqa: PYI024
