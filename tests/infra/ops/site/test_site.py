from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra import cli
from infra.base.errors import OacirError
from infra.ops.processes import alive, end, serving
from infra.ops.site import site
from infra.ops.site.servers import Ports, Site

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def small(folder: Path) -> Site:
    token = folder / "token"
    token.write_text("s3cret")
    return Site(folder, "10.0.0.9", Ports(1, 2, 3, 4, 5, (6, 7, 8)), token, nodes=2, cpus=3)


def test_the_servers_in_their_order_and_where_they_listen(tmp_path: Path) -> None:
    servers = {server.name: " ".join(server.command) for server in small(tmp_path).servers()}
    assert list(servers) == ["s3", "mlflow", "ray-head", "ray-node-1", "ray-node-2"]
    assert "-H 127.0.0.1 -p 1" in servers["s3"]
    assert "--artifacts s3://oacir/mlflow" in servers["mlflow"]
    head = servers["ray-head"]
    assert "--num-cpus 0 --dashboard-host 127.0.0.1 --dashboard-port 3" in head
    assert "--address 10.0.0.9:4 --num-cpus 3" in servers["ray-node-2"]
    agents, folders = (
        [words.split(f"{option} ")[1].split()[0] for n, words in servers.items() if "ray" in n]
        for option in ("--dashboard-agent-listen-port", "--temp-dir")
    )
    assert agents == ["6", "7", "8"]
    assert folders == [
        f"/tmp/oacir-site-4/{n}" for n in range(3)
    ]  # what Ray unpacks for one node is no other's


def test_the_token_itself_is_in_no_command_or_variable(tmp_path: Path) -> None:
    made = small(tmp_path)
    environment = made.environment({"RAY_AUTH_TOKEN": "another", "RAY_ADDRESS": "elsewhere", "PATH": "/bin"})
    assert "RAY_AUTH_TOKEN" not in environment
    assert "RAY_ADDRESS" not in environment
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/bin"
    told = [*environment.values(), *(word for server in made.servers() for word in server.command)]
    assert not [word for word in told if "s3cret" in word]


def test_what_a_shell_reads_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    (folder / "env.sh").write_text("old, and open to others")
    made = site._site(site.StartRecipe(nodes=1), folder)
    for name in ("env.sh", "ray_token"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    words = ["bash", "-c", f'. "{folder}/env.sh" && echo "$RAY_AUTH_TOKEN_PATH $AWS_ENDPOINT_URL"']
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said == f"{folder / 'ray_token'} http://127.0.0.1:{made.ports.s3}\n"
    assert len(set(vars(made.ports).values())) == 6
    assert len(made.ports.agents) == 2


def test_an_end_takes_all_that_a_process_started(tmp_path: Path) -> None:
    with serving([sys.executable, "-u", "-c", PARENT], tmp_path / "log", {}) as parent:
        while not (found := (tmp_path / "log").read_text().split()):
            assert parent.poll() is None
        child = psutil.Process(int(found[0]))
        end(parent.pid)
        assert not alive(child)
        assert parent.wait(10) == -15


def test_a_number_that_another_process_has_by_now_is_left_alone(tmp_path: Path) -> None:
    with serving([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log", {}) as process:
        site._note(tmp_path, [process.pid])
        assert [found.pid for found in site._running(tmp_path)] == [process.pid]
        rows = json.loads((tmp_path / "processes.json").read_text())
        (tmp_path / "processes.json").write_text(json.dumps([rows[0] | {"began": rows[0]["began"] - 50}]))
        assert site._running(tmp_path) == []


def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["site", "stop", "--root", str(tmp_path)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert cli.main(["site", "start", "--root", "s3://b/r"]) == 1
    assert "need a folder" in capsys.readouterr().err
    with serving([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log", {}) as process:
        (tmp_path / "site").mkdir()
        site._note(tmp_path / "site", [process.pid])
        assert cli.main(["site", "start", "--root", str(tmp_path)]) == 1
        assert "this set-up runs (1 processes)" in capsys.readouterr().err


def test_a_server_that_ends_is_told_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = site.Server("s3", (), lambda: False)
    command = [sys.executable, "-c", "print('no such port')"]
    told = r"s3 ended with 0; its log .* ends with: no such port"
    with serving(command, log, {}) as process, pytest.raises(OacirError, match=told):
        site._wait(server, process, log, [])


def test_a_node_or_mlflow_that_ends_is_started_again_so_often_and_s3_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = {server.name: server.again for server in small(tmp_path).servers()}
    assert servers == {"s3": False, "mlflow": True, "ray-head": False, "ray-node-1": True, "ray-node-2": True}
    ends = (sys.executable, "-c", "import sys; print('gone'); sys.exit(7)")
    with site.Up(tmp_path, {}, restarts=2) as up:
        stays = up.start(site.Server("s3", (sys.executable, "-c", "import time; time.sleep(600)"), bool))
        node = site.Server("node", ends, bool, again=True)
        up.start(node)
        for count in (1, 2):
            up._processes["node"].wait()
            up.look()
            assert f"node ended by itself with 7; started again ({count} of 2)" in capsys.readouterr().err
        up._processes["node"].wait()
        assert (tmp_path / "node-3.log").read_text() == "gone\n"
        with pytest.raises(
            OacirError, match=r"node ended by itself with 7, so all .*node-3.log ends with: gone"
        ):
            up.look()
        assert stays.poll() is None
        assert len(json.loads((tmp_path / "processes.json").read_text())) == 3
    assert stays.poll() == -15
    with site.Up(tmp_path, {}, restarts=2) as up:
        up.start(site.Server("s3", ends, bool)).wait()
        with pytest.raises(OacirError, match="s3 ended by itself with 7, so all were ended"):
            up.look()


def test_what_ray_left_of_a_start_that_was_killed_is_removed(tmp_path: Path) -> None:
    made = site._site(site.StartRecipe(nodes=1), tmp_path / "site")
    (made.temporary / "0").mkdir(parents=True)
    (made.temporary / "session").write_text("left")
    assert cli.main(["site", "stop", "--root", str(tmp_path)]) == 0
    assert not made.temporary.exists()
    other = tmp_path / "oacir-site-mine"
    other.mkdir()
    (tmp_path / "site" / site.RAY_FILES).write_text(str(other))
    site._clear(tmp_path / "site")
    assert other.exists()
