"""The files in ``deploy/``: what can be held to the tree without building an image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def test_the_probes_are_paths_of_the_server_and_the_grace_fits() -> None:
    first: dict[str, Any] = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    pod = first["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert "lifecycle" not in container  # --drain-delay is the pause, in which /ready says no already
    arguments = container["args"]
    pause, grace = (int(arguments[arguments.index(name) + 1]) for name in ("--drain-delay", "--grace"))
    source = (ROOT / "runtime/native/server/main.cpp").read_text()
    last = re.search(r"kLastAnswers = (\d+);", source)
    assert last is not None
    # The service stops sending once a probe has failed.
    assert pause > container["readinessProbe"]["periodSeconds"] * container["readinessProbe"]["failureThreshold"]
    assert pause + grace + int(last[1]) < pod["terminationGracePeriodSeconds"]


def test_options_of_the_server_are_its_own() -> None:
    known = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "runtime/native/server/options.cpp").read_text()))
    for name in ("Dockerfile", "arcflow-serve.service", "kubernetes.yaml"):
        lines = [
            line for line in (DEPLOY / name).read_text().splitlines() if re.search("ENTRYPOINT|ExecStart|args:", line)
        ]
        used = set(re.findall(r"(--[a-z-]+)", " ".join(lines)))
        assert used and used <= known, f"{name} uses {used - known}"


def test_what_images_copy_is_there() -> None:
    for file in DEPLOY.glob("Dockerfile*"):
        for line in file.read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                assert (ROOT / line.split()[1]).exists(), line
