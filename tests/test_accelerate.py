"""The configurations of recipes/accelerate: what accelerate makes of each, and runs of those that a CPU can do.

`--ddp_backend gloo` is what lets DeepSpeed's run without GPUs; it is skipped where DeepSpeed is not installed.
"""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from test_distributed import ROOT, launch
from tiny import free_port, in_two_processes, read_csv

from lascl import LaSCLForAudioClassification, LaSCLTrainingArguments
from lascl.train import main


CONFIGS = ROOT / "recipes" / "accelerate"
LAUNCH = ("accelerate.commands.launch", "--config_file")


def arguments(name: str, *options: str):
    """What `accelerate launch` makes of a configuration file."""
    path = str(CONFIGS / f"{name}.yaml")
    typed = launch_command_parser().parse_args(["--config_file", path, *options, "train.py"])
    return _validate_launch_command(typed)[0]


def test_each_configuration_is_one_of_these():
    assert sorted(path.stem for path in CONFIGS.iterdir()) == [
        "deepspeed_zero2",
        "one_gpu",
        "several_gpus",
        "two_nodes",
    ]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("one_gpu", {"num_processes": 1, "num_machines": 1, "gpu_ids": "0", "multi_gpu": False}),
        ("several_gpus", {"num_processes": 2, "num_machines": 1, "gpu_ids": "all", "multi_gpu": True}),
        ("two_nodes", {"num_processes": 16, "num_machines": 2, "gpu_ids": "all", "multi_gpu": True}),
        ("deepspeed_zero2", {"num_processes": 4, "num_machines": 1, "use_deepspeed": True, "zero_stage": 2}),
    ],
)
def test_accelerate_takes_every_key_as_it_is_meant(name, expected):
    load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # raises on a key that it does not know
    found = vars(arguments(name))
    assert {key: found[key] for key in expected} == expected
    # Of a section's keys accelerate checks none.
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert {key for section in written.values() if isinstance(section, dict) for key in section} <= known.keys()
    # Precision is a matter of the recipe, which the run records.
    assert found["mixed_precision"] == "no"


def test_options_on_the_command_line_win():
    assert arguments("several_gpus", "--num_processes", "8").num_processes == 8
    options = ("--machine_rank", "1", "--main_process_ip", "10.0.0.7", "--main_process_port", "4711")
    args = arguments("two_nodes", *options, "--num_processes", "4")
    prepare_multi_gpu_env(args)
    torchrun = {"nnodes": "2", "nproc_per_node": "2", "node_rank": 1, "rdzv_endpoint": "10.0.0.7:4711"}
    assert {key: getattr(args, key) for key in torchrun} == torchrun and args.rdzv_backend == "static"


