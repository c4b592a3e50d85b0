"""The README's commands: each is understood; those for own photos are run, in their order, on a small folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from infra import cli
from infra.base.config import load_recipe
from pipelines.world.config import WorldConfig
from pipelines.world.world import render_scene, scene_specs

README = Path(__file__).parents[1] / "README.md"
WORLD = WorldConfig(domains=("car",), image_size_px=64, companions=1, reserve_fraction=0.0)
INSTANCES = 14


def commands(heading: str = "") -> list[list[str]]:
    """The `oacir …` lines of the README's code blocks (of one section), as words without the program's name."""
    text = README.read_text()
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0] if heading else text
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("oacir ")]


def test_every_command_is_understood() -> None:
    """Verb, options and recipe: a field that was renamed fails here."""
    assert len(commands()) >= 6
    for words in commands():
        call = cli._parse(words)
        recipe_class, _ = cli._verb(call.verb).load()
        load_recipe(recipe_class, call.config, call.overrides)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Scenes of a small world laid out as a user's photos, with boxes."""
    folder = tmp_path / "photos"
    rows = ["image_path,x,y,w,h"]
    for index in range(INSTANCES):
        for spec in scene_specs(WORLD, "car", index):
            scene = render_scene(WORLD, spec)
            path = folder / spec.image_id
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(scene.jpeg)
            x1, y1, x2, y2 = scene.record["box"]
            rows.append(f"{spec.image_id},{x1},{y1},{x2 - x1},{y2 - y1}")
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.ray
def test_the_commands_for_own_photos_run_in_their_order(
    photos: Path,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    photo = sorted(photos.rglob("*.jpg"))[0]
    replaced = {"PHOTOS": str(photos), "PHOTO.jpg": str(photo), "40,32,180,210": "4,6,30,40"}
    run = commands("Your own photos")
    assert [words[0] for words in run] == ["build", "embed", "train", "evaluate", "report", "query"]
    for words in run:
        extra = ["--training.steps", "2"] if words[0] == "train" else []
        code = cli.main([replaced.get(word, word) for word in words] + extra)
        assert code == 0, (words, capsys.readouterr().err)
    for made in (
        "bench/manifest.json",
        "model/manifest.json",
        "scores/manifest.json",
        "report.html",
        "answer.png",
    ):
        assert (tmp_path / made).stat().st_size > 0
