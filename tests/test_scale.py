"""The scripts of docs/scale.md are shell and YAML, and the commands in them parse."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from unitok.cli import arguments
from unitok.cli.commands import COMMANDS

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
MANIFEST = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)[0]
SCRIPTS.append(list(yaml.safe_load_all(MANIFEST))[1]["spec"]["template"]["spec"]["containers"][0]["args"][0])


@pytest.mark.parametrize("script", SCRIPTS, ids=["one machine", "slurm", "ssh", "kubernetes"])
def test_scripts_are_shell(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=["one machine", "slurm", "ssh", "kubernetes"])
def test_their_commands_parse(script: str) -> None:
    """All options of ours exist; a variable stands for a folder, and an array for --resume."""
    joined = script.replace("\\\n", " ")
    line = next(line for line in joined.splitlines() if "-m unitok" in line).split("-m unitok ")[1]
    line = line.replace('"${resume[@]}"', "--resume").replace('"$out"', "out").removesuffix(" &").strip()
    words = shlex.split(line.split('" <')[0].replace(" $*", ""))
    assert words[:2] == ["train", "generator"]
    if "--config" not in words:  # a file that the reader writes
        _, values = arguments.parse("train generator", COMMANDS["train generator"], words[2:])
        assert values["run"].batch_size % 64 == 0 and values["data"].endswith("codes")


def test_the_manifest_names_what_it_mounts() -> None:
    service, job = yaml.safe_load_all(MANIFEST)
    pod = job["spec"]["template"]["spec"]
    assert {one["name"] for one in pod["containers"][0]["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert service["metadata"]["name"] == pod["subdomain"] and job["spec"]["completions"] == job["spec"]["parallelism"]
