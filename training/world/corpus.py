"""The world as training data in the published formats (LLMGA.md §8), with its pictures.

| file below `jsons/` | items | pictures below `imgs/` |
|---|---|---|
| `llmga-data/T2I/train.json` | `ori_caption` (a bare request), `caption`, `image` | `T2I` |
| `llmga-data/{SG,inpainting}/train.json` | `image`, `caption`; masks are drawn in training | `world` |
| `llmga-data/Edit/train.json` | `image`, `instruction`, `new_caption` | `Edit` |
| `llava_world.json` | questions about a picture, and edits in the two turns of serving | `world`, `Edit` |
| `llava_pretrain.json` | one description per picture, for the projector | `world` |
| `text-data/{requests,talk}.json` | conversations without a picture | none |
| `text-data/lists.json` | requests that say everything of a picture, in any order | none |
| `text-data/changes.json` | a request and changes to its picture, in the words of serving | none |
| `sessions.json` | the same with more changes, half of them of a picture that is shown | `Edit` |

Every item is a pure function of the seed and its number. All languages are mixed, `chinese` of them Chinese; the
captions are always English.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from services.mllm.instructions import SOURCE_CAPTION, Writing, question
from training.world.captions import caption_of, change_sentences
from training.world.drawing import draw
from training.world.edits import TALKED_KINDS, Edit, edit_of, sample_edit
from training.world.objects import Scene
from training.world.questions import questions_of, sample_talk
from training.world.requests import Request, list_of, sample_request
from training.world.scenes import sample_scene
from training.world.splits import Split
from training.world.words import Language

Item = dict[str, Any]
Pictures = Literal["T2I", "world", "Edit"]
PICTURES: tuple[Pictures, ...] = ("T2I", "world", "Edit")
DESCRIBE = {
    "en": (
        "Describe this picture.",
        "What is in this image?",
        "Describe in rich detail what this picture shows.",
        "What do you see in this picture?",
    ),
    "zh": ("请描述这张图片。", "这张图片里有什么？", "请详细描述这张图片的内容。", "描述一下这张图片。"),
}
_FOLDER_OF = 1_000  # pictures in one folder
_STRIDE = 1 << 40  # between the seeds of two corpora


@dataclass(frozen=True)
class Corpus:
    """What a corpus consists of: equal ones have equal files."""

    count: int  # items of each file
    split: Split = "train"
    seed: int = 0
    chinese: float = 0.35  # share of requests, instructions and questions
    pictures: tuple[Pictures, ...] = PICTURES
    tells: bool = False  # answers to a change say what changes before they give the new caption

    def language(self, kind: str, index: int) -> Language:
        """Return the language of an item."""
        return "zh" if random.Random(f"{kind} {self.seed} {index}").random() < self.chinese else "en"

    def seed_of(self, index: int) -> int:
        """Return the world's seed of an item: no two corpora share one."""
        return self.seed * _STRIDE + index

    def scene(self, index: int) -> Scene:
        """Return the scene of a picture in `imgs/world`."""
        return sample_scene(self.seed_of(index), self.split)

    def edit(self, index: int) -> Edit:
        """Return the edit of a picture in `imgs/Edit`."""
        return sample_edit(self.seed_of(index), self.split, self.language("edit", index))

    def request(self, index: int) -> tuple[Scene, Request]:
        """Return a request, and the scene of its picture in `imgs/T2I`."""
        return sample_request(self.seed_of(index), self.split, self.language("request", index))

    def changed(self, before: Scene, after: Scene) -> str:
        """Return the answer to a change."""
        answer = generation(caption_of(after))
        return f"{change_sentences(before, after)} {answer}" if self.tells else answer

    def drawn(self, kind: Pictures, index: int) -> Scene:
        """Return the scene of a picture in `imgs`."""
        if kind == "T2I":
            return self.request(index)[0]
        return self.scene(index) if kind == "world" else self.edit(index).before


def write_corpus(corpus: Corpus, folder: Path) -> dict[str, int]:
    """Write a corpus to an empty or missing folder, pictures on all cores; return the number of items by file."""
    counts = {}
    for name, items in _FILES.items():
        path = folder / "jsons" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        counts[name] = _write_list(path, tqdm(items(corpus), total=corpus.count, desc=name, unit="items"))
    for kind in corpus.pictures:
        for start in range(0, corpus.count, _FOLDER_OF):
            (folder / "imgs" / picture_of(kind, start)).parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(_cores(), get_context("spawn")) as workers:
            done = workers.map(partial(_draw, corpus, folder, kind), range(corpus.count), chunksize=100)
            for _ in tqdm(done, total=corpus.count, desc=f"imgs/{kind}", unit="pictures"):
                pass
    meta = {"corpus": asdict(corpus), "items": counts, "format": "LLMGA, LLaVA"}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return counts


def _draw(corpus: Corpus, folder: Path, kind: Pictures, index: int) -> None:
    picture = Image.fromarray(draw(corpus.drawn(kind, index)))
    picture.save(folder / "imgs" / picture_of(kind, index), compress_level=1)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def picture_of(kind: Pictures, index: int) -> str:
    """Return the path of a picture below `imgs`."""
    return f"{kind}/{index // _FOLDER_OF:04d}/{index:07d}.png"


