"""Two containers on two hosts train together, and compute what one process does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import hosts_up
from tests.cluster.runs import losses, write_run
from tests.images.engine import Built, Engine

pytestmark = [pytest.mark.whole_images, pytest.mark.timeout(1800)]

RANK = ("python", "launch/rank.py", "train")
LAYOUTS = ({"zero_stage": 1}, {"tensor": 2})


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda each: next(iter(each)))
def test_two_containers_on_two_hosts_train_as_one_process_does(
    engine: Engine, cpu: Built, place: Path, layout: dict[str, Any], record: dict[str, Any]
) -> None:
    alone = write_run(place, run={"name": "alone"})
    mount = ("--volume", f"{place}:{place}")
    place.joinpath("run.yaml").rename(place / "alone.yaml")
    if not (alone.run_directory / "metrics.jsonl").exists():
        result = engine.run(cpu.tag, *RANK, place / "alone.yaml", options=mount)
        assert result.returncode == 0, result.stdout + result.stderr
    name = next(iter(layout))
    together = write_run(place, run={"name": name}, parallel=layout)
    folder = Path(tempfile.mkdtemp(prefix="roots-hosts-", dir="/tmp"))
    with hosts_up(folder, ("node1", "node2")) as hosts:
        address = (hosts.folder / "hosts").read_text("ascii").splitlines()[1].split()[0]
        containers = []
        for rank, host in enumerate(hosts.names):
            process = (hosts.folder / f"{host}.pid").read_text("ascii").strip()
            variables = {
                "RANK": rank,
                "WORLD_SIZE": 2,
                "LOCAL_RANK": 0,
                "LOCAL_WORLD_SIZE": 1,
                "MASTER_ADDR": address,
                "MASTER_PORT": 29500,
                "GLOO_SOCKET_IFNAME": "eth0",
            }
            options = [f"--network=ns:/proc/{process}/ns/net", "--shm-size=256m", *mount]
            options += [f"--env={key}={value}" for key, value in variables.items()]
            containers.append(engine.start(cpu.tag, *RANK, place / "run.yaml", options=options))
        said = [each.communicate(timeout=600)[0] for each in containers]
    assert [each.returncode for each in containers] == [0, 0], "\n".join(said)
    expected, found = losses(alone), losses(together)
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(found) == 40
    ends = {"alone": expected[40], name: found[40]}
    record.setdefault("last_loss_of_two_containers", {}).update(ends)
