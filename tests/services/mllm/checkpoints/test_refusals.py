"""Corrupt, truncated, mislabelled and hostile folders: refused by name and with the remedy; nothing of theirs
runs."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.mllm.checkpoints import CheckpointError, convert, prepare
from tests.services.mllm.checkpoints.published import change_json, rewrite_tensors, write_published

Break = Callable[[Path], object]

WEIGHTS = "model.safetensors"


class _Touch:
    """A pickle of this creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def _pickle(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(_Touch(folder.parent / "executed")))


def _config(**values: Any) -> Break:
    return lambda folder: change_json(folder / "config.json", lambda config: config.update(values))


def _tower(**values: Any) -> Break:
    return lambda folder: change_json(folder / "tower" / "config.json", lambda config: config.update(values))


def _tensors(change: Callable[[dict[str, Any]], object]) -> Break:
    return lambda folder: rewrite_tensors(folder / WEIGHTS, change)


def _header(change: Callable[[dict[str, Any]], object]) -> Break:
    def break_it(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return break_it


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Break:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def _text(name: str, text: str) -> Break:
    return lambda folder: (folder / name).write_text(text)


def _link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def _more_rows(folder: Path, rows: int) -> None:
    change_json(folder / "config.json", lambda config: config.update(vocab_size=rows))
    rewrite_tensors(
        folder / WEIGHTS, lambda t: t.update({"model.embed_tokens.weight": np.zeros((rows, 32), np.float16)})
    )


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _twice(data: bytes, name: str) -> bytes:
    """Name a tensor again at the header's end, with the bytes of all that follow it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].rstrip()
    again = b"," + json.dumps(name).encode() + b':{"dtype":"F16","shape":[32],"data_offsets":[0,64]}}'
    header = header[:-1] + again
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


NORM = "model.norm.weight"
CASES: dict[str, tuple[Break, str, str]] = {
    "something that serving does not know": (
        _text("serving.json", '{"opening_tag": "given"}'), "serving.json", "tells_changes"
    ),
    "a fact for serving that is none": (_text("serving.json", '{"tells_changes": 1}'), "serving.json", "tells_changes"),
    "python code": (_text("modeling_llmga.py", "import os; os.mkdir('executed')"), "modeling_llmga.py", "Delete"),
    "auto_map in the config": (_config(auto_map={"AutoModel": "x.Y"}), "config.json", "auto_map"),
    "auto_map in the tokenizer's config": (
        _text("tokenizer_config.json", '{"auto_map": {}}'), "tokenizer_config.json", "auto_map"
    ),
    "auto_map deep inside the config": (
        _config(rope_scaling=[{"x": {"auto_map": {"AutoConfig": "x.Y"}}}]), "config.json", "auto_map"
    ),
    "auto_map in the generation settings": (
        lambda f: change_json(f / "generation_config.json", lambda c: c.update(auto_map={"G": "x.Y"})),
        "generation_config.json",
        "auto_map",
    ),
    "a tokenizer with code of its own": (
        _text("tokenizer_config.json", '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}'),
        "tokenizer_config.json",
        "auto_map",
    ),
    "code in a folder": (
        lambda f: (f / "tower" / "own.PY").write_text("import os; os.mkdir('executed')"),
        os.path.join("tower", "own.PY"),
        "Delete",
    ),
    "a compiled module": (_text("own.so", "\x7fELF"), "own.so", "Delete"),
    "a link out of the folder": (
        lambda f: _link(f / "tokenizer.model", f.parent / "secret"), "tokenizer.model", "link out of the checkpoint"
    ),
    "weights that are a link out of the folder": (
        lambda f: _link(f / WEIGHTS, (f / WEIGHTS).rename(f.parent / "secret")),
        WEIGHTS,
        "link out of the checkpoint",
    ),
    "a folder that is a link out of the folder": (
        lambda f: _link(f / "etc", Path("/etc")), "etc", "link out of the checkpoint"
    ),
    "a link to nothing": (lambda f: _link(f / "more.json", f / "nothing"), "more.json", "link to nothing"),
    "a link to itself": (lambda f: _link(f / "more.json", f / "more.json"), "more.json", "link"),
    "a pipe for a config": (
        lambda f: _pipe(f / "config.json"), "config.json", "neither a file"
    ),
    "a config of another encoding": (
        _bytes("config.json", lambda data: data.decode().encode("utf-16")), "config.json", "Download"
    ),
    "a pointer where the weights should be": (
        _bytes(WEIGHTS, lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        WEIGHTS,
        "Download",
    ),
    "a header nested without end": (
        _bytes(WEIGHTS, lambda data: struct.pack("<Q", 200_000) + b"[" * 200_000 + data[8:]), WEIGHTS, "Download"
    ),
    "a header that names a tensor twice": (
        _bytes(WEIGHTS, lambda data: _twice(data, NORM)), WEIGHTS, "overlap"
    ),
    "a header with a shape that is no number": (
        _header(lambda header: header[NORM].update(shape=[True, 32.0])), WEIGHTS, NORM
    ),
    "a dtype that lies": (_header(lambda header: header[NORM].update(dtype="F32")), WEIGHTS, "as many bytes"),
    "a pickle of weights beside": (lambda f: _pickle(f, "pytorch_model.bin"), "pytorch_model.bin", "safetensors"),
    "a pickle in a folder": (
        lambda f: _pickle(f / "tower", "weights.pt"), os.path.join("tower", "weights.pt"), "safetensors"
    ),
    "pickles alone": (lambda f: (f / WEIGHTS).rename(f / "model.bin"), "model.bin", "safetensors"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json", "Download"),
    "a config that is no JSON": (_text("config.json", "{"), "config.json", "Download"),
    "a config that is a list": (_text("config.json", "[]"), "config.json", "Download"),
    "a config nested without end": (_text("config.json", "[" * 100_000), "config.json", "Download"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json", "Download"),
    "a tokenizer without tokens": (_text("tokenizer.json", '{"model": {"vocab": {}}}'), "tokenizer.json", "Download"),
    "a tokenizer of no known kind": (
        lambda f: change_json(f / "tokenizer.json", lambda t: t["model"].update(type="Own")),
        "tokenizer.json",
        "Download",
    ),
    "two ids for a token": (
        lambda f: change_json(f / "tokenizer.json", lambda t: t["added_tokens"][0].update(id=30)),
        "tokenizer.json",
        "contradict",
    ),
    "another model": (_config(model_type="bert"), "config.json", "llava_Qwen2"),
    "a text-only model": (_config(mm_vision_tower=None), "config.json", "multimodal"),
    "another projector": (_config(mm_projector_type="linear"), "config.json", "mlp2x_gelu"),
    "tokens around pictures": (_config(mm_use_im_start_end=True), "config.json", "mm_use_im_start_end"),
    "another layer of the tower": (_config(mm_vision_select_layer=-1), "config.json", "mm_vision_select_layer"),
    "an absurd size": (_config(num_hidden_layers=10**9), "config.json", "num_hidden_layers"),
    "a size that is a string": (_config(hidden_size="32"), "config.json", "hidden_size"),
    "a tower of another width": (_tower(hidden_size=32), "config.json", "mm_hidden_size"),
    "a tower without sense": (_tower(patch_size=0), os.path.join("tower", "config.json"), "patch_size"),
    "a truncated file": (_bytes(WEIGHTS, lambda data: data[:-100]), WEIGHTS, "Download"),
    "an empty file": (_bytes(WEIGHTS, lambda _: b""), WEIGHTS, "Download"),
    "bytes at the end": (_bytes(WEIGHTS, lambda data: data + b"x"), WEIGHTS, "Download"),
    "a text file under another name": (_bytes(WEIGHTS, lambda _: b"hello " * 99), WEIGHTS, "Download"),
    "a header longer than the file": (
        _bytes(WEIGHTS, lambda data: struct.pack("<Q", 2**63) + data[8:]), WEIGHTS, "Download"
    ),
    "a header that is no JSON": (_bytes(WEIGHTS, lambda data: data[:8] + b"!" + data[9:]), WEIGHTS, "Download"),
    "overlapping tensors": (
        _header(lambda header: header[NORM].update(data_offsets=[0, 64])), WEIGHTS, "Download"
    ),
    "negative offsets": (_header(lambda header: header[NORM].update(data_offsets=[-64, 0])), WEIGHTS, "Download"),
    "a shape that lies about its bytes": (_header(lambda header: header[NORM].update(shape=[10**9])), WEIGHTS, NORM),
    "an entry that is no object": (_header(lambda header: header.update({NORM: 7})), WEIGHTS, NORM),
    "an integer dtype": (_tensors(lambda t: t.update({NORM: np.zeros(32, np.int32)})), WEIGHTS, "F32"),
    "a long integer dtype": (_tensors(lambda t: t.update({NORM: np.zeros(32, np.int64)})), WEIGHTS, "F32"),
    "a missing tensor": (_tensors(lambda t: t.pop(NORM)), "qwen2", NORM),
    "a surplus tensor": (_tensors(lambda t: t.update({"model.extra": np.zeros(3, np.float16)})), WEIGHTS, "extra"),
    "a head beside a tied embedding": (
        _tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]})), WEIGHTS, "tied"
    ),
    "a shape that contradicts the config": (_config(intermediate_size=47), WEIGHTS, "mlp."),
    "a tower without its doubled prefix": (
        _tensors(
            lambda t: t.update(
                {
                    name.replace("vision_tower.vision_tower", "vision_tower"): t.pop(name)
                    for name in list(t)
                    if "vision_tower" in name
                }
            )
        ),
        WEIGHTS,
        "vision_tower",
    ),
    "fewer rows than tokens": (
        lambda f: change_json(f / "tokenizer.json", lambda t: t["model"]["vocab"].update(z=999)),
        "tokenizer.json",
        "999",
    ),
    "a tokenizer of another model": (
        lambda f: _more_rows(f, 9_000),
        "tokenizer.json",
        "9000 rows",
    ),
    "no stop token": (
        lambda f: change_json(f / "generation_config.json", lambda c: c.update(eos_token_id="</s>")),
        "generation_config.json",
        "eos_token_id",
    ),
}  # fmt: skip

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
SHARDED: dict[str, tuple[Break, str, str]] = {
    "a missing shard": (lambda f: (f / FIRST).unlink(), FIRST, "Download"),
    "an index that leads outside": (
        lambda f: change_json(f / INDEX, lambda i: i["weight_map"].update({NORM: "../../etc/x.safetensors"})),
        INDEX,
        "no file of this folder",
    ),
    "an index that names a pickle": (
        lambda f: change_json(f / INDEX, lambda i: i["weight_map"].update({NORM: "weights.pkl"})),
        INDEX,
        "no file of this folder",
    ),
    "an index without a map": (_text(INDEX, "{}"), INDEX, "weight_map"),
    "an index that names what is not there": (
        lambda f: change_json(f / INDEX, lambda i: i["weight_map"].update({"model.ghost": FIRST})), INDEX, "ghost"
    ),
    "a tensor that the index forgot": (
        lambda f: change_json(f / INDEX, lambda i: i["weight_map"].pop(NORM)), INDEX, NORM
    ),
    "a tensor in two files": (
        lambda f: rewrite_tensors(
            f / FIRST,
            lambda t: t.update(
                {
                    name: np.zeros(32, np.float16)
                    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight")
                    if name not in t
                }
            ),
        ),
        "model-00002-of-00002.safetensors",
        "another file",
    ),
}  # fmt: skip


def refused(source: Path, file: str, says: str) -> None:
    """Assert that the folder is refused by a message that names the file, and that nothing was written or
    run."""
    (source.parent / "secret").touch()
    before = set(source.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert(source, source.parent / "target")
    message = str(caught.value)
    assert caught.value.path.as_posix().endswith(file)
    assert file in message
    assert says in message
    assert caught.value.remedy
    assert not (source.parent / "target").exists()
    assert not (source.parent / "executed").exists()
    assert {path.name for path in set(source.parent.iterdir()) - before} <= {".digests.json"}


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_broken_or_hostile_folder_is_refused(case: str, tmp_path: Path) -> None:
    break_it, file, says = CASES[case]
    source = write_published(tmp_path / "qwen2")
    break_it(source)
    refused(source, file, says)


@pytest.mark.parametrize("case", sorted(SHARDED))
def test_a_broken_index_or_shard_is_refused(case: str, tmp_path: Path) -> None:
    break_it, file, says = SHARDED[case]
    source = write_published(tmp_path / "qwen2", shards=2)
    break_it(source)
    refused(source, file, says)


def test_what_the_trainer_left_behind_is_neither_read_nor_copied(tmp_path: Path) -> None:
    source = write_published(tmp_path / "qwen2")
    _pickle(source, "training_args.bin")
    facts = convert(source, tmp_path / "target")
    assert facts.ignored_files == ["training_args.bin"]
    assert not (tmp_path / "target" / "training_args.bin").exists()
    assert not (tmp_path / "executed").exists()


def test_chat_templates_are_not_rendered_and_not_taken_along(tmp_path: Path) -> None:
    bomb = "{% for a in range(10**9) %}{% for b in range(10**9) %}{{ a }}{% endfor %}{% endfor %}"
    source = write_published(tmp_path / "qwen2")
    (source / "chat_template.jinja").write_text(bomb)
    settings = {"chat_template": [{"name": "default", "template": bomb}], "tokenizer_class": "Qwen2Tokenizer"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "processor_config.json").write_text(json.dumps({"chat_template": bomb, "processor_class": "Own"}))
    convert(source, tmp_path / "target")
    texts = [path.read_bytes() for path in (tmp_path / "target").iterdir()]
    assert texts
    assert not [text for text in texts if b"range(10**9)" in text or b"Own" in text]
    assert not (tmp_path / "target" / "chat_template.jinja").exists()


def test_settings_that_mean_nothing_to_the_family_are_named_and_not_taken_along(tmp_path: Path) -> None:
    source = write_published(tmp_path / "qwen2")
    hostile = {
        "_attn_implementation": "somebody/kernel",
        "quantization_config": {"quant_method": "own"},
        "vision_config": {"model_type": "own"},
    }
    change_json(source / "config.json", lambda config: config.update(hostile))
    facts = convert(source, tmp_path / "target")
    assert facts.ignored_settings == sorted(hostile)
    text = (tmp_path / "target" / "config.json").read_text()
    assert not [word for word in ("somebody", '"own"', "quantization_config") if word in text]


def test_links_within_the_hub_s_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--binxia--llmga-x"
    source = write_published(repository / "snapshots" / "0123", "qwen2")
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(source.glob("*.*"))):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(Path("../../blobs") / str(number))
    assert convert(source, tmp_path / "target").family == "qwen2"


@pytest.mark.parametrize("model", ["no-such-folder", "/no/such/folder", "a/b/c", "../no-such-folder", "owner/"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        prepare(model, tmp_path / "cache")


def test_a_hub_id_that_cannot_be_fetched_is_refused_without_the_library_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError, match="could not be fetched"):
        prepare("nobody/llmga-nothing", tmp_path / "cache")
