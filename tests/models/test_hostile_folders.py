"""Damaged or hostile folders: nothing in them is run, fetched or believed; a sentence says why."""

import json
import pickle
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import peftcls
from peftcls.models.adapter_folder import save_adapter
from peftcls.models.adapter_manifest import MANIFEST, seal
from peftcls.models.fingerprint import fingerprint_base
from peftcls.models.folder_info import describe_folder, tell_folder

TASK = peftcls.Classification(labels=("no", "yes"), max_length=32)
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def saved(bert, tmp_path_factory) -> Path:
    """A good adapter folder, with the base beside it under a name that leads nowhere else."""
    home = tmp_path_factory.mktemp("saved")
    shutil.copytree(bert, home / "base")
    model, tokenizer = peftcls.load_base(home / "base", TASK)
    save_adapter(home / "adapter", peftcls.attach_lora(model, TASK, rank=2), TASK, tokenizer)
    return home


@pytest.fixture
def home(saved, tmp_path) -> Path:
    """A copy of both folders to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "home"))


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """Whatever a test loads: a folder's code is not imported, writes no file, connects nowhere."""
    file, before, asked = tmp_path / "canary", set(sys.modules), []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    monkeypatch.setattr(
        socket.socket, "connect_ex", lambda self, address: asked.append(address) or 1
    )
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    monkeypatch.setattr(subprocess, "Popen", lambda command, *_, **__: asked.append(command))
    yield file
    assert not file.exists(), "code of the folder was run"
    assert not asked, f"a connection or a process was started: {asked}"
    mine = [
        name
        for name in set(sys.modules) - before
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "") or "")
    ]
    assert not mine, f"modules of the folder were imported: {mine}"


class Bomb:
    """Unpickled, it writes the canary."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "run")


def bomb(folder: Path) -> bytes:
    return pickle.dumps(Bomb(folder.parents[1] / "canary"))


def code(folder: Path, name: str = "modeling_evil.py") -> None:
    (folder / name).write_text(
        f"open({str(folder.parents[1] / 'canary')!r}, 'w').write('run')\nclass Evil: pass\n"
    )


def change_json(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def reseal(folder: Path, change: Callable[[dict], Any] = lambda _: None) -> None:
    """A manifest that fits the files as they are now: whoever sends a folder can make one."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {
        file.name: peftcls.models.adapter_manifest.file_sum(file)
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != MANIFEST
    }
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(seal(manifest)))


def settings(**fields: Any) -> Change:
    return lambda folder: (change_json(folder / "adapter_config.json", **fields), reseal(folder))


def manifest(change: Callable[[dict], Any]) -> Change:
    return lambda folder: reseal(folder, change)


