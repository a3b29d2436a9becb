"""Three adapters with 2, 5 and 20 labels on MiniLM-L6: one base in memory, and other ways.

    python benchmarks/many_adapters.py

A request is 8 rows that belong to the three adapters at random, as a server sees them. All ways get
the same requests, folders and numbers of the same width, and all their processor seconds count,
tokens included. Times are ratios of one round to the same round of another way; memory is the peak
of a process of its own. The adapters are as far from their base as training leaves them, but were
not trained: what is measured does not depend on it. Results go to
benchmarks/results/many_adapters.json.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from real_data import minilm_folder, spread, versions
from safetensors.torch import load_file

import peftcls
from peftcls.demo import sample
from peftcls.models.adapter_folder import save_adapter

RESULTS = Path(__file__).parent / "results" / "many_adapters.json"
SIZES = {"two": 2, "five": 5, "twenty": 20}
MAX_LENGTH = 128
ROWS = 8
SEED = 0
# How far the trained weights are moved from their initial values.
MOVED = 0.05
HIDDEN_SIZE = 384
Requests = list[tuple[list[str], list[str]]]
Way = Callable[[list[str], list[str]], list[str]]


def requests(count: int) -> Requests:
    """Texts of the sample messages, and which adapter each is for."""
    drawn = random.Random(SEED)
    texts = [row["text"] for row in peftcls.read_rows(sample("messages_train.csv"))]
    made = []
    for _ in range(count):
        request_texts = drawn.choices(texts, k=ROWS)
        names = drawn.choices(list(SIZES), k=ROWS)
        made.append((request_texts, names))
    return made


def write_folders(folder: Path) -> None:
    """Write one adapter folder for each task, under its name."""
    for seed, (name, size) in enumerate(SIZES.items()):
        task = peftcls.Classification(labels=tuple(map(str, range(size))), max_length=MAX_LENGTH)
        model, tokenizer = peftcls.load_base(minilm_folder(), task)
        model = peftcls.attach_lora(model, task, rank=8)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += MOVED * torch.randn_like(parameter)
        save_adapter(folder / name, model, task, tokenizer)


def shared(folder: Path) -> Way:
    """One base in memory, one batch a request."""
    predictor = peftcls.load_predictor([folder / name for name in SIZES])

    def answers(texts: list[str], names: list[str]) -> list[str]:
        return [str(answer.label) for answer in predictor.predict(texts, names)]

    return answers


def separate(folder: Path) -> Way:
    """A predictor for each folder, with a base of its own."""
    predictors = {name: peftcls.load_predictor(folder / name) for name in SIZES}

    def answers(name: str, texts: list[str]) -> list[str]:
        return [str(answer.label) for answer in predictors[name].predict(texts)]

    return by_group(answers)


def switched(folder: Path) -> Way:
    """transformers and PEFT: all adapters on one backbone, `set_adapter` for the rows of each."""
    model, tokenizer, heads = peft_model(folder)

    def answers(name: str, texts: list[str]) -> list[str]:
        model.set_adapter(name)
        logits = heads[name](pooled(model, tokenizer, texts))
        return [str(label) for label in logits.argmax(1).tolist()]

    return by_group(answers)


def named(folder: Path) -> Way:
    """transformers and PEFT: one batch a request with `adapter_names`, then each row's own head."""
    model, tokenizer, heads = peft_model(folder)

    def answers(texts: list[str], names: list[str]) -> list[str]:
        states = pooled(model, tokenizer, texts, adapter_names=names)
        labels = []
        for state, name in zip(states, names, strict=True):
            labels.append(str(int(heads[name](state).argmax())))
        return labels

    return answers


def by_group(answers: Callable[[str, list[str]], list[str]]) -> Way:
    """Answer the rows of each adapter as a batch, and put the answers into the rows' order."""

    def way(texts: list[str], names: list[str]) -> list[str]:
        labels = [""] * len(texts)
        for name in set(names):
            indices = [i for i, row_name in enumerate(names) if row_name == name]
            group = answers(name, [texts[i] for i in indices])
            for i, label in zip(indices, group, strict=True):
                labels[i] = label
        return labels

    return way


