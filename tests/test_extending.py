"""docs/extending.md: each of its files is run, and does what the page says of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from photo_sources import picture, reasons, rows, write

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def example(heading: str, name: str = "", **given: Any) -> ModuleType:
    """The file of a section as a module of that name; `given` are names that it finds in the modules it extends."""
    text = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    module = ModuleType(name or heading.replace(" ", "_"))
    sys.modules[module.__name__] = module  # where dataclasses and pydantic look names up
    exec(compile(code, f"docs/extending.md ({heading})", "exec"), module.__dict__)
    return module


@pytest.fixture(autouse=True)
def no_example_stays() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("A_", "extended_")):
            del sys.modules[name]


def test_the_source(tmp_path: Path) -> None:
    found = example("A source")
    files: dict[str, bytes | str] = {
        f"{n}__{i}.jpg": picture(i) for i, n in enumerate(("cup", "cup", "teapot"))
    }
    write(str(tmp_path), files | {"holiday.jpg": picture(9), "cup__notes.txt": "none"})

    def source() -> Any:
        return found.NamedFiles(found.NamedFilesConfig(root=str(tmp_path)))

    listed = {row["image_id"]: row["instance_id"] for row in rows(source())}
    assert listed == {
        "things/cup__0.jpg": "things/cup",
        "things/cup__1.jpg": "things/cup",
        "things/teapot__2.jpg": "things/teapot",
    }
    assert reasons(source()) == {"holiday.jpg": "no_identity", "cup__notes.txt": "unsupported_format"}
    before = source().fingerprint()
    (tmp_path / "teapot__3.jpg").write_bytes(picture(3))
    assert source().fingerprint() != before


def test_the_annotator() -> None:
    from pipelines.annotators.base import PairToAnnotate, check_text

    def pair(before: float, after: float, box: list[float] | None) -> PairToAnnotate:
        sides = [{"box": box, "brightness": b} for b in (before, after)]
        return PairToAnnotate("p", "things", "train", "things/cup", "cup", *sides)

    box = [1.0, 2.0, 30.0, 40.0]
    asked = [pair(0.2, 0.5, box), pair(0.5, 0.2, box), pair(0.5, 0.52, box), pair(0.2, 0.5, None)]
    up, down, same, unboxed = example("An annotator").LightAnnotator().annotate(asked, seed=0)
    assert ("brighter" in up.text, "darker" in down.text, up.box) == (True, True, (1.0, 2.0, 30.0, 40.0))
    assert (same.reason, unboxed.reason) == ("no_difference", "no_box")
    assert check_text(up.text, max_words=25, banned=["cup"]) is None


def test_the_loss() -> None:
    from training.model.interfaces import LossContext, QueryOutput

    scores = torch.tensor([[0.9, 0.8, 0.1], [0.5, 0.2, 0.4]])
    query = QueryOutput(torch.zeros(2, 1), None, {})
    context = LossContext(
        query, torch.zeros(3, 1), torch.tensor([0, 2]), torch.tensor(1.0), lambda *_: scores
    )
    hinge = example("A loss").hinge
    # 0.2 − 0.9 + 0.8 = 0.1, 0.2 − 0.4 + 0.5 = 0.3
    assert hinge(context).item() == pytest.approx(0.2)
    left_out = torch.tensor([[False, False, False], [True, False, False]])
    # of the second query only 0.2 is wrong: 0.2 − 0.4 + 0.2 = 0
    assert hinge(context._replace(excluded=left_out)).item() == pytest.approx(0.05)


def test_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is built by its method's name, steps as any other, and a scale of one is AdaFocal."""
    from tests.training.model.conftest import small_config
    from training import losses
    from training.batches import Batch
    from training.model import auto, config
    from training.task import ContrastiveTask

    monkeypatch.setattr(losses, "hinge", example("A loss").hinge, raising=False)
    made = example("A model", "extended_model")
    monkeypatch.setitem(config.METHODS, "scaled", made.ScaledConfig)
    monkeypatch.setitem(auto.MODELS, "scaled", made.ScaledModel)
    model = auto.random_model(small_config(method="scaled", modulation="none"), 0, with_tower=False)
    plain = auto.random_model(small_config(modulation="none"), 0, with_tower=False)
    tokens = torch.randn(2, 4, 17, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.encode_target(tokens[0]), plain.encode_target(tokens[0]))

    words, which = torch.ones(4, 3, dtype=torch.long), torch.tensor([1, 0, 3, 2])
    batch = Batch(tokens[0], tokens[1], which, words, words, torch.zeros(4, 17), modulate=False, total=4)
    both, info_nce = (ContrastiveTask(m)(batch).objective for m in (model, plain))
    found = model.score(
        model.encode_query(tokens[0], words, words, None).embedding, model.encode_target(tokens[1])
    )
    right = found.gather(1, which[:, None]).squeeze(1)
    hardest = torch.stack([row[torch.arange(4) != own].max() for row, own in zip(found, which, strict=True)])
    torch.testing.assert_close(both - info_nce, 0.5 * (0.2 - right + hardest).clamp(min=0).mean())
    both.backward()
    assert model.scale.grad is not None
    assert model.scale.grad.abs().max() > 0


def test_the_metric() -> None:
    assert example("A metric").mean_reciprocal_rank([1, 2, 4]) == pytest.approx(100 * (1 + 0.5 + 0.25) / 3)


def test_every_section_is_run() -> None:
    assert len(re.findall("^## ", PAGE, re.MULTILINE)) == PAGE.count("```python") == 5
