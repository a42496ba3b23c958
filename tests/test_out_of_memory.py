"""Too little memory is said in one sentence that names the chunk to try, and with that chunk the run finishes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import AUDIO_ENCODERS, FINE, RATE, recording

from lascl import LaSCLForAudioClassification
from lascl.train import main
from lascl.training.random_encoders import save_random_audio_encoder


VIEWS = 2


@pytest.fixture(scope="module")
def command(emodb_like, audio_encoders, text_encoder):
    return [
        *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--folds", "1", "--max_steps", "1"),
        *("--audio_encoder", audio_encoders["wavlm-layer"], "--text_encoder", text_encoder, "--use_cpu", "true"),
        *("--global_batch_size", "16", "--augmentation", "gain", "--disable_tqdm", "true"),
    ]


@pytest.fixture
def small_gpu(monkeypatch):
    """A model in training that fails as CUDA does with more than so many rows."""
    whole_forward = LaSCLForAudioClassification.forward

    def small_gpu(most_rows, message="CUDA out of memory. Tried to allocate 1.22 GiB. GPU 0 has ...\nSee the docs"):
        def forward(self, input_values=None, **inputs):
            if self.training and len(input_values) > most_rows:
                raise torch.OutOfMemoryError(message)
            return whole_forward(self, input_values=input_values, **inputs)

        monkeypatch.setattr(LaSCLForAudioClassification, "forward", forward)

    return small_gpu


def stopped(command, capsys) -> str:
    """Runs train.py, which must stop with code 2; what it says on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(command)
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_the_advice_leads_to_a_run_that_finishes(command, small_gpu, tmp_path, capsys):
    """Room for three utterances: 16 do not fit, nor do 8 and 4, and 2 do."""
    small_gpu(most_rows=3 * VIEWS)
    command = [*command, "--output_dir", str(tmp_path)]
    options = []
    for at_once, advised in ((16, 8), (8, 4), (4, 2)):
        assert stopped([*command, *options], capsys) == (
            f"train.py: out of memory with {at_once} utterances x 2 views at once. Add --contrastive_chunk_size "
            f"{advised}: the gradients stay those of the whole batch. What is finished is kept.\n"
        )
        options = ["--contrastive_chunk_size", str(advised)]
    main([*command, *options])
    assert (tmp_path / "results.json").is_file() and (tmp_path / "fold-1" / "metrics.json").is_file()


def test_where_one_utterance_does_not_fit_other_options_are_named(command, small_gpu, tmp_path, capsys):
    small_gpu(most_rows=1)
    error = stopped([*command, "--contrastive_chunk_size", "1", "--output_dir", str(tmp_path)], capsys)
    assert error == (
        "train.py: out of memory with 1 utterances x 2 views at once. Add --gradient_checkpointing true, --bf16 true "
        "or a smaller --max_duration_s. What is finished is kept.\n"
    )


def test_one_view_is_counted_as_one(command, small_gpu, tmp_path, capsys):
    """Without augmentation there is one view of each utterance, whatever `num_views` says."""
    small_gpu(most_rows=3)
    command = [*command, "--augmentation", "none", "--output_dir", str(tmp_path)]
    assert "out of memory with 16 utterances x 1 view at once." in stopped(command, capsys)
    error = stopped([*command, "--contrastive_chunk_size", "4"], capsys)
    assert "out of memory with 4 utterances x 1 view at once. Add --contrastive_chunk_size 2:" in error
    main([*command, "--contrastive_chunk_size", "3"])


def test_another_failure_is_not_taken_for_it(command, small_gpu, tmp_path):
    small_gpu(most_rows=1, message="CUDA error: device-side assert triggered")
    with pytest.raises(torch.OutOfMemoryError, match="device-side assert"):
        main([*command, "--output_dir", str(tmp_path)])


# From the first step on, the process may take so many MiB more than it has then. The batch of 16 utterances, encoded
# whole, takes about 750, chunks of 8 about 440.
ROOM_MIB = 590
LIMITED = """
import resource, sys
from lascl import LaSCLTrainer, encoders_lascl, train
from lascl.training import fold

encoders_lascl.CALL_PRICE["cpu"] = 10**12

class Limited(LaSCLTrainer):
    def training_step(self, *args, **kwargs):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        return super().training_step(*args, **kwargs)

fold.LaSCLTrainer = Limited
try:
    train.main(sys.argv[2:])
except SystemExit as exit:
    print("stopped with", exit.code, file=sys.stderr)
train.main([*sys.argv[2:], "--contrastive_chunk_size", "8"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_a_process_that_is_given_too_little_memory_says_so_and_finishes_with_the_advised_chunk(
    command, emodb_like, tmp_path
):
    encoder = save_random_audio_encoder(AUDIO_ENCODERS["wavlm-layer"] | FINE, tmp_path / "encoder")
    (tmp_path / "alike").mkdir()  # clips of one length, which are encoded in one group
    for number, path in enumerate(sorted(emodb_like.iterdir())):
        soundfile.write(tmp_path / "alike" / path.name, recording(number, 0.6), RATE)
    options = ["--audio_encoder", str(encoder), "--data_dir", str(tmp_path / "alike"), "--output_dir", "run"]
    run = [sys.executable, "-c", LIMITED, str(ROOM_MIB), *command, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    (line,) = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert line.startswith("train.py: out of memory with 16 utterances x 2 views at once.")
    assert "Add --contrastive_chunk_size 8:" in line
    assert "stopped with 2\n" in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").is_file()
