"""Three adapters with 2, 5 and 20 labels on MiniLM-L6: mixed requests to one base, beside other ways to serve them.

    python benchmarks/many_adapters.py

A request is 8 rows that belong to the three adapters by chance, as a server sees them. All ways get the same requests, folders
and numbers of the same width, and all their processor seconds count, tokens included. Times are ratios of one round to the same
round of another way; memory is the peak of a process of its own. The adapters are as far from their base as training leaves them, but
were not trained: what is measured does not depend on it. Results go to benchmarks/results/many_adapters.json.
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
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from real_data import minilm_folder
from safetensors.torch import load_file

import peftcls
from peftcls.demo import sample
from peftcls.models.adapter_folder import save_adapter

RESULTS = Path(__file__).parent / "results" / "many_adapters.json"
SIZES = {"two": 2, "five": 5, "twenty": 20}
MAX_LENGTH, ROWS, SEED = 128, 8, 0
Requests = list[tuple[list[str], list[str]]]
Way = Callable[[list[str], list[str]], list[str]]


def requests(count: int) -> Requests:
    """Texts of the sample messages, and which adapter each is for."""
    drawn = random.Random(SEED)
    texts = [row["text"] for row in peftcls.read_rows(sample("messages_train.csv"))]
    return [
        (drawn.choices(texts, k=ROWS), drawn.choices(list(SIZES), k=ROWS)) for _ in range(count)
    ]


def write_folders(folder: Path) -> None:
    """One adapter folder a task, by its name."""
    for seed, (name, size) in enumerate(SIZES.items()):
        task = peftcls.Classification(labels=tuple(map(str, range(size))), max_length=MAX_LENGTH)
        model, tokenizer = peftcls.load_base(minilm_folder(), task)
        model = peftcls.attach_lora(model, task, rank=8)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        save_adapter(folder / name, model, task, tokenizer)


def shared(folder: Path) -> Way:
    """One base in memory, one batch a request."""
    together = peftcls.load_predictor([folder / name for name in SIZES])
    return lambda texts, names: [str(answer.label) for answer in together.predict(texts, names)]


def alone(folder: Path) -> Way:
    """A predictor a folder, each with a base of its own, asked in turn."""
    predictors = {name: peftcls.load_predictor(folder / name) for name in SIZES}
    return by_group(
        lambda name, texts: [str(answer.label) for answer in predictors[name].predict(texts)]
    )


def switched(folder: Path) -> Way:
    """transformers and PEFT: all adapters on one backbone, `set_adapter` for the rows of each."""
    model, tokenizer, heads = peft_model(folder)

    def answers(name: str, texts: list[str]) -> list[str]:
        model.set_adapter(name)
        return list(map(str, heads[name](pooled(model, tokenizer, texts)).argmax(1).tolist()))

    return by_group(answers)


def named(folder: Path) -> Way:
    """transformers and PEFT: one batch a request, with `adapter_names` for its rows; then each row's own head."""
    model, tokenizer, heads = peft_model(folder)

    def answers(texts: list[str], names: list[str]) -> list[str]:
        states = pooled(model, tokenizer, texts, adapter_names=names)
        return [
            str(int(heads[name](state).argmax())) for state, name in zip(states, names, strict=True)
        ]

    return answers


def by_group(answers: Callable[[str, list[str]], list[str]]) -> Way:
    """The rows of each adapter together, and back into their order."""

    def way(texts: list[str], names: list[str]) -> list[str]:
        found = [""] * len(texts)
        for name in set(names):
            own = [place for place, other in enumerate(names) if other == name]
            for place, label in zip(
                own, answers(name, [texts[place] for place in own]), strict=True
            ):
                found[place] = label
        return found

    return way


