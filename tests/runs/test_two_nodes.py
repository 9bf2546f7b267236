"""Training over two machines, played by two network namespaces with a cable between them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.train.checkpoint import load
from tests.common.processes import environment
from tests.conftest import ROOT
from tests.runs.scripts import SCRIPTS, write_words

NODES = """
set -e
hostname node0
unshare -nu sleep 3600 & other=$!
trap "kill $other" EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
there() { nsenter -t $other -n -u "$@"; }
ip link set lo up
ip link add node0 type veth peer name node1 netns $other
ip addr add 10.11.0.1/24 dev node0
ip link set node0 up
there hostname node1
there ip link set lo up
there ip addr add 10.11.0.2/24 dev node1
there ip link set node1 up
"""
"""`there COMMAND` runs on the second machine; the script itself is on the first."""
BOTH = """
GLOO_SOCKET_IFNAME=node1 there {command1} 2> {out}/err1 > {out}/out1 & second=$!
GLOO_SOCKET_IFNAME=node0 {command0} 2> {out}/err0 > {out}/out0 & first=$!
{between}
wait $first || echo $? > {out}/rc0
wait $second || echo $? > {out}/rc1
"""

pytestmark = [pytest.mark.slow]


def namespaces() -> bool:
    """Whether this machine lets us make them."""
    try:
        done = subprocess.run(["unshare", "-rnu", "bash", "-c", NODES], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    if sys.platform != "linux" or not namespaces():
        pytest.skip("needs network namespaces")


def on_two_nodes(command: list[str], out: Path, between: str = "") -> list[str]:
    """Start a command on both machines by torchrun, run `between` on the first; their stderr."""
    out.mkdir(parents=True, exist_ok=True)
    commands = {}
    for node in range(2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}"]
        launch += [
            "--nproc_per_node=1",
            "--master_addr=10.11.0.1",
            "--master_port=29511",
            f"--local-addr=10.11.0.{node + 1}",
        ]
        commands[f"command{node}"] = shlex.join([*launch, *command])
    script = NODES + BOTH.format(out=shlex.quote(str(out)), between=between, **commands)
    done = subprocess.run(
        ["unshare", "-rnu", "bash", "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(out / f"err{node}").read_text() for node in range(2)]


@pytest.mark.parametrize("name", ["siga", "dig pre-training", "dig fine-tuning"])
def test_two_machines_train_what_two_processes_train(name: str, tmp_path: Path) -> None:
    script = SCRIPTS[name]
    train, val = write_words(tmp_path / "train" / "words", 16), write_words(tmp_path / "val", 4)
    errors = on_two_nodes([script.file, *script.command(train, val, tmp_path / "a")], tmp_path / "log")
    assert not list((tmp_path / "log").glob("rc*")), errors
    done = script.launch(script.command(train, val, tmp_path / "b"), processes=2)
    assert done.returncode == 0, done.stderr
    a, b = (load(sorted((tmp_path / run / script.run).glob(script.states))[-1]) for run in "ab")
    assert a["world_size"] == b["world_size"] == 2 and a["step"] == b["step"] > 0
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in b["model"])


TALK = """
import sys, time
from pathlib import Path
from common.errors import command
from common.train.distributed import process_group
@command
def main():
    with process_group("cpu", "env://", -1, 0.5) as dist:
        while True:
            dist.any(False)
            Path(sys.argv[1], f"joined{dist.rank}").touch()
            time.sleep(0.05)
sys.exit(main())
"""


def test_a_cut_cable_names_the_other_machine(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    cut = f"until [ -e {tmp_path}/joined0 -a -e {tmp_path}/joined1 ]; do sleep 0.1; done; ip link set node0 down"
    errors = on_two_nodes([str(tmp_path / "talk.py"), str(tmp_path)], tmp_path / "log", cut)
    for node, text in enumerate(errors):
        lines = [line for line in text.splitlines() if line.startswith("error:")]
        told = f"rank {node} of 2 on node{node} heard nothing from rank {1 - node} on node{1 - node} for 0.5 minutes"
        assert len(lines) == 1 and told in lines[0] and "rendezvous 10.11.0.1:29511" in lines[0], text
        assert (tmp_path / "log" / f"rc{node}").read_text() != "0"
