"""The container, the systemd unit and the licence, as far as they can be tried without Docker."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from benchlib.__main__ import main
from benchlib.serving.connection_limits import UVICORNS_LIMIT_LATER_S, ConnectionLimits
from benchlib.serving.last_words import ENGINE_ENDED
from benchlib.serving.standalone import Settings

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
UNIT = ROOT / "deploy/benchlib.service"

# ---- the Dockerfile


def instructions():
    """The instructions of the Dockerfile, each as (word, rest)."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line]


def last_of(word):
    return [rest for name, rest in instructions() if name == word][-1]


def environment():
    """The variables of the last stage."""
    words = last_of("ENV").split()
    return dict(word.split("=", 1) for word in words)


def ignored(path):
    """Whether .dockerignore keeps a path of the project out of the build. The last match counts."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    answer = False
    for rule in rules:
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        parts = Path(path).parts
        fits = {"/".join(parts[: number + 1]) for number in range(len(parts))}
        if pattern.startswith("**/"):
            fits = set(parts)
            pattern = pattern.removeprefix("**/")
        if any(fnmatch(part, pattern) for part in fits):
            answer = not rule.startswith("!")
    return answer


def tracked_files():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """The files that a build would get, in a folder of their own."""
    folder = tmp_path_factory.mktemp("context")
    for name in tracked_files():
        if not ignored(name) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_linter_finds_nothing_in_the_dockerfile():
    linted = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_container_has_no_root_and_no_secret():
    assert int(last_of("USER")) > 0
    words = [name for name, _ in instructions()]
    last_stage = words[len(words) - words[::-1].index("FROM") :]
    assert last_stage.index("USER") < last_stage.index("HEALTHCHECK") < last_stage.index("CMD")
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"^(ENV|ARG).*(KEY|TOKEN|SECRET|PASSWORD)", text, re.MULTILINE)
    assert re.findall(r"\w+://[^/']+", text) == ["http://127.0.0.1:8000"], "only the health check"


def test_the_build_gets_what_it_copies_and_nothing_else(context):
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert sorted(copied) == sorted(path.name for path in context.iterdir())
    assert {"results", ".git", "tests"}.isdisjoint(copied)
    assert ignored("benchlib/__pycache__/app.pyc")
    assert ignored(".env")


def test_what_the_build_gets_makes_the_whole_package_and_its_licence(context, tmp_path):
    make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    made = subprocess.run(
        [*make, "--wheel-dir", tmp_path, "."], cwd=context, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    [wheel] = tmp_path.glob("benchlib-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
        [about] = [name for name in inside if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(about).decode()
    assert {name for name in tracked_files() if name.startswith("benchlib/")} <= set(inside)
    assert "License-Expression: Apache-2.0" in metadata
    assert [name for name in inside if name.endswith("/licenses/LICENSE")]
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@contextmanager
def container(folder, port):
    """The container's command as a process, with the container's variables."""
    # The compiled code of earlier runs is used, because compiling it anew takes half a minute.
    variables = {
        name: value.replace("/models", str(folder / "models"))
        for name, value in environment().items()
        if name not in ("PATH", "NUMBA_CACHE_DIR")
    }
    variables |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder)}
    variables |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if "NUMBA_CACHE_DIR" in os.environ:
        variables["NUMBA_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]
    command = json.loads(last_of("CMD").replace("8000", port).replace("0.0.0.0", "127.0.0.1"))
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_command_serves_and_the_health_check_tells(tmp_path):
    port = free_port()
    options, check = last_of("HEALTHCHECK").split(" CMD ")
    assert {word.partition("=")[0] for word in options.split()} == {
        "--interval",
        "--timeout",
        "--start-period",
        "--retries",
    }
    program, *arguments = json.loads(check.replace("8000", port))
    assert program == "python"
    health = [sys.executable, *arguments]

    assert subprocess.run(health, capture_output=True).returncode == 1, "nothing listens yet"
    with container(tmp_path, port) as process:
        for line in process.stderr:
            if "running on" in line.lower():
                break
        assert process.poll() is None
        assert subprocess.run(health, capture_output=True).returncode == 0
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait() in (0, -signal.SIGTERM), said
    assert subprocess.run(health, capture_output=True).returncode == 1, "it has ended"


def has_builder():
    docker = shutil.which("docker")
    if docker is None:
        return False
    return subprocess.run([docker, "info"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not has_builder(), reason="no Docker engine runs here")
def test_the_image_builds():
    built = subprocess.run(["docker", "build", "--quiet", "."], cwd=ROOT, capture_output=True)
    assert built.returncode == 0, built.stderr


# ---- the systemd unit

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd here"
)


def values_of(key):
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True)


@needs_systemd
def test_systemd_understands_the_unit(tmp_path):
    # The unit's Python is in a place that this machine does not have.
    here = tmp_path / UNIT.name
    [command] = values_of("ExecStart")
    here.write_text(UNIT.read_text().replace(command.split()[0], sys.executable))
    checked = analyze("verify", here)
    assert checked.returncode == 0, checked.stderr
    assert here.name not in checked.stderr, checked.stderr


@needs_systemd
def test_the_unit_gives_the_server_few_rights():
    if "--offline" not in analyze("--help").stdout:
        pytest.skip("this systemd can't judge a file")
    judged = analyze("security", "--offline=true", "--threshold=25", UNIT)  # 2.5 of 10
    assert judged.returncode == 0, judged.stdout


def test_the_unit_restarts_a_broken_engine_and_waits_for_a_drain():
    assert values_of("Restart") == ["on-failure"]
    [never] = values_of("RestartPreventExitStatus")
    assert {1, 2} <= set(map(int, never.split()))
    assert ENGINE_ENDED not in map(int, never.split())
    [stop_s] = map(int, values_of("TimeoutStopSec"))
    assert stop_s > ConnectionLimits().drain_s + UVICORNS_LIMIT_LATER_S
    assert not any("KEY" in value for value in values_of("Environment"))


def test_the_unit_and_the_container_start_the_server_by_options_that_exist(monkeypatch):
    monkeypatch.setattr("benchlib.serving.standalone.serve_alone", lambda *_, **__: 0)
    [command] = values_of("ExecStart")
    for words in (command.split(), json.loads(last_of("CMD"))):
        assert words[1:4] == ["-m", "benchlib", "serve"]
        assert main(words[3:]) == 0


# ---- Kubernetes


def test_the_probes_of_kubernetes_need_no_tool_of_the_image():
    service = yaml.safe_load((ROOT / "deploy/kuberay.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [one for group in groups for one in group["template"]["spec"]["containers"]]
    assert len(containers) == 2
    for container in containers:
        # Without these the operator adds its own, which call wget.
        for name in ("livenessProbe", "readinessProbe"):
            assert container[name]["httpGet"] == {"path": "/api/healthz", "port": 52365}
            assert "exec" not in container[name]
    pinned = f"ray[serve]=={cluster['rayVersion']}"
    assert pinned in (ROOT / "requirements.txt").read_text().splitlines()


@pytest.mark.parametrize("file", ["deploy/ray-serve.yaml", "deploy/kuberay.yaml"])
def test_ray_serve_takes_its_config(file):
    schema = pytest.importorskip("ray.serve.schema")
    config = yaml.safe_load((ROOT / file).read_text())
    if "spec" in config:
        config = yaml.safe_load(config["spec"]["serveConfigV2"])
    [application] = schema.ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "benchlib.serving.replicas.ray_ingress:build"
    settings = Settings(**application.args)
    assert (settings.model, settings.replicas, settings.device) == ("sdxl", 4, "cuda")
    assert set(application.args) <= set(Settings.model_fields)