def tensors(change: Callable[[dict], Any]) -> Change:
    def changed(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        held = load_file(file)
        file.unlink()
        change(held)
        save_file(held, file)
        reseal(folder)

    return changed


def header(
    content: bytes | dict, size: int | None = None, body: bytes = b""
) -> Callable[[Path], Any]:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda file: file.write_bytes(
        struct.pack("<Q", len(text) if size is None else size) + text + body
    )


def weights(write: Callable[[Path], Any]) -> Change:
    return lambda folder: (write(folder / "adapter_model.safetensors"), reseal(folder))


def only_pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(bomb(folder))
    reseal(folder)


def linked(name: str, to: str) -> Change:
    def changed(folder: Path) -> None:
        elsewhere = folder.parents[1] / "elsewhere"
        shutil.copy(folder / name, elsewhere)
        (folder / name).unlink()
        (folder / name).symlink_to(elsewhere if to == "absolute" else Path("../../elsewhere"))
        reseal(folder)

    return changed


LIES = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
NEVER_WRITTEN = "which is no setting of an adapter that peftcls trains"
ADAPTERS: dict[str, tuple[Change, str]] = {
    "pickled weights alone": (
        only_pickled,
        r"has no one file of weights, expected .*, "
        r"found only adapter_model\.bin, which can run code",
    ),
    "no weights": (
        lambda f: ((f / "adapter_model.safetensors").unlink(), reseal(f)),
        "has no one file of weights, expected .* found none",
    ),
    "two kinds of weights": (
        lambda f: (
            shutil.copy(f / "adapter_model.safetensors", f / "trained_part.safetensors"),
            reseal(f),
        ),
        "has no one file of weights",
    ),
    "weights of a part that the manifest does not list": (
        lambda f: (f / "trained_part.safetensors").write_bytes(b""),
        "holds trained_part.safetensors, which its peftcls.json does not list",
    ),
    "tokens that the manifest does not list": (
        lambda f: (f / "added_tokens.json").write_text('{"evil": 9}'),
        "holds added_tokens.json, which its peftcls.json does not list",
    ),
    "an absolute link": (
        linked("tokenizer.json", "absolute"),
        r"tokenizer\.json in .* is a link out of the folder",
    ),
    "a relative link": (
        linked("adapter_model.safetensors", "relative"),
        r"adapter_model\.safetensors in .* is a link out of the folder",
    ),
    "a path in the manifest": (
        manifest(lambda m: m["files"].update({"../base/config.json": "0"})),
        r"has no file \.\./base/config\.json",
    ),
    "a tokenizer file elsewhere": (
        lambda f: (
            change_json(
                f / "tokenizer_config.json", fast_tokenizer_files=["../base/tokenizer.json"]
            ),
            reseal(f),
        ),
        r"names the file '\.\./base/tokenizer\.json', which is not in the folder",
    ),
    "a tokenizer that is code": (
        lambda f: (
            code(f),
            change_json(
                f / "tokenizer_config.json",
                tokenizer_class="Evil",
                auto_map={"AutoTokenizer": ["modeling_evil.Evil", "modeling_evil.Evil"]},
            ),
            reseal(f),
        ),
        "cannot load the tokenizer of .*: ValueError: ",
    ),
    "a tokenizer that is no object": (
        lambda f: ((f / "tokenizer_config.json").write_text("[]"), reseal(f)),
        r"tokenizer_config\.json is damaged",
    ),
    "a tokenizer that is none": (
        lambda f: ((f / "tokenizer.json").write_text("{}"), reseal(f)),
        "cannot load the tokenizer of ",
    ),
    "a header longer than the file": (
        weights(header(LIES, size=10**9, body=bytes(16))),
        "is not a whole safetensors file",
    ),
    "a header of exabytes": (weights(header(LIES, size=2**63)), "is not a whole safetensors file"),
    "a header that is no JSON": (weights(header(b"{nonsense")), "is not a whole safetensors file"),
    "offsets beyond the file": (
        weights(header({"a": {**LIES["a"], "data_offsets": [0, 10**12]}}, body=bytes(16))),
        "is not a whole safetensors file",
    ),
    "a shape that lies": (
        weights(header({"a": {**LIES["a"], "shape": [10**6, 10**6]}}, body=bytes(16))),
        "is not a whole safetensors file",
    ),
    "overlapping tensors": (
        weights(header({"a": LIES["a"], "b": LIES["a"]}, body=bytes(16))),
        "is not a whole safetensors file",
    ),
    "other tensors": (
        weights(header(LIES, body=bytes(16))),
        "rank of at least 1 and at most 2|does not fit the base",
    ),
    "a tensor of nan": (
        tensors(lambda held: next(iter(held.values())).fill_(float("nan"))),
        "holds values that are not finite",
    ),
    "a tensor of infinity": (
        tensors(lambda held: next(iter(held.values()))[0].fill_(float("inf"))),
        "holds values that are not finite",
    ),
    "a tensor of another shape": (
        tensors(lambda held: held.update({next(iter(held)): torch.zeros(3, 128)})),
        "does not fit the base",
    ),
    "a tensor too few": (tensors(lambda held: held.pop(next(iter(held)))), "does not fit the base"),
    "a tensor too many": (
        tensors(lambda held: held.update(bert=torch.zeros(2))),
        "does not fit the base",
    ),
    "another fingerprint": (
        manifest(lambda m: m["base"].update(fingerprint="0" * 64)),
        "is not the base of ",
    ),
    "another format": (manifest(lambda m: m.update(format=99)), "has the format 99, expected 1"),
    "no format": (manifest(lambda m: m.pop("format")), "has the format None, expected 1"),
    "a manifest of megabytes": (
        lambda f: (f / MANIFEST).write_text(" " * (17 * 1024 * 1024)),
        "bytes, expected at most",
    ),
    "a manifest without an end": (
        lambda f: (f / MANIFEST).write_text("[" * 200_000),
        r"peftcls\.json is damaged \(RecursionError",
    ),
    "a manifest of numbers": (
        lambda f: (f / MANIFEST).write_text("5"),
        r"peftcls\.json is damaged \(TypeError",
    ),
    "files that are a list": (
        manifest(lambda m: m.update(files=[["a", "b"]])),
        r"peftcls\.json is damaged \(TypeError",
    ),
    "a base without a name": (
        manifest(lambda m: m["base"].update(name=None)),
        r"is damaged|cannot",
    ),
    "a seed that is text": (
        manifest(lambda m: m["base"].update(random_seed="x")),
        r"base random_seed='x' is of another kind",
    ),
    "heads that are numbers": (
        manifest(lambda m: m["base"].update(heads=[1])),
        r"base heads=\[1\] is of another kind",
    ),
    "a lineage of nothing": (
        manifest(lambda m: m.update(lineage=[{"a": 5}])),
        r"lineage \[\{'a': 5\}\] is of another kind",
    ),
    "versions that are a number": (
        manifest(lambda m: m.update(versions=5)),
        r"versions is of another kind",
    ),
    "a tokenizer whose length is a text": (
        lambda f: (change_json(f / "tokenizer_config.json", model_max_length="x"), reseal(f)),
        "cannot load the tokenizer of .*: ValueError",
    ),
    "a tokenizer that cannot pad": (
        lambda f: (change_json(f / "tokenizer_config.json", pad_token=None), reseal(f)),
        "the tokenizer of .* has neither a padding token",
    ),
    "a link in a folder within": (
        lambda f: (
            (f / "more").mkdir(),
            (f / "more" / "x.jinja").symlink_to("/etc/passwd"),
            reseal(f),
        ),
        r"more/x\.jinja in .* is a link out of the folder",
    ),
    "a lineage that is a number": (
        manifest(lambda m: m.update(lineage=5)),
        r"lineage 5 is of another kind",
    ),
    "a task whose name is a list": (
        manifest(lambda m: m["task"].update(name=[1])),
        r"task \[1\] is of another kind",
    ),
    "a task of another version": (
        manifest(lambda m: m["task"].update(evil=1)),
        r"a task that is not valid: Classification has no \['evil'\]",
    ),
    "a task with a length of text": (
        manifest(lambda m: m["task"].update(max_length="12")),
        r"a task that is not valid: max_length='12'",
    ),
    "decisions that are a number": (
        manifest(lambda m: m["task"].update(decisions=5)),
        "describes a task that is not valid",
    ),
    "a base from the web": (
        manifest(lambda m: m["base"].update(name="http://evil.example/base")),
        "cannot be loaded without its base: there is no folder",
    ),
    "a base from a hub": (
        manifest(lambda m: m["base"].update(name="evil/base")),
        "cannot be loaded without its base: ",
    ),
    "a base above": (
        manifest(lambda m: m["base"].update(name="../../nowhere")),
        "cannot be loaded without its base: there is no folder",
    ),
    "a base that is a system folder": (
        manifest(lambda m: m["base"].update(name="/etc")),
        "without its base: /etc has no config",
    ),
    "a pattern that takes forever": (
        settings(target_modules="(a+)+$"),
        rf"target_modules=.*, {NEVER_WRITTEN}",
    ),
    "a pattern of ranks": (
        settings(rank_pattern={"(a+)+$": 10**9}),
        rf"rank_pattern=.*, {NEVER_WRITTEN}",
    ),
    "a pattern of exceptions": (
        settings(exclude_modules="(a+)+$"),
        rf"exclude_modules=.*, {NEVER_WRITTEN}",
    ),
    "the whole model as a head": (
        settings(modules_to_save=["bert"]),
        rf"modules_to_save=.*, {NEVER_WRITTEN}",
    ),
    "layers that are doubled": (
        settings(layer_replication=[[0, 2], [0, 2]]),
        rf"layer_replication=.*, {NEVER_WRITTEN}",
    ),
    "a module to import": (
        settings(megatron_config={"a": 1}, megatron_core="os"),
        rf"megatron_co.*, {NEVER_WRITTEN}",
    ),
    "a library to import": (
        settings(auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}),
        rf"auto_mapping=.*, {NEVER_WRITTEN}",
    ),
    "settings of the moment": (
        settings(runtime_config={"ephemeral_gpu_offload": True}),
        rf"runtime_config=.*, {NEVER_WRITTEN}",
    ),
    "another start": (
        settings(init_lora_weights="eva", eva_config={"rho": 2.0}),
        rf"=.*, {NEVER_WRITTEN}",
    ),
    "a rank of billions": (
        settings(r=10**9),
        "has r=1000000000, expected a rank of at least 1 and at most 128",
    ),
    "a rank of zero": (settings(r=0), "has r=0, expected a rank of at least 1"),
    "an alpha of text": (settings(lora_alpha="16"), rf"lora_alpha=\"16\", {NEVER_WRITTEN}"),
    "no targets": (
        settings(target_modules=[]),
        "cannot load the adapter in .*: NoMatchingPeftModuleError",
    ),
    "a bias of nothing": (settings(bias=None), rf"bias=null, {NEVER_WRITTEN}"),
    "a list for settings": (settings(arrow_config=[]), rf"arrow_config=\[\], {NEVER_WRITTEN}"),
    "an unknown setting": (settings(novelty="x"), rf"novelty=\"x\", {NEVER_WRITTEN}"),
    "another kind of adapter": (
        settings(peft_type="PROMPT_TUNING", tokenizer_name_or_path="evil/x"),
        "has the peft_type 'PROMPT_TUNING', expected one",
    ),
    "no kind of adapter": (settings(peft_type=None), "has the peft_type None, expected one"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_or_damaged_adapter_is_refused_in_one_sentence(home, name):
    spoil, sentence = ADAPTERS[name]
    reseal(home / "adapter", lambda m: m["base"].update(name=str(home / "base")))
    spoil(home / "adapter")
    with pytest.raises(ValueError, match=sentence) as told:
        peftcls.load_predictor(home / "adapter")
    assert "\n" not in str(told.value)
    assert "adapter" in str(told.value), "the folder is named"


def jinja(folder: Path) -> None:
    run = (
        "{{ cycler.__init__.__globals__.os.system('touch "
        + str(folder.parents[1] / "canary")
        + "') }}"
    )
    (folder / "chat_template.jinja").write_text(run)
    change_json(folder / "tokenizer_config.json", chat_template=run)


IGNORED: dict[str, Change] = {
    "nothing": lambda f: None,
    "pickled weights beside the good ones": lambda f: [
        (f / n).write_bytes(bomb(f)) for n in ("adapter_model.bin", "optimizer.pt")
    ],
    "code": lambda f: [
        code(f, n)
        for n in (
            "modeling_evil.py",
            "__init__.py",
            "setup.py",
            "conftest.py",
            "tokenization_evil.py",
        )
    ],
    "another base for PEFT": settings(base_model_name_or_path="evil/base", revision="main"),
    "a base for PEFT on the web": settings(base_model_name_or_path="http://evil.example/x"),
    "code for the tokenizer": lambda f: (
        code(f),
        change_json(f / "tokenizer_config.json", auto_map={"AutoModel": "modeling_evil.Evil"}),
    ),
    "a vocabulary elsewhere": lambda f: change_json(
        f / "tokenizer_config.json", vocab_file="/etc/passwd", tokenizer_file="/etc/passwd"
    ),
    "a chat template that runs": jinja,
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_an_adapter_does_not_need_is_never_used(saved, home, name):
    IGNORED[name](home / "adapter")
    reseal(home / "adapter", lambda m: m["base"].update(name=str(home / "base")))
    answers = peftcls.load_predictor(home / "adapter").predict(["the patient recovered"])
    assert answers == peftcls.load_predictor(saved / "adapter").predict(["the patient recovered"])


@pytest.mark.parametrize(
    "template",
    [
        "{0.__class__}{input}: ",
        "{input.__class__.__mro__}{input}: ",
        "{{ 7 * 7 }}{% x %}{input}: ",
        "%(x)s${}{input}: ",
        "{input!r:>9}{input}: ",
    ],
)
def test_a_template_is_filled_in_and_never_run(llama, template):
    task = peftcls.Instruction(
        template=template, input="text", output="label", labels=("no", "yes"), max_length=256
    )
    tokenizer = peftcls.load_base(llama, task)[1]
    feature = task.encode({"text": "{text} {0.__class__} {{ 1 }}"}, tokenizer, with_target=False)
    assert tokenizer.decode(feature["input_ids"]).startswith(
        template.rstrip().replace("{input}", "{text} {0.__class__} {{ 1 }}")
    )


def test_a_part_that_is_saved_over_an_adapter_leaves_nothing_of_it(home):
    model, tokenizer = peftcls.load_base(home / "base", TASK)
    model = peftcls.train_only(model, TASK, "head")
    save_adapter(home / "adapter", model, TASK, tokenizer)
    assert not (home / "adapter" / "adapter_model.safetensors").exists()
    found = peftcls.load_predictor(home / "adapter")
    assert found.predict(["a drug"]) == peftcls.Predictor(model, TASK, tokenizer).predict(
        ["a drug"]
    )


def test_a_stray_file_of_another_name_is_left_where_it_is(home):
    (home / "adapter" / "config.json").write_text("mine")
    model, tokenizer = peftcls.load_base(home / "base", TASK)
    save_adapter(home / "adapter", peftcls.attach_lora(model, TASK, rank=2), TASK, tokenizer)
    assert (home / "adapter" / "config.json").read_text() == "mine"


# Bases


def sharded(names: Callable[[str], str]) -> Change:
    def changed(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        shutil.move(folder / "model.safetensors", folder / "part.safetensors")
        shutil.copy(folder / "part.safetensors", folder.parent / "outside.safetensors")
        index = {"metadata": {}, "weight_map": {name: names(name) for name in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return changed


def config(**fields: Any) -> Change:
    return lambda folder: change_json(folder / "config.json", **fields)


def base_tensors(change: Callable[[dict], Any]) -> Change:
    def changed(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def base_weights(write: Callable[[Path], Any]) -> Change:
    return lambda folder: write(folder / "model.safetensors")


BASES: dict[str, tuple[Change, str]] = {
    "pickled weights alone": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            (f / "pytorch_model.bin").write_bytes(bomb(f)),
        ),
        "has no .*safetensors file; other weight files can run code",
    ),
    "pickled weights by name": (
        lambda f: ((f / "x.bin").write_bytes(bomb(f)), config(transformers_weights="x.bin")(f)),
        "asks for the weights 'x.bin', expected a safetensors file",
    ),
    "weights elsewhere by name": (
        config(transformers_weights="../outside.safetensors"),
        "asks for the weights '../outside.safetensors'",
    ),
    "shards above": (
        sharded(lambda _: "../outside.safetensors"),
        r"names the file '\.\./outside\.safetensors', which is not",
    ),
    "shards at an absolute path": (
        sharded(lambda _: "/tmp/outside.safetensors"),
        "names the file '/tmp/outside.safetensors', which",
    ),
    "shards that are not there": (
        sharded(lambda _: "gone.safetensors"),
        r"names the file 'gone\.safetensors', which is not in the folder",
    ),
    "an index that is none": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"),
        r"index\.json in .* is damaged \(TypeError",
    ),
    "a link for weights": (
        lambda f: linked_base(f, "model.safetensors"),
        r"model\.safetensors in .* is a link out of the folder",
    ),
    "a link for the tokenizer": (
        lambda f: linked_base(f, "tokenizer.json"),
        r"tokenizer\.json in .* is a link out of the folder",
    ),
    "a tokenizer file elsewhere": (
        lambda f: change_json(
            f / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.json"]
        ),
        r"names the file '\.\./tokenizer\.json', which is not in the folder",
    ),
    "an adapter in it": (
        lambda f: (f / "adapter_config.json").write_text(
            '{"base_model_name_or_path": "evil/base", "peft_type": "LORA"}'
        ),
        r"holds an adapter \(adapter_config\.json\)",
    ),
    "attention from a hub": (
        config(attn_implementation="evil/kernel"),
        "asks for the attention 'evil/kernel' from a hub, which is code",
    ),
    "a model that is code": (
        lambda f: (
            code(f),
            config(
                model_type="evil",
                auto_map={"AutoConfig": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil"},
            )(f),
        ),
        "cannot load the base model .*: ValueError",
    ),
    "a header of exabytes": (
        base_weights(header(LIES, size=2**63)),
        "cannot load the base model .*: SafetensorError",
    ),
    "a shape that lies": (
        base_weights(header({"a": {**LIES["a"], "shape": [10**6, 10**6]}}, body=bytes(16))),
        "cannot load the base model .*: SafetensorError",
    ),
    "a tensor of nan": (
        base_tensors(lambda held: held["embeddings.word_embeddings.weight"][3].fill_(float("nan"))),
        "the tensor .*word_embeddings.weight holds values that are not finite",
    ),
    "a tensor of another shape": (
        base_tensors(
            lambda held: held.update({"embeddings.word_embeddings.weight": torch.zeros(9, 128)})
        ),
        "has another shape in its safetensors than by its config.json",
    ),
    "a size of text": (config(hidden_size="large"), "cannot load the base model "),
    "a size of zero": (config(num_attention_heads=0), "cannot load the base model "),
    "a size below zero": (config(vocab_size=-5), "cannot load the base model "),
    "a config without an end": (
        lambda f: (f / "config.json").write_text("[" * 200_000),
        "cannot load the base model ",
    ),
    "a config that is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "cannot load the base model ",
    ),
    "a tokenizer that is none": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "cannot load the tokenizer of ",
    ),
}


BASES |= {
    f"sizes that memory is too small for: {name}": (
        config(**{name: size}),
        f"has {name}={size}, but no side of its tensors is longer than",
    )
    for name, size in {
        "vocab_size": 10**12,
        "hidden_size": 10**9,
        "num_hidden_layers": 10**9,
        "num_labels": 10**9,
    }.items()
}
BASES |= {
    f"weights beside its own that are none: {text[:40]}": (
        lambda f, text=text: header(text.encode())(f / "zz.safetensors"),
        r"zz\.safetensors in .* is not a whole safetensors file",
    )
    for text in (
        "[1]",
        "5",
        '{"a": 5}',
        '{"a": {}}',
        "[" * 50_000,
        *(
            json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": place}})
            for place in ([-5, 4], [9, 4], ["x", 4], [0, 10**30])
        ),
    )
}


def linked_base(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def chat_template_elsewhere(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder.parent / "secret").write_text("SECRET")
    (folder / "additional_chat_templates" / "evil.jinja").symlink_to(folder.parent / "secret")


BASES["a chat template elsewhere"] = (
    chat_template_elsewhere,
    r"additional_chat_templates/evil\.jinja in .* is a link out of the folder",
)


@pytest.mark.parametrize("name", BASES)
def test_a_hostile_or_damaged_base_is_refused_in_one_sentence(home, name):
    spoil, sentence = BASES[name]
    spoil(home / "base")
    with pytest.raises(ValueError, match=sentence) as told:
        peftcls.load_base(home / "base", TASK)
    assert str(home / "base") in str(told.value), "the folder is named"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: [
            (f / n).write_bytes(bomb(f))
            for n in ("pytorch_model.bin", "rust_model.ot", "scheduler.pt")
        ],
        lambda f: (
            code(f),
            config(auto_map={"AutoModelForSequenceClassification": "modeling_evil.Evil"})(f),
        ),
        lambda f: code(f, "__init__.py"),
        jinja,
        sharded(lambda _: "part.safetensors"),
        lambda f: change_json(f / "tokenizer_config.json", vocab_file="/etc/passwd"),
        lambda f: (
            code(f),
            change_json(
                f / "tokenizer_config.json",
                tokenizer_class="Evil",
                auto_map={"AutoTokenizer": ["modeling_evil.Evil", "modeling_evil.Evil"]},
            ),
        ),
        config(attn_implementation="flash_attention_2"),
        config(attn_implementation="flash_attention_3"),
        config(return_dict=False),
    ],
    ids=[
        "pickled",
        "auto_map",
        "package",
        "jinja",
        "shards",
        "vocabulary",
        "tokenizer",
        "flash",
        "other flash",
        "tuples",
    ],
)
def test_what_a_base_does_not_need_is_never_used(saved, home, spoil):
    spoil(home / "base")
    model, _ = peftcls.load_base(home / "base", TASK)
    assert all(
        torch.equal(p, q)
        for p, q in zip(
            model.parameters(), peftcls.load_base(saved / "base", TASK)[0].parameters(), strict=True
        )
    )


def test_a_base_with_several_chat_templates_is_saved_without_a_folder_of_them(home, llama):
    shutil.copytree(llama, home / "llama")
    (home / "llama" / "additional_chat_templates").mkdir()
    (home / "llama" / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (home / "llama" / "chat_template.jinja").write_text("{{ messages }}")
    task = peftcls.Instruction(
        template="{input}: ",
        input="text",
        output="label",
        labels=("no", "yes"),
        max_length=64,
        max_new_tokens=8,
    )
    model, tokenizer = peftcls.load_base(home / "llama", task)
    assert set(tokenizer.chat_template) == {"default", "tools"}
    model = peftcls.attach_lora(model, task, rank=2)
    save_adapter(home / "new", model, task, tokenizer)
    assert not [path for path in (home / "new").iterdir() if path.is_dir()]
    found = peftcls.load_predictor(home / "new").predict([{"text": "a drug"}])
    assert found == peftcls.Predictor(model, task, tokenizer).predict([{"text": "a drug"}])


SHOWN: dict[str, Change] = {
    "targets": settings(target_modules=5),
    "rank": settings(r={"a": 1}),
    "versions": manifest(lambda m: m.update(versions=5)),
    "settings": lambda f: ((f / "adapter_config.json").write_text("[]"), reseal(f)),
    "cut": lambda f: ((f / "adapter_config.json").write_text("{"), reseal(f)),
    "labels": manifest(lambda m: m["task"].update(labels=5)),
    "decisions": manifest(lambda m: m["task"].update(decisions=5)),
    "lineage": manifest(lambda m: m.update(lineage=[{"a": 5}])),
    "fingerprint": manifest(lambda m: m["base"].update(fingerprint=5)),
    "revision": manifest(lambda m: m["base"].pop("revision")),
    "weights": weights(header(b"[]")),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_cannot_be_shown_is_refused_in_one_sentence_too(home, name):
    SHOWN[name](home / "adapter")
    for show in (
        lambda: tell_folder(describe_folder(home / "adapter")),
        lambda: peftcls.write_card(home / "adapter"),
    ):
        with pytest.raises(ValueError, match="adapter") as told:
            show()
        assert "\n" not in str(told.value)


# Any content


@pytest.fixture(scope="module")
def fuzzed(saved, tmp_path_factory) -> Path:
    """Both folders once more, to be spoilt and put right again and again."""
    return Path(shutil.copytree(saved, tmp_path_factory.mktemp("fuzz") / "home"))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 10**6)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["../x", "LORA", "/etc"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def any_change(draw: Any, found: Any) -> Any:
    """A JSON value with one thing in it changed, left out, or added."""
    if isinstance(found, dict) and found and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(found)))
        return {**found, name: any_change(draw, found[name])}
    if isinstance(found, dict) and draw(st.booleans()):
        return {**found, draw(st.text(max_size=6)): draw(VALUES)}
    if isinstance(found, dict) and found:
        gone = draw(st.sampled_from(sorted(found)))
        return {name: value for name, value in found.items() if name != gone}
    return draw(VALUES)


def loads_or_says_why(load: Callable[[], Any], named: str) -> None:
    try:
        load()
    except ValueError as error:
        assert named in str(error), "the folder is named"
        assert "\n" not in str(error)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Unexpected keyword arguments"
)  # PEFT's, for a setting of another version that is switched off
@pytest.mark.parametrize("name", ["peftcls.json", "adapter_config.json", "tokenizer_config.json"])
@given(data=st.data())
@hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_adapter_with_any_setting_changed_is_loaded_or_refused_in_one_sentence(
    fuzzed, name, data
):
    folder, file = fuzzed / "adapter", fuzzed / "adapter" / name
    before = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        file.write_text(json.dumps(any_change(data.draw, json.loads(file.read_text()))))
        if name == MANIFEST and isinstance(changed := json.loads(file.read_text()), dict):
            file.write_text(json.dumps(seal(changed)))
        elif name != MANIFEST:
            reseal(folder)
        loads_or_says_why(
            lambda: peftcls.load_predictor(folder, base=fuzzed / "base").predict(["a drug"]),
            "adapter",
        )
        loads_or_says_why(lambda: tell_folder(describe_folder(folder)), "adapter")
        assert set(folder.iterdir()) == set(before)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@given(data=st.data())
@hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_base_with_any_setting_changed_is_loaded_or_refused_in_one_sentence(fuzzed, name, data):
    file = fuzzed / "base" / name
    before = file.read_bytes()
    try:
        file.write_text(json.dumps(any_change(data.draw, json.loads(before))))
        loads_or_says_why(lambda: peftcls.load_base(fuzzed / "base", TASK), "base")
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize(
    ("folder", "name"), [("adapter", "adapter_model.safetensors"), ("base", "model.safetensors")]
)
@given(place=st.integers(0, 3000), new=st.binary(max_size=6), cut=st.integers(0, 6))
@hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_weights_with_any_bytes_changed_are_loaded_or_refused_in_one_sentence(
    fuzzed, folder, name, place, new, cut
):
    file, manifest_file = fuzzed / folder / name, fuzzed / "adapter" / MANIFEST
    before, listed = file.read_bytes(), manifest_file.read_bytes()
    try:
        file.write_bytes(before[:place] + new + before[place + cut :])
        reseal(fuzzed / "adapter")
        loads_or_says_why(
            lambda: peftcls.load_predictor(fuzzed / "adapter", base=fuzzed / "base"), folder
        )
    finally:
        file.write_bytes(before)
        manifest_file.write_bytes(listed)


def test_a_snapshot_of_the_hubs_own_cache_with_links_to_its_blobs_is_read(saved, tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in (saved / "base").iterdir():
        shutil.copy(file, blobs / f"sum-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"sum-{file.name}")
    peftcls.load_base(snapshot, TASK)
    assert fingerprint_base(str(snapshot)) == fingerprint_base(str(saved / "base"))


def test_the_canary_would_sing(tmp_path, canary):
    pickle.loads(bomb(tmp_path / "a" / "b"))
    assert canary.read_text() == "run"
    canary.unlink()
