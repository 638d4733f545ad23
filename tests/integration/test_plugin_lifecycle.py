"""The runtime plugin on a real node: records in, statuses, errors and answers out."""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
from nodes import MakeNode, make_descriptor, until
from plugins import FDU, Driver, plugin_on

from nativert.errors import Code, NativertError
from nativert.plugin import keys
from nativert.plugin.embedded import EmbeddedConnector

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "echo up; exec sleep 1000"


@pytest.fixture
def driver(make_node: MakeNode) -> Iterator[Driver]:
    with plugin_on(make_node) as one:
        yield one


def running(driver: Driver, **fields: object) -> str:
    instance = driver.define(**{"shell": SLEEP} | fields)
    driver.until(instance, "DEFINE")
    driver.want(instance, "CONFIGURE")
    driver.until(instance, "DEFINE", "CONFIGURE")
    assert driver.ask(instance, "start", env="") == {"result": instance}
    driver.until(instance, "CONFIGURE", "RUN")
    return instance


def limits(driver: Driver, instance: str) -> Any:
    native: Any = driver.plugin._runtime.inspect(instance)["native"]
    return native["limits"]


def test_a_whole_life_by_records_and_evals(driver: Driver) -> None:
    instance = running(driver, veth=True)
    assert driver.plugin.get_local_instances(FDU) == [instance]
    assert driver.plugin.get_fdus()[instance]["status"] == "RUN"
    for asked, told in (("PAUSE", "PAUSE"), ("RESUME", "RUN"), ("STOP", "CONFIGURE")):
        driver.want(instance, asked)
        driver.until(instance, told)
    driver.want(instance, "CLEAN")
    driver.until(instance, "CLEAN", "DEFINE")
    with pytest.raises(NativertError, match="nobody answers"):
        driver.ask(instance, "start", env="")
    driver.want(instance, "UNDEFINE")
    driver.until(instance, "gone")
    assert driver.plugin.get_fdus() == {}
    assert "ERROR" not in driver.statuses(instance)


def test_the_figures_are_in_hypervisor_info(driver: Driver) -> None:
    instance = running(driver, veth=True, native={"memory": {"max": "64M"}})
    info = driver.last(instance)["hypervisor_info"]
    assert info["network"]["eth0"]["addresses"][0]["address"].startswith("10.")
    assert info["cpu"]["usage"] > 0
    assert 0 < info["memory"]["usage"] <= info["memory"]["usage_peak"]
    assert {"swap_usage", "swap_usage_peak"} <= info["memory"].keys()


def test_run_blocks_and_answers_the_exit_code(driver: Driver) -> None:
    instance = driver.define(shell='echo "$A,$B" > made; echo told; exit 7')
    driver.want(instance, "CONFIGURE")
    driver.until(instance, "CONFIGURE")
    assert driver.ask(instance, "run", env="A=1=2,B=x") == {"result": "7"}
    assert driver.ask(instance, "start", env="nonsense")["error"] == Code.DESCRIPTOR.fog05
    assert driver.ask(instance, "log") == {"result": "told\n"}
    assert json.loads(driver.ask(instance, "ls")["result"]) == ["made"]
    assert driver.ask(instance, "get", filename="made") == {"result": "1=2,x\n"}
    driver.until(instance, "RUN", "CONFIGURE")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/data/../../x", "link", "missing", ""])
def test_get_leaves_the_directory_for_nobody(driver: Driver, name: str) -> None:
    instance = driver.define(shell="ln -s /etc/passwd link; exit 0")
    driver.want(instance, "CONFIGURE")
    driver.until(instance, "CONFIGURE")
    assert driver.ask(instance, "run", env="") == {"result": "0"}
    reply = driver.ask(instance, "get", filename=name)
    assert isinstance(reply["error"], int)
    assert reply["error"] != 0
    assert "result" not in reply


def test_get_is_bounded_and_of_text(driver: Driver) -> None:
    shell = "printf '\\377' > bytes; truncate -s 65M long; echo é > text; exit 0"
    instance = driver.define(shell=shell)
    driver.want(instance, "CONFIGURE")
    driver.until(instance, "CONFIGURE")
    assert driver.ask(instance, "run", env="") == {"result": "0"}
    assert driver.ask(instance, "get", filename="text") == {"result": "é\n"}
    for name in ("bytes", "long"):
        reply = driver.ask(instance, "get", filename=name)
        assert isinstance(reply["error"], int)
        assert reply["error"] != 0
        assert name in reply["error_msg"]