def peft_model(
    folder: Path,
) -> tuple[PeftModel, transformers.PreTrainedTokenizerBase, dict[str, torch.nn.Linear]]:
    """PEFT cannot hold heads of several sizes (its copies of a head share their shape), so they stand beside the model."""
    dtype = getattr(
        torch, json.loads((folder / "two" / "peftcls.json").read_text())["base"]["dtype"]
    )
    model = None
    heads = {}
    for name, size in SIZES.items():
        tensors = load_file(folder / name / "adapter_model.safetensors")
        heads[name] = torch.nn.Linear(384, size).eval().requires_grad_(False)
        heads[name].load_state_dict(
            {key: tensors.pop(f"base_model.model.classifier.{key}") for key in ("weight", "bias")}
        )
        plain = {
            key.replace("base_model.model.bert.", "base_model.model."): tensor
            for key, tensor in tensors.items()
        }
        config = peftcls_config(folder / name)
        if model is None:
            base = transformers.AutoModel.from_pretrained(minilm_folder(), dtype=dtype)
            model = PeftModel(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        missing = model.load_state_dict(
            {put_name(key, name): tensor for key, tensor in plain.items()}, strict=False
        )
        assert not missing.unexpected_keys, missing.unexpected_keys
    assert model is not None
    return model.eval(), transformers.AutoTokenizer.from_pretrained(minilm_folder()), heads


def peftcls_config(folder: Path) -> object:
    """A folder's own settings, for the backbone alone."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save, config.inference_mode = None, None, True
    config.target_modules = {name.removeprefix("bert.") for name in config.target_modules}
    return config


def put_name(key: str, name: str) -> str:
    """A tensor's name in a model of several adapters."""
    return key.replace(".lora_A.", f".lora_A.{name}.").replace(".lora_B.", f".lora_B.{name}.")


@torch.inference_mode()
def pooled(
    model: PeftModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: list[str],
    **more: list[str],
) -> torch.Tensor:
    """What the heads read, in float32."""
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    return model(**batch, **more).pooler_output.float()  # type: ignore[no-any-return]


WAYS: dict[str, Callable[[Path], Way]] = {
    "peftcls, one base": shared,
    "peftcls, a predictor each": alone,
    "PEFT, set_adapter": switched,
    "PEFT, adapter_names": named,
}


def memory(way: str, folder: Path, asked: Requests) -> None:
    """Print the peak of this process, in MiB, with one way in it."""
    answer = WAYS[way](folder)
    for texts, names in asked[:10]:
        answer(texts, names)
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(told["VmHWM"].split()[0]) / 1024)


def measure(folder: Path, asked: Requests, rounds: int) -> dict[str, object]:
    """Seconds of every round of every way, in turn, and how often it gave the labels of the predictors alone."""
    answers = {way: build(folder) for way, build in WAYS.items()}
    given: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way in random.Random(turn).sample(list(WAYS), len(WAYS)):
            started = time.process_time()
            given[way] = [label for texts, names in asked for label in answers[way](texts, names)]
            if turn:  # the first round asks models and kernels what they can
                seconds[way].append(time.process_time() - started)
    found = {}
    for way in WAYS:
        ratios = [
            other / own
            for other, own in zip(seconds[way], seconds["peftcls, one base"], strict=True)
        ]
        same = sum(
            a == b for a, b in zip(given[way], given["peftcls, a predictor each"], strict=True)
        ) / len(given[way])
        command = [sys.executable, __file__, "--memory", way, "--folder", str(folder)]
        peak = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = {
            "rows_a_second": round(len(given[way]) / statistics.median(seconds[way]), 1),
            "seconds_in_units_of_one_base": {
                "median": round(statistics.median(ratios), 2),
                "least": round(min(ratios), 2),
                "most": round(max(ratios), 2),
            },
            "same_label_as_alone": round(same, 4),
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
    with tempfile.TemporaryDirectory() as place:
        write_folders(Path(place))
        found = measure(Path(place), requests(options.requests), options.rounds)
        dtype = json.loads((Path(place) / "two" / "peftcls.json").read_text())["base"]["dtype"]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "dtype": dtype,
        "requests": options.requests,
        "rows_a_request": ROWS,
        "rounds": options.rounds,
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }
    RESULTS.write_text(json.dumps({"ways": found, **machine}, indent=1) + "\n")