def _write_list(path: Path, items: Iterator[Item]) -> int:
    """Write a JSON list with one item per line, and return its length."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(("[\n" if count == 0 else ",\n") + json.dumps(item, ensure_ascii=False))
            count += 1
        file.write("\n]\n" if count else "[]\n")
    return count


def generation(caption: str) -> str:
    """Return the answer that asks for a picture (LLMGA.md §3)."""
    return f"<gen_image> {caption} </gen_image>"


def conversation(*turns: str) -> list[dict[str, str]]:
    """Return turns that alternate, the human's first."""
    return [{"from": "gpt" if index % 2 else "human", "value": turn} for index, turn in enumerate(turns)]


def _t2i(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        scene, request = corpus.request(index)
        yield {"ori_caption": request.words, "caption": caption_of(scene), "image": picture_of("T2I", index)}


def _captioned(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        yield {"image": picture_of("world", index), "caption": caption_of(corpus.scene(index))}


def _edits(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        edit = corpus.edit(index)
        yield {
            "image": picture_of("Edit", index),
            "instruction": edit.instruction,
            "new_caption": caption_of(edit.after),
        }


def _llava(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        rng = random.Random(f"llava {corpus.seed} {index}")
        if rng.random() < 0.4:
            edit = corpus.edit(index)
            before, after = generation(caption_of(edit.before)), corpus.changed(edit.before, edit.after)
            turns = [f"<image>\n{SOURCE_CAPTION}", before, edit.instruction, after]
            picture = picture_of("Edit", index)
        else:
            questions = questions_of(
                corpus.scene(index), corpus.seed_of(index), corpus.split, corpus.language("llava", index)
            )
            asked = questions[: rng.randint(1, 4)]
            turns = [turn for question in asked for turn in (question.text, question.answer)]
            turns[0] = f"<image>\n{turns[0]}"
            picture = picture_of("world", index)
        yield {"id": f"world-{index}", "image": picture, "conversations": conversation(*turns)}


def _pretrain(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        ways = DESCRIBE[corpus.language("pretrain", index)]
        turns = (f"<image>\n{ways[index % len(ways)]}", caption_of(corpus.scene(index)))
        yield {
            "id": f"pretrain-{index}",
            "image": picture_of("world", index),
            "conversations": conversation(*turns),
        }


def _requests(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        scene, request = corpus.request(index)
        turns = [request.text, generation(caption_of(scene))]
        rng = random.Random(f"requests {corpus.seed} {index}")
        if rng.random() < 0.1:  # a person talks first
            talk = sample_talk(corpus.seed_of(index), corpus.split, request.language)
            turns = [talk.text, talk.answer, *turns]
        yield {"id": f"request-{index}", "conversations": conversation(*turns)}


def _lists(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        scene = corpus.scene(index)
        words = list_of(scene, corpus.seed_of(index), corpus.split, corpus.language("list", index))
        yield {"id": f"list-{index}", "conversations": conversation(words, generation(caption_of(scene)))}


def _changes(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        rng = random.Random(f"changes {corpus.seed} {index}")
        scene, request = corpus.request(index)
        turns = [question(Writing.TEXT_TO_IMAGE, request.text), generation(caption_of(scene))]
        for number in range(rng.choice((1, 1, 1, 2, 2, 3))):
            edit = edit_of(scene, corpus.seed_of(index) * 8 + number, corpus.split, request.language, TALKED_KINDS)
            scene = edit.after
            turns += [
                question(Writing.TEXT_TO_IMAGE, edit.instruction, goes_on=True),
                corpus.changed(edit.before, scene),
            ]
        yield {"id": f"changes-{index}", "conversations": conversation(*turns)}


def _sessions(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        rng = random.Random(f"sessions {corpus.seed} {index}")
        shown = rng.random() < 0.5
        if shown:
            edit = corpus.edit(index)
            scene, language = edit.before, edit.language
            turns = [f"<image>\n{SOURCE_CAPTION}", generation(caption_of(scene))]
        else:
            scene, request = corpus.request(index)
            language = request.language
            turns = [question(Writing.TEXT_TO_IMAGE, request.text), generation(caption_of(scene))]
        for number in range(rng.choice((1, 2, 3, 4))):
            edit = edit_of(scene, corpus.seed_of(index) * 8 + number, corpus.split, language, TALKED_KINDS)
            scene = edit.after
            asked = edit.instruction if shown else question(Writing.TEXT_TO_IMAGE, edit.instruction, goes_on=True)
            turns += [asked, corpus.changed(edit.before, scene)]
        item = {"id": f"session-{index}", "conversations": conversation(*turns)}
        yield item | ({"image": picture_of("Edit", index)} if shown else {})


def _talk(corpus: Corpus) -> Iterator[Item]:
    for index in range(corpus.count):
        talk = sample_talk(corpus.seed_of(index), corpus.split, corpus.language("talk", index))
        yield {"id": f"talk-{index}", "conversations": conversation(talk.text, talk.answer)}


_FILES: dict[str, Callable[[Corpus], Iterator[Item]]] = {
    "llmga-data/T2I/train.json": _t2i,
    "llmga-data/SG/train.json": _captioned,
    "llmga-data/inpainting/train.json": _captioned,
    "llmga-data/Edit/train.json": _edits,
    "llava_world.json": _llava,
    "llava_pretrain.json": _pretrain,
    "text-data/requests.json": _requests,
    "text-data/lists.json": _lists,
    "text-data/changes.json": _changes,
    "text-data/talk.json": _talk,
    "sessions.json": _sessions,
}
