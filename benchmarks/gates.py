"""How well the gates tell good texts from bad ones, on the procedural world, where it is known which text has which
fault.

python -m benchmarks.gates [--instances 60]

Good texts are the oracle's over all ordered pairs of an instance's scenes. Into copies of them one fault each is planted,
in words of this file; some of them the gates' tables do not have. A good text that `text_repeats` takes is a copy where
the world says so: an earlier text of the same place that states the same change.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from benchmarks.machine import write_result
from pipelines.annotators.base import Rejection
from pipelines.annotators.gates import Rules, fault, fingerprint, kind_names
from pipelines.world.config import DOMAINS, WorldConfig
from pipelines.world.shapes import CATEGORIES
from pipelines.world.texts import FACETS, MAX_CHANGES
from pipelines.world.world import modification_text, scene_specs

MAX_WORDS = {"car": 25}
MAY_NAME = ("car",)
KINDS = {
    "fashion": ("garment", "clothes", "piece of clothing", "outfit", "attire", "costume"),
    "product": ("product", "products", "item", "merchandise", "goods", "commodity"),
    "landmark": ("building", "buildings", "tower", "structure", "edifice", "skyscraper"),
}
"""How people name the world's categories; some of it is in no table of the gates."""
# ruff: noqa: E501, ARG001, ARG005 - lists of sentences read better in full lines; every planter takes the same

PICTURES = (
    "as in the first image", "unlike the second picture", "compared with the reference photo", "not as in image 1",
    "brighter than in the original", "unlike the other photograph", "as the target image shows", "in contrast to photo A",
    "like in the previous shot", "as seen in picture two", "different from the earlier one", "versus the starting image",
    "than in the picture you gave me", "as the left-hand picture has it", "other than in the photograph above",
)  # fmt: skip
LONG = "and while you are at it please also take care that nothing else changes in any way at all compared to what was there"
FOREIGN = (
    "Zeige es {0} im Wald bei Nacht, auf der linken Seite und weiter weg von der Kamera.",
    "Ich möchte genau dasselbe noch einmal sehen, diesmal am Strand und im Regen, {0}.",
    "Je voudrais le revoir {0}, cette fois sur la plage et sous la pluie, plus près.",
    "Montrez le même objet dans une forêt la nuit, à gauche de la photo, {0}.",
    "Quiero verlo otra vez {0}, ahora en la playa y bajo la lluvia, más cerca.",
    "Muestra el mismo objeto en un bosque por la noche, a la izquierda, {0}.",
    "Vorrei rivederlo {0}, questa volta sulla spiaggia e sotto la pioggia, più vicino.",
    "Quero vê-lo de novo {0}, desta vez na praia e com chuva, mais perto da câmera.",
    "Ik wil het nog een keer zien {0}, nu op het strand en in de regen, dichterbij.",
    "Pokaż to jeszcze raz na plaży w deszczu, bliżej aparatu, {0}.",
    "Visa den igen på stranden i regnet, närmare kameran, {0}.",
    "Покажи его ещё раз на пляже под дождём, ближе к камере, {0}.",
    "もう一度、雨の砂浜で見せてください {0}",
    "再给我看一次，这次是在雨中的海滩上 {0}",
)
"""Polish and Swedish are languages that the gate has no words of."""


class Text(NamedTuple):
    """What the oracle wrote, and what it states: place, facet and value."""

    text: str
    stated: tuple[str, ...]


def good_texts(instances: int) -> dict[str, list[Text]]:
    """Domain → texts of the oracle, none twice letter by letter."""
    world = WorldConfig(
        instances_per_domain=instances, near_duplicate_fraction=0.0, class_centric_fraction=0.0
    )
    found: dict[str, list[Text]] = {}
    for domain in DOMAINS:
        seen: set[str] = set()
        texts = found.setdefault(domain, [])
        for index in range(instances):
            contexts = [spec.context.record() for spec in scene_specs(world, domain, index)]
            for a, b in itertools.permutations(range(len(contexts)), 2):
                key = f"{domain}/{index}/{a}/{b}"
                text = modification_text(domain, contexts[a], contexts[b], key, (a + b) % 2 == 1)
                if text and text not in seen:
                    seen.add(text)
                    texts.append(Text(text, (contexts[b]["place"], *_stated(contexts[a], contexts[b], key))))
    return found


