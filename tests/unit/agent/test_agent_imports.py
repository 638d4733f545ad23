"""What an agent loads: nothing of Zenoh on a node that knows no others."""

from __future__ import annotations

import subprocess
import sys


def test_an_agent_alone_loads_nothing_of_what_others_need() -> None:
    code = (
        "import sys, nativert.agent.service, nativert.agent.life, nativert.agent.api.server\n"
        "print(*[name for name in ('zenoh', 'websockets', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