def test_ten_blocking_runs_do_not_wait_for_each_other(driver: Driver) -> None:
    instances = []
    for index in range(10):
        instance = driver.define(name=f"app{index}", shell="read line < go; exit 3")
        driver.want(instance, "CONFIGURE")
        driver.until(instance, "CONFIGURE")
        data = driver.plugin._runtime.paths.instance_lib(instance) / "data"
        os.mkfifo(data / "go", 0o666)
        os.chmod(data / "go", 0o666)
        instances.append((instance, data / "go"))
    replies: list[object] = []
    threads = [
        threading.Thread(target=lambda i=i: replies.append(driver.ask(i, "run", env="")))
        for i, _ in instances
    ]
    for thread in threads:
        thread.start()
    for instance, _ in instances:
        driver.until(instance, "RUN")
    # All run at once, and the plugin still takes requests.
    driver.want(instances[0][0], "PAUSE")
    driver.until(instances[0][0], "PAUSE")
    driver.want(instances[0][0], "RESUME")
    driver.until(instances[0][0], "RUN")
    for _, go in instances:
        go.write_text("\n")
    for thread in threads:
        thread.join(scale.LONG_S)
    assert replies == [{"result": "3"}] * 10


def test_a_refused_request_is_an_error_and_then_the_true_state(driver: Driver) -> None:
    instance = driver.define(shell=SLEEP)
    driver.until(instance, "DEFINE")
    driver.want(instance, "PAUSE")
    driver.until(instance, "DEFINE", "ERROR", "DEFINE")
    told = next(r for r in driver.records[instance] if r["status"] == "ERROR")
    assert told["error_code"] == Code.TRANSITION.fog05
    assert "cannot pause" in told["error_msg"]
    last = driver.last(instance)
    assert (last["error_code"], last["error_msg"]) == (None, None)


def test_the_next_request_ends_the_showing_of_an_error(make_node: MakeNode) -> None:
    with plugin_on(make_node, hold_s=3600) as driver:
        instance = driver.define(shell=SLEEP)
        driver.until(instance, "DEFINE")
        driver.want(instance, "STOP")
        driver.until(instance, "ERROR")
        driver.want(instance, "CONFIGURE")
        driver.until(instance, "ERROR", "DEFINE", "CONFIGURE")


@pytest.mark.parametrize(
    ("status", "code"), [("TAKE_OFF", 8), ("LAND", 9), ("MIGRATE", 10), ("FLY", 1), ("ERROR", 1)]
)
def test_what_cannot_be_done_is_refused_with_its_code(
    driver: Driver, status: str, code: int
) -> None:
    instance = running(driver)
    driver.want(instance, status)
    driver.until(instance, "RUN", "ERROR", "RUN")
    told = next(r for r in driver.records[instance] if r["status"] == "ERROR")
    assert told["error_code"] == code
    assert driver.plugin.get_fdus()[instance]["status"] == "RUN"


def test_an_instance_that_nobody_knows_is_an_error_that_goes(driver: Driver) -> None:
    instance = str(uuid.uuid4())
    driver.want(instance, "CONFIGURE")
    driver.until(instance, "ERROR", "gone")
    assert driver.records[instance][0]["error_code"] == Code.NOT_FOUND.fog05


def test_a_bad_descriptor_is_an_error_that_goes(driver: Driver) -> None:
    instance = driver.define(shell=SLEEP, storage=[{"id": "data", "size": 1}])
    driver.until(instance, "ERROR", "gone")
    assert "storage" in driver.records[instance][0]["error_msg"]
    assert driver.plugin.get_fdus() == {}


@pytest.mark.parametrize(
    "value", [b"nonsense", b'{"uuid": 5}', b'{"uuid": "other", "fdu_id": "x", "status": "STOP"}']
)
def test_a_record_that_is_none_is_an_error(driver: Driver, value: bytes) -> None:
    instance = running(driver)
    path = keys.record(keys.DESIRED, driver.plugin.node, driver.plugin.uuid, FDU, instance)
    driver.connector.put(path, value)
    driver.until(instance, "RUN", "ERROR", "RUN")
    driver.connector.delete(path)
    driver.want(instance, "STOP")
    driver.until(instance, "RUN", "CONFIGURE")