def _stated(reference: Mapping[str, Any], target: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The facet that the oracle draws first, and its value."""
    differing = [f for f in FACETS if reference[f] != target[f]]
    drawn = random.Random(f"{key}/text").sample(differing, min(MAX_CHANGES, len(differing)))
    return tuple(word for facet in drawn for word in (facet, str(target[facet])))


Plant = Callable[[str, str, random.Random], str]


def _kind(text: str, domain: str, rng: random.Random) -> str:
    name = rng.choice(KINDS[domain])
    return re.sub(r"\b(it|one)\b", f"the {name}" if rng.random() < 0.5 else name, text, count=1)


def _copy(text: str, domain: str, rng: random.Random) -> str:
    """Said again: other case, punctuation and order of the clauses."""
    clauses = [c.strip() for c in text.rstrip(".").split(",")]
    rng.shuffle(clauses)
    return "; ".join(clauses).capitalize() + rng.choice(("", ".", "!"))


PLANTS: dict[str, Plant] = {
    "text_too_long": lambda text, domain, rng: f"{text.rstrip('.')} {LONG}.",
    "text_wrong_language": lambda text, domain, rng: rng.choice(FOREIGN).format(rng.choice(("A", "B", "C"))),
    "text_names_image": lambda text, domain, rng: f"{text.rstrip('.')}, {rng.choice(PICTURES)}.",
    "text_names_category": _kind,
    "text_repeats": _copy,
}


def report(instances: int, seed: int = 0) -> dict[str, Any]:
    """Gate → how many it took of those that have its fault, and of those that have none."""
    rng = random.Random(seed)
    texts = good_texts(instances)
    taken: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    first: dict[bytes, tuple[str, ...]] = {}
    copies = clean = 0
    for domain, good in texts.items():
        for text, stated in good:
            why = _judge(text, domain, first)
            if why is not None and why.reason == "text_repeats" and first[fingerprint(text)] == stated:
                copies += 1
                continue
            clean += 1
            if why is None:
                first[fingerprint(text)] = stated
            else:
                taken[why.reason] += 1
                examples.setdefault(f"wrongly {why.reason}", []).append(f"{text} ({why.detail})")
    gates: dict[str, Any] = {}
    for reason, plant in PLANTS.items():
        caught, missed, planted, other = 0, [], 0, Counter[str]()
        for domain, good in texts.items():
            if reason == "text_names_category" and domain in MAY_NAME:
                continue
            for text, _ in rng.sample(good, min(500, len(good))):
                bad = plant(text, domain, rng)
                if bad == text:
                    continue
                planted += 1
                why = _judge(bad, domain, first if reason == "text_repeats" else ())
                if why is not None and why.reason == reason:
                    caught += 1
                elif why is None:
                    missed.append(bad)
                else:
                    other[why.reason] += 1
        wrong = taken[reason]
        gates[reason] = {
            "planted": planted,
            "caught": caught,
            "by_another_gate": dict(other),
            "passed": len(missed),
            "recall": round(caught / planted, 4),
            "good_texts_taken": wrong,
            "precision": round(caught / (caught + wrong), 4) if caught else None,
            "false_alarms_per_good_text": round(wrong / clean, 5),
        }
        examples[f"passed {reason}"] = missed[:5]
    told = {name: found[:5] for name, found in examples.items() if found}
    return {"instances": instances, "good_texts": clean, "copies": copies, "gates": gates, "examples": told}


def _judge(text: str, domain: str, others: Collection[bytes]) -> Rejection | None:
    kinds = frozenset[str]() if domain in MAY_NAME else kind_names(CATEGORIES[domain])
    return fault(text, Rules(MAX_WORDS.get(domain, 30), ("zq",), kinds), others)


def main() -> None:
    """Measure and write `results/gates.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=60)
    data = report(parser.parse_args().instances)
    path = write_result("gates", {"command": "python -m benchmarks.gates", **data})
    print(json.dumps(data["gates"], indent=1))
    print(json.dumps(data["examples"], indent=1, ensure_ascii=False))
    print(path)


if __name__ == "__main__":
    main()
