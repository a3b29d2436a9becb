"""The files in recipes/launch: launchers read them, and they name only options that exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.run import get_args_parser

from peftcls.cli import commands
from peftcls.engine.launcher import launcher_asks_for_shares

LAUNCH = Path(__file__).parents[1] / "recipes" / "launch"
CONFIGURATIONS = sorted(LAUNCH.glob("*.yaml"))
SLURM = LAUNCH / "slurm.sh"
PLACES = {
    "fsdp2": ("FSDP", 1, 8),
    "fsdp2_4bit": ("FSDP", 1, 8),
    "one_gpu": ("NO", 1, 1),
    "several_gpus": ("MULTI_GPU", 1, 2),
    "shares": ("MULTI_GPU", 1, 8),
    "two_machines": ("MULTI_GPU", 2, 16),
}


def test_there_is_a_file_for_each_place():
    assert {path.stem for path in CONFIGURATIONS} == set(PLACES)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_reads_a_configuration(path):
    config = load_config_from_file(str(path))
    found = (config.distributed_type, config.num_machines, config.num_processes)
    assert found == PLACES[path.stem]
    assert config.mixed_precision == "bf16"
    is_fsdp = path.stem in ("fsdp2", "fsdp2_4bit")
    assert bool(config.fsdp_config) == is_fsdp
    arguments = ["--config_file", str(path), "--machine_rank", "0", "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert args.num_processes == PLACES[path.stem][2]
    assert args.multi_gpu == (path.stem != "one_gpu" and not is_fsdp)
    assert args.use_fsdp == is_fsdp


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_4bit"])
def test_fsdp_of_the_launcher_turns_shares_on(name, monkeypatch):
    path = str(LAUNCH / f"{name}.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", path, "train.py"])
    args, _, _ = _validate_launch_command(arguments)
    for name, value in prepare_multi_gpu_env(args).items():
        if "FSDP" in name:
            monkeypatch.setenv(name, value)
    assert launcher_asks_for_shares()


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_configuration_begins_with_when_to_use_it_and_a_command_that_uses_it(path):
    *when, command, first_setting = path.read_text(encoding="utf-8").splitlines()[:4]
    assert all(line.startswith("# ") and "accelerate" not in line for line in when)
    assert not first_setting.startswith("#")
    program, *arguments = shlex.split(command.removeprefix("# "))
    assert program == "accelerate"
    args = launch_command_parser().parse_args(arguments[1:])
    assert Path(args.config_file) == path.relative_to(LAUNCH.parents[1])
    if not args.module:
        assert (LAUNCH.parents[1] / args.training_script).is_file()


def test_the_script_for_slurm_is_valid_shell():
    ended = subprocess.run(
        ["bash", "-n", str(SLURM)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    first, *comments = SLURM.read_text(encoding="utf-8").splitlines()[:3]
    assert first == "#!/bin/bash"
    assert all(comment.startswith("# ") for comment in comments)


def test_the_script_for_slurm_names_options_that_exist():
    text = SLURM.read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("srun "))
    launcher, _, command = line.partition(" -m peftcls ")
    known = set(get_args_parser()._option_string_actions)
    given = re.findall(r" (--[a-z-]+)", launcher.partition(" torchrun ")[2])
    assert {"--max-restarts", "--rdzv-backend"} <= set(given) <= known
    name, *arguments = shlex.split(command)
    options = {option for parameter in commands.commands[name].params for option in parameter.opts}
    given = [argument for argument in arguments if argument.startswith("--")]
    assert {"--resume", "--out"} <= set(given) <= options


def test_the_script_for_slurm_says_what_it_expects():
    ended = subprocess.run(
        ["bash", str(SLURM), "papers.csv"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode != 0
    assert "expected a base model: sbatch slurm.sh FILE MODEL DIR" in ended.stderr
