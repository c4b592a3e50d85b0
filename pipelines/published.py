"""What the OACIR paper says of the size of its benchmark (Tables 5 and 6), for statistics beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """A domain of the training set."""

    quadruples: int
    images: int
    instances: int


@dataclass(frozen=True)
class Evaluation:
    """A domain of the evaluation set."""

    quadruples: int
    gallery: int


TRAINING: dict[str, Training] = {
    "fashion": Training(12_874, 1_034, 80),
    "car": Training(12_728, 3_111, 199),
    "product": Training(75_616, 27_531, 1_419),
    "landmark": Training(25_948, 7_819, 949),
}
TRAINING_ALL = Training(127_166, 39_495, 2_647)
TRAINING_WORDS_MEAN, WORDS_MAX = 20.2, 30

EVALUATION: dict[str, Evaluation] = {
    "fashion": Evaluation(3_606, 5_077),
    "car": Evaluation(3_586, 4_717),
    "product": Evaluation(21_046, 11_801),
    "landmark": Evaluation(5_211, 5_000),
}
EVALUATION_ALL = Evaluation(33_449, 26_595)
EVALUATION_WORDS_MEAN = 19.4
DISTRACTORS, DISTRACTOR_INSTANCES = 11_134, 3_707
QUERY_INSTANCES = 1_238