def test_the_same_record_twice_is_one_operation(driver: Driver) -> None:
    instance = running(driver)
    before = driver.plugin._runtime.get(instance).pid
    driver.define(instance, shell=SLEEP)
    driver.want(instance, "RUN")
    driver.want(instance, "RESUME")
    driver.want(instance, "PAUSE")
    driver.want(instance, "PAUSE")
    driver.until(instance, "RUN", "PAUSE")
    driver.want(instance, "STOP")
    driver.want(instance, "STOP")
    driver.until(instance, "PAUSE", "CONFIGURE")
    for _ in range(2):
        driver.want(instance, "CLEAN")
    for _ in range(3):
        driver.want(instance, "UNDEFINE")
    driver.until(instance, "CONFIGURE", "CLEAN", "DEFINE", "gone")
    assert before is not None
    assert "ERROR" not in driver.statuses(instance)


def test_an_end_by_itself_is_published(driver: Driver) -> None:
    instance = running(driver)
    pid = driver.plugin._runtime.get(instance).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    driver.until(instance, "RUN", "CONFIGURE")
    assert driver.ask(instance, "start", env="") == {"result": instance}
    driver.until(instance, "CONFIGURE", "RUN")


def test_what_others_do_with_the_node_is_published(driver: Driver) -> None:
    node = driver.plugin._runtime
    instance = node.define(make_descriptor(shell=SLEEP)).instance
    node.configure(instance)
    node.run(instance)
    driver.until(instance, "DEFINE", "CONFIGURE", "RUN")
    with pytest.raises(NativertError):
        node.clean(instance)
    driver.until(instance, "RUN", "ERROR", "RUN")
    node.remove(instance, force=True)
    driver.until(instance, "gone")


def test_scale_takes_the_limits_of_the_native_object(driver: Driver) -> None:
    instance = running(driver)
    script = "#nativert\npids: {max: 33}\n"
    driver.want(
        instance,
        "SCALE",
        command={"binary": "/bin/true", "args": []},
        hypervisor="BARE",
        configuration={"conf_type": "SCRIPT", "script": script},
    )
    until(lambda: limits(driver, instance)["pids_max"] == 33, what="the limit")
    driver.want(instance, "SCALE", command={"binary": "/bin/true"}, hypervisor="BARE")
    driver.until(instance, "RUN", "ERROR", "RUN")


def test_instances_outlive_the_plugin_and_are_published_again(
    make_node: MakeNode, root: Path
) -> None:
    with plugin_on(make_node) as first:
        instance = running(first)
        pid = first.plugin._runtime.get(instance).pid
        manifest = keys.plugin(first.plugin.node, first.plugin.uuid)
        published = json.loads(first.connector.get(manifest)[0].value or b"")
        assert (published["status"], published["pid"]) == ("running", os.getpid())
        assert first.connector.alive(manifest) == [manifest]
    assert first.connector.get(manifest) == []
    assert first.connector.alive(manifest) == []
    with plugin_on(make_node) as second:
        second.until(instance, "RUN")
        assert second.plugin._runtime.get(instance).pid == pid
        # It may only just have been written.
        until(lambda: second.ask(instance, "log") == {"result": "up\n"}, what="its log")
        second.want(instance, "STOP")
        second.until(instance, "RUN", "CONFIGURE")


def test_of_what_was_asked_for_meanwhile_only_new_instances_are_taken(
    make_node: MakeNode,
) -> None:
    with plugin_on(make_node) as first:
        old = running(first)
    new, gone = str(uuid.uuid4()), str(uuid.uuid4())
    # The last request of a known instance has been overtaken by the eval that started it.
    first.want(old, "CONFIGURE")
    first.want(gone, "UNDEFINE")
    first.define(new, name="new", shell=SLEEP)
    with plugin_on(make_node, connector=first.connector) as second:
        second.until(new, "DEFINE")
        second.want(new, "CONFIGURE")
        second.until(new, "CONFIGURE")
        assert second.plugin.get_fdus().keys() == {old, new}
        assert second.plugin.get_fdus()[old]["status"] == "RUN"
        assert gone not in second.records
        assert "ERROR" not in second.statuses(old)


def test_a_start_that_fails_leaves_nothing_behind(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise NativertError("no room", code=Code.STORE)

    monkeypatch.setattr(EmbeddedConnector, "liveliness", fails)
    with pytest.raises(NativertError, match="no room"), plugin_on(make_node):
        pass
    assert "publisher" not in [thread.name for thread in threading.enumerate()]