def peft_model(
    folder: Path,
) -> tuple[PeftModel, transformers.PreTrainedTokenizerBase, dict[str, torch.nn.Linear]]:
    """A PEFT model with all adapters, its tokenizer, and the heads beside it.

    PEFT cannot hold heads of several sizes: its copies of a head share their shape.
    """
    dtype = getattr(torch, base_dtype(folder))
    model = None
    heads = {}
    for name, size in SIZES.items():
        tensors = load_file(folder / name / "adapter_model.safetensors")
        heads[name] = torch.nn.Linear(HIDDEN_SIZE, size).eval().requires_grad_(False)
        weight = tensors.pop("base_model.model.classifier.weight")
        bias = tensors.pop("base_model.model.classifier.bias")
        heads[name].load_state_dict({"weight": weight, "bias": bias})
        config = peftcls_config(folder / name)
        if model is None:
            base = transformers.AutoModel.from_pretrained(minilm_folder(), dtype=dtype)
            model = PeftModel(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        renamed = {put_name(key, name): tensor for key, tensor in tensors.items()}
        result = model.load_state_dict(renamed, strict=False)
        assert not result.unexpected_keys, result.unexpected_keys
    assert model is not None
    return model.eval(), transformers.AutoTokenizer.from_pretrained(minilm_folder()), heads


def base_dtype(folder: Path) -> str:
    """The dtype of the base of the saved adapters."""
    manifest = json.loads((folder / "two" / "peftcls.json").read_text())
    return str(manifest["base"]["dtype"])


def peftcls_config(folder: Path) -> object:
    """A folder's adapter settings, for a backbone without a head."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    config.task_type = None
    config.modules_to_save = None
    config.inference_mode = True
    config.target_modules = {name.removeprefix("bert.") for name in config.target_modules}
    return config


def put_name(key: str, name: str) -> str:
    """A tensor's name in a backbone without a head that holds several adapters."""
    key = key.replace("base_model.model.bert.", "base_model.model.")
    return key.replace(".lora_A.", f".lora_A.{name}.").replace(".lora_B.", f".lora_B.{name}.")


@torch.inference_mode()
def pooled(
    model: PeftModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: list[str],
    **more: list[str],
) -> torch.Tensor:
    """The pooled states that the heads read, in float32."""
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    return model(**batch, **more).pooler_output.float()  # type: ignore[no-any-return]


WAYS: dict[str, Callable[[Path], Way]] = {
    "peftcls, one base": shared,
    "peftcls, a predictor each": separate,
    "PEFT, set_adapter": switched,
    "PEFT, adapter_names": named,
}


def memory(way: str, folder: Path, asked: Requests) -> None:
    """Print the peak memory of this process in MiB, with one way in it."""
    answer = WAYS[way](folder)
    for texts, names in asked[:10]:
        answer(texts, names)
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    print(int(status["VmHWM"].split()[0]) / 1024)


def measure(folder: Path, asked: Requests, rounds: int) -> dict[str, object]:
    """Time every way in turn, and count how often it gave the labels of separate predictors."""
    answers = {way: build(folder) for way, build in WAYS.items()}
    labels: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way in random.Random(turn).sample(list(WAYS), len(WAYS)):
            started = time.process_time()
            labels[way] = []
            for texts, names in asked:
                labels[way] += answers[way](texts, names)
            # The first round builds kernels and probes the models.
            if turn:
                seconds[way].append(time.process_time() - started)
    found = {}
    for way in WAYS:
        one_base = seconds["peftcls, one base"]
        ratios = [a / b for a, b in zip(seconds[way], one_base, strict=True)]
        separate_labels = labels["peftcls, a predictor each"]
        same = [a == b for a, b in zip(labels[way], separate_labels, strict=True)]
        command = [sys.executable, __file__, "--memory", way, "--folder", str(folder)]
        peak = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = {
            "rows_a_second": round(len(labels[way]) / statistics.median(seconds[way]), 1),
            "seconds_in_units_of_one_base": spread(ratios),
            "same_label_as_alone": round(sum(same) / len(same), 4),
            "peak_mib": round(float(peak.stdout.split()[-1])),
        }
        print(way, found[way], flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", choices=sorted(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.memory:
        memory(options.memory, options.folder, requests(options.requests))
        sys.exit()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_folders(folder)
        found = measure(folder, requests(options.requests), options.rounds)
        dtype = base_dtype(folder)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "dtype": dtype,
        "requests": options.requests,
        "rows_a_request": ROWS,
        "rounds": options.rounds,
        **versions("torch", "transformers", "peft"),
    }
    RESULTS.write_text(json.dumps({"ways": found, **machine}, indent=1) + "\n")
