"""Types that several threads are the first to decode: msgspec alone ends the process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
import msgspec
from nativert.fdu.known import known

sys.setswitchinterval(1e-6)
FIELDS = "".join(f"    f{n}: 'int | None' = None\\n" for n in range(12))
MADE = f'''
class Inner(msgspec.Struct):
{FIELDS}
class Outer(msgspec.Struct):
{FIELDS}    inner: 'tuple[Inner, ...]' = ()
'''
for _ in range(100):
    exec(MADE, globals())
    together = threading.Barrier(4)

    def first(kind):
        together.wait()
        msgspec.json.decode(b'{"inner": [{"f1": 1}]}', type=known(kind))

    threads = [threading.Thread(target=first, args=(Outer,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("fine")
"""


def test_threads_may_be_the_first_to_decode_a_type() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