def test_deepspeed_is_told_to_leave_batches_clipping_and_optimiser_to_train_py():
    args = arguments("deepspeed_zero2")
    args.deepspeed_fields_from_accelerate_config = ""
    command, environment = prepare_deepspeed_cmd_env(args)
    assert command is None  # processes are started by torchrun, not by DeepSpeed's own launcher
    told = {key: value for key, value in environment.items() if key.startswith("ACCELERATE_")}
    assert told["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert told["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert told["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == told["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
    assert told["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_DEEPSPEED_CONFIG_FILE" not in told


def test_the_wheel_holds_them():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["lascl.recipes"].split()
    packed = {path for pattern in patterns for path in (ROOT / "recipes").glob(pattern)}
    assert packed == {*(ROOT / "recipes").rglob("*.yaml")} and set(CONFIGS.iterdir()) <= packed


# -------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def recipe(audio_encoders, text_encoder, emodb_like):
    """Four steps on a fold of the miniature corpus.

    Gradient descent without clipping: AdamW hides a wrong scale of the gradients, and blows up the rounding in those
    that are zero but for it, such as those of the keys' biases. No weight decay: DeepSpeed's also shrinks parameters
    that take no part in a step, and torch's does not.
    """
    fields = {
        "corpus": "emodb",
        "data_dir": emodb_like,
        "allow_partial": "true",
        "folds": "1",
        "max_steps": "4",
        "global_batch_size": "8",
        "augmentation": "noise",
        "max_duration_s": "0.15",
        "audio_encoder": audio_encoders["wavlm-layer"],
        "text_encoder": text_encoder,
        "projection_dim": "8",
        "optim": "sgd",
        "learning_rate": "0.02",
        "encoder_learning_rate": "0.01",
        "warmup_steps": "0",
        "max_grad_norm": "1e9",  # never reached; given 0, transformers 5.0 logs no norm
        "weight_decay": "0",
        "logging_strategy": "steps",
        "logging_steps": "1",
        "disable_tqdm": "true",
    }
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def one_process(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-process")
    main([*recipe, "--use_cpu", "true", "--output_dir", str(folder)])
    return folder


def assert_trained_alike(run, reference, num_processes):
    """Loss, terms and gradient norm of each step, trained weights and predictions, to 1e-5."""
    assert json.loads((run / "environment.json").read_text())["processes"] == num_processes
    steps, expected = (json.loads((folder / "fold-1/log_history.json").read_text()) for folder in (run, reference))
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for step, wanted in zip(steps, expected, strict=True):
        for key in ("loss", "contrastive", "divergence", "cross_entropy", "grad_norm", "padding_share"):
            assert step[key] == pytest.approx(wanted[key], rel=1e-5), (step["step"], key)
        assert wanted["grad_norm"] > 1
    assert steps[0]["loss"] != pytest.approx(steps[-1]["loss"], rel=1e-3)
    weights, wanted = (load_file(folder / "fold-1/checkpoint/model.safetensors") for folder in (run, reference))
    assert weights.keys() == wanted.keys()
    assert max(float((weights[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    rows, wanted = (read_csv(folder / "fold-1/predictions.csv") for folder in (run, reference))
    assert [row["id"] for row in rows] == [row["id"] for row in wanted] and len(rows) == 14
    for row, other in zip(rows, wanted):
        for column in (column for column in row if column.startswith("probability_")):
            assert float(row[column]) == pytest.approx(float(other[column]), abs=1e-5)


def test_two_processes_on_two_nodes_train_a_fold_to_the_numbers_of_one(recipe, one_process, tmp_path, capfd):
    """Each is the first on its node, but one alone writes the run."""
    in_two_processes(main, [*recipe, "--use_cpu", "true", "--output_dir", str(tmp_path / "run")], nodes=2)
    assert capfd.readouterr().out.count("report.html, results.json") == 1
    assert_trained_alike(tmp_path / "run", one_process, num_processes=2)


@pytest.mark.proof  # the same with real launchers
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_nodes_train_a_fold_to_the_numbers_of_one_process(recipe, one_process, tmp_path, launcher):
    """Two launchers, each with one process, that find each other on the loopback."""
    port = free_port()

    def node(rank: int):
        if launcher == "torchrun":
            nodes = ("--nnodes", "2", "--node_rank", rank, "--nproc_per_node", "1")
            start = ("torch.distributed.run", *nodes, "--master_addr", "127.0.0.1", "--master_port", port)
        else:
            nodes = ("--num_processes", "2", "--machine_rank", rank)
            where = ("--main_process_ip", "127.0.0.1", "--main_process_port", port)
            start = (*LAUNCH, CONFIGS / "two_nodes.yaml", *nodes, *where)
        return launch(*start, ROOT / "train.py", *recipe, "--use_cpu", "true", "--output_dir", "run", cwd=tmp_path)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(node, (0, 1)))
    for node in done:
        assert node.returncode == 0, node.stderr
    assert ["report.html, results.json" in node.stdout for node in done] == [True, False]
    assert_trained_alike(tmp_path / "run", one_process, num_processes=2)


def test_what_accelerate_tells_the_processes_of_several_gpus_changes_no_number(
    recipe, one_process, tmp_path, monkeypatch
):
    environment = prepare_multi_gpu_env(arguments("several_gpus"))
    told = {name: value for name, value in environment.items() if name.startswith("ACCELERATE_")}
    assert told["ACCELERATE_MIXED_PRECISION"] == "no"
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    in_two_processes(main, [*recipe, "--use_cpu", "true", "--output_dir", str(tmp_path / "run")])
    assert_trained_alike(tmp_path / "run", one_process, num_processes=2)


@pytest.mark.proof  # the same with real launchers
@pytest.mark.parametrize("name, num_processes", [("one_gpu", 1), ("several_gpus", 2)])
def test_configurations_of_one_machine_train_without_a_gpu_too(recipe, one_process, tmp_path, name, num_processes):
    command = (*LAUNCH, CONFIGS / f"{name}.yaml", ROOT / "train.py", *recipe, "--use_cpu", "true")
    done = launch(*command, "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_trained_alike(tmp_path / "run", one_process, num_processes)


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")
def test_zero_2_trains_to_the_numbers_of_one_process(recipe, one_process, tmp_path):
    command = (*LAUNCH, CONFIGS / "deepspeed_zero2.yaml", "--num_processes", "2", ROOT / "train.py", *recipe)
    done = launch(*command, "--ddp_backend", "gloo", "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_trained_alike(tmp_path / "run", one_process, num_processes=2)


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")
def test_chunks_are_refused_where_accelerate_s_configuration_asks_for_deepspeed(tmp_path, monkeypatch):
    """It says so in the environment alone."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    LaSCLTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="one backward pass a step. Use gradient_checkpointing there."):
        LaSCLTrainingArguments(str(tmp_path), use_cpu=True, contrastive_chunk_size=2)


def test_parameters_in_half_precision_beside_float32_buffers_give_label_embeddings(audio_encoders, text_encoder):
    """That is what DeepSpeed makes of a model with --bf16 true."""
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["wavlm-layer"], text_encoder, ["calm", "tense"])
    expected = model.lascl.get_label_embeddings()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    found = model.lascl.get_label_embeddings()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
