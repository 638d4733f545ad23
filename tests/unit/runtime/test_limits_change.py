"""What a request to scale makes of the limits in force, and how they are stored."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import Code, DescriptorError, NativertError
from nativert.isolation.cgroups.limits import IoLimit, Limits
from nativert.runtime.limits import changed, decode, device_number, encode

counts = st.none() | st.integers(1, (1 << 63) - 1)
io_limits = st.builds(
    IoLimit,
    device=st.sampled_from(["8:0", "8:16", "253:0"]),
    rbps=counts,
    wbps=counts,
    riops=counts,
    wiops=counts,
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "cpu_max": st.none() | st.floats(0.01, 1024, allow_nan=False),
        "cpu_weight": st.none() | st.integers(1, 10000),
        "cpuset": st.none() | st.sampled_from(["0", "0-3,5"]),
        "memory_max": counts,
        "memory_high": counts,
        "memory_swap": st.none() | st.integers(0, 1 << 60),
        "pids_max": counts,
        "io": st.none() | st.lists(io_limits, max_size=3),
    },
)


@given(st.lists(changes, max_size=4))
def test_what_was_changed_survives_the_store(requests: list[dict[str, object]]) -> None:
    limits = Limits()
    for change in requests:
        before = limits
        limits = changed(limits, change)
        assert decode(encode(limits)) == limits
        for name in Limits.__struct_fields__:
            if name not in change:
                assert getattr(limits, name) == getattr(before, name)
            elif name != "io":
                assert getattr(limits, name) == change[name]
        # The same again changes nothing.
        assert changed(limits, change) == limits


@given(st.lists(io_limits, max_size=4))
def test_unsetting_io_leaves_none(entries: list[IoLimit]) -> None:
    limits = changed(Limits(), {"io": entries})
    assert len({limit.device for limit in limits.io}) == len(limits.io)
    assert changed(limits, {"io": None}).io == ()


def test_io_changes_field_by_field_and_an_empty_entry_is_none() -> None:
    limits = changed(Limits(), {"io": [{"device": "8:0", "rbps": 100, "wbps": 200}]})
    limits = changed(
        limits, {"io": [{"device": "8:0", "rbps": 50}, {"device": "8:16", "riops": 9}]}
    )
    assert limits.io == (IoLimit("8:0", rbps=50, wbps=200), IoLimit("8:16", riops=9))
    assert changed(limits, {"io": []}) == limits
    limits = changed(limits, {"io": [{"device": "8:0", "rbps": None, "wbps": None}]})
    assert limits.io == (IoLimit("8:16", riops=9),)


BAD = {
    "no number": {"memory_max": "64M"},
    "a truth value": {"pids_max": True},
    "a fraction of bytes": {"memory_max": 1.5},
    "minus one, which v1 takes for no limit": {"memory_max": -1},
    "zero processes": {"pids_max": 0},
    "negative swap": {"memory_swap": -1},
    "infinity": {"cpu_max": math.inf},
    "no number at all": {"cpu_max": math.nan},
    "more than the kernel's": {"memory_high": 1 << 63},
    "io that is no list": {"io": 5},
    "io of a word": {"io": ["8:0"]},
    "io without device": {"io": [{"rbps": 1}]},
    "io of a device that is no text": {"io": [{"device": 8}]},
    "io of an unknown field": {"io": [{"device": "8:0", "speed": 1}]},
    "io of zero": {"io": [{"device": "8:0", "rbps": 0}]},
    "io of text": {"io": [{"device": "8:0", "rbps": "1M"}]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_bad_limit_is_refused_in_words(change: dict[str, object]) -> None:
    with pytest.raises(NativertError, match="bad limit") as refused:
        changed(Limits(memory_max=1 << 20), change)
    assert refused.value.code is Code.USAGE


def test_an_unknown_limit_is_named_with_the_known() -> None:
    with pytest.raises(NativertError, match="no such limit: color, speed") as refused:
        changed(Limits(), {"speed": 1, "color": 2, "pids_max": 3})
    assert "memory_max" in refused.value.hint


def test_no_swap_is_a_limit_and_none_is_not() -> None:
    assert changed(Limits(), {"memory_swap": 0}).memory_swap == 0
    assert changed(Limits(memory_swap=0), {"memory_swap": None}).memory_swap is None


def test_a_device_is_given_by_number_or_by_path(tmp_path: Path) -> None:
    assert device_number("8:16") == "8:16"
    with pytest.raises(DescriptorError, match="not a block device"):
        device_number("/dev/null")
    with pytest.raises(DescriptorError, match="No such file"):
        device_number(str(tmp_path / "absent"))


def test_nothing_stored_is_no_limits() -> None:
    assert decode(None) is None
