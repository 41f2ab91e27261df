"""The launch files: what they give to Accelerate and to arcflow.distill is understood there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from arcflow import distill
from foundation.cli import run
from tests.export.pipelines import small_flux

TRAINING = Path(__file__).parents[2] / "examples" / "training"
PLAYED = {
    "accelerate": f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n",
    "srun": '#!/bin/sh\nexec "$@"\n',
    "scontrol": "#!/bin/sh\necho one\necho two\n",
}
"""Commands of other machines, which here say what they were given, or do it."""


@pytest.mark.parametrize("name", [path.name for path in sorted(TRAINING.iterdir())])
def test_what_is_launched_is_understood(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, text in PLAYED.items():
        (tmp_path / command).write_text(text)
        (tmp_path / command).chmod(0o755)
    small_flux(tmp_path)
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        f"extends = 'flux'\nname = 'small'\nbase = '{tmp_path / 'base'}'\n[student]\nrank = 4\n"
        "[distill]\nsizes = ['32x32']\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RECIPE": str(recipe), "NODE": "1",
                   "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "[one-two]", "MAIN": "one"}  # fmt: skip
    command = ["sh", str(TRAINING / name), "--workdir", str(tmp_path / "a folder"), "--base", str(tmp_path / "base")]
    done = subprocess.run(command, cwd=TRAINING.parents[1], env=environment, capture_output=True, text=True, check=True)
    asked, *given = json.loads(done.stdout)
    assert asked == "launch"
    launch = launch_command_parser().parse_args(given)
    assert (launch.module, launch.training_script) == (True, "arcflow.distill")
    assert launch.num_processes == {"1x80.sh": 1, "8x24.sh": 8, "8x80.sh": 8}.get(name, 16)
    if launch.num_processes == 16:
        assert (launch.num_machines, launch.machine_rank, launch.main_process_ip) == (2, 1, "one")
    options = [*launch.training_script_args, "--dry-run", "--gpus", str(launch.num_processes)]
    assert run(distill.main, options) == 0
    said = capsys.readouterr().out
    assert ("--shard" in options) == (name == "8x24.sh") and "an iteration" in said
