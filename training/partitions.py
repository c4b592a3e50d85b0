"""What of the training state lies on this rank, said by the names of the parameters.

DeepSpeed lays the state out in its own way in every stage and for every number of workers. A checkpoint of ours holds
pieces of named parameters instead, so that any layout can be filled from any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from infra.base.errors import OacirError

WEIGHTS, COUNTER = "weights", "step"
"""Kind of the weights themselves; AdamW's count of steps, which is one number for all."""


class Piece(NamedTuple):
    """A run of numbers of one parameter in one of this rank's flat tensors.

    Attributes:
        flat: which of them.
        start: first number in it.
        name: of the parameter.
        offset: first number in the flattened parameter.
        length: numbers.
    """

    flat: int
    start: int
    name: str
    offset: int
    length: int


class Filled(NamedTuple):
    """What was read for one rank.

    Attributes:
        flats: kind → a tensor for each of the rank's flat ones, float32 on the CPU.
        counter: AdamW's, if it has taken a step.
    """

    flats: dict[str, list[Tensor]]
    counter: Tensor | None


@dataclass(frozen=True)
class Partitions:
    """This rank's float32 weights and optimizer state.

    Attributes:
        flats: the weights, one-dimensional; the model's own memory or a master copy of a part of it.
        pieces: what they hold; padding is in none.
        keys: under which AdamW keeps the state of each flat tensor.
        written: indices of the pieces that this rank has to write; the others are on other ranks, too.
        adam: the optimizer that keeps the state.
        publish: brings changed weights from the flat tensors into the model.
    """

    flats: list[Tensor]
    pieces: list[Piece]
    keys: list[Tensor]
    written: list[int]
    adam: Any
    publish: Callable[[], None]

    def state(self, more: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Everything that this rank has to write, "kind/offset/name" → a view of the numbers.

        Args:
            more: further kinds: a tensor for each of the flat ones.
        """
        tensors: dict[str, Tensor] = {}
        for index in self.written:
            piece = self.pieces[index]
            kept = self._of_adam(piece.flat)
            kinds = {WEIGHTS: self.flats[piece.flat]} | kept | {k: v[piece.flat] for k, v in more.items()}
            for kind, flat in kinds.items():
                numbers = flat.detach().view(-1)[piece.start : piece.start + piece.length]
                tensors[f"{kind}/{piece.offset}/{piece.name}"] = numbers
        counters = [self.adam.state[k][COUNTER] for k in self.keys if COUNTER in self.adam.state[k]]
        return tensors | ({COUNTER: torch.as_tensor(counters[0])} if counters else {})

    def read(self, parts: Iterable[Mapping[str, Tensor]], kinds: Sequence[str]) -> Filled:
        """What this rank goes on with, out of what ranks of any layout have written; nothing is changed yet.

        Args:
            parts: what `state` gave on each of them, the likeliest first; no more of them are read than needed.
            kinds: further ones that have to be there.

        Raises:
            OacirError: something is in none of the parts.
        """
        wanted: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            wanted.setdefault(piece.name, []).append(piece)
        total = sum(piece.length for piece in self.pieces)
        found: dict[str, int] = {}
        filled = Filled({}, None)
        for part in parts:
            filled = Filled(filled.flats, part.get(COUNTER, filled.counter))
            for kind, offset, name, numbers in _pieces(part):
                if kind not in filled.flats:
                    filled.flats[kind] = [torch.zeros(flat.numel()) for flat in self.flats]
                    found[kind] = 0
                for piece in wanted.get(name, ()):
                    found[kind] += _overlap(piece, offset, numbers, filled.flats[kind][piece.flat])
            if found and all(count == total for count in found.values()):
                break
        if any(found.get(kind) != total for kind in (WEIGHTS, *kinds, *found)):
            raise OacirError(
                f"the checkpoint does not hold all of this model ({found.get(WEIGHTS, 0):,} of {total:,} weights);"
                " delete its folder and run again"
            )
        return filled

    def restore(self, filled: Filled, more: Mapping[str, Sequence[Tensor]]) -> None:
        """Go on with what was read; `more` as for `state`, its tensors are filled, too."""
        flats = dict(filled.flats)
        for values, flat in zip(flats.pop(WEIGHTS), self.flats, strict=True):
            flat.data.copy_(values)
        for kind, own in more.items():
            for values, flat in zip(flats.pop(kind), own, strict=True):
                flat.copy_(values)
        for i, key in enumerate(self.keys):
            state = {kind: f[i].view(key.shape).to(key.device, key.dtype) for kind, f in flats.items()}
            if filled.counter is not None:
                state[COUNTER] = filled.counter.clone()  # AdamW keeps it on the CPU
            self.adam.state[key] = state
        self.publish()

    def moments(self, key: Tensor) -> list[Tensor]:
        """What AdamW keeps beside its count for one of the flat tensors."""
        return [value for kind, value in self.adam.state[key].items() if kind != COUNTER]

    def _of_adam(self, flat: int) -> dict[str, Tensor]:
        kept = self.adam.state[self.keys[flat]]
        return {kind: kept[kind] for kind in sorted(kept) if kind != COUNTER}


def partitions_of(deepspeed: Any, model: nn.Module, stage: int, rank: int, world_size: int) -> Partitions:
    """What DeepSpeed's engine keeps on this rank.

    Args:
        deepspeed: the engine of a float32 model, ZeRO of that stage.
        model: the one inside it, whose names count.
        stage: 0 to 3.
        rank, world_size: of this worker.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if stage == 0:
        return _replicated(deepspeed, model, rank, world_size)
    if stage == 3:
        return _of_parameters(deepspeed.optimizer, names, rank)
    return _of_groups(deepspeed.optimizer, names, rank)


def _replicated(deepspeed: Any, model: nn.Module, rank: int, world_size: int) -> Partitions:
    """Stage 0: everything on every rank; each writes its part of the parameters."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    pieces = [Piece(i, 0, name, 0, p.numel()) for i, (name, p) in enumerate(trained)]
    parameters: list[Tensor] = [p for _, p in trained]
    return Partitions(
        [p.data.view(-1) for p in parameters],
        pieces,
        parameters,
        list(range(rank, len(pieces), world_size)),
        deepspeed.optimizer,
        lambda: None,
    )


def _of_groups(zero: Any, names: Mapping[int, str], rank: int) -> Partitions:
    """Stages 1 and 2: each group of parameters is one long vector, cut into as many equal parts as there are ranks."""
    pieces: list[Piece] = []
    flats: list[Tensor] = zero.single_partition_of_fp32_groups
    for index, flat in enumerate(flats):
        low, size = rank * flat.numel(), flat.numel()
        members = zip(
            zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True
        )
        for parameter, at in members:
            first, last = max(at, low), min(at + parameter.numel(), low + size)
            if first < last:
                pieces.append(Piece(index, first - low, names[id(parameter)], first - at, last - first))
    return Partitions(flats, pieces, flats, list(range(len(pieces))), zero.optimizer, zero.update_lp_params)


def _of_parameters(zero: Any, names: Mapping[int, str], rank: int) -> Partitions:
    """Stage 3: every parameter is cut into equal parts, and a rank's parts of a group lie behind each other."""
    pieces: list[Piece] = []
    flats: list[Tensor] = zero.fp32_partitioned_groups_flat
    for index, group in enumerate(zero.fp16_groups):
        start = 0
        for parameter in group:
            size = parameter.partition_numel()
            offset = rank * size
            count = min(size, parameter.ds_numel - offset)
            if count > 0:
                pieces.append(Piece(index, start, names[id(parameter)], offset, count))
            start += size

    def publish() -> None:
        # small parameters stay whole on every rank: they are given up first, or they would stay as they were
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        for index in range(len(flats)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    return Partitions(flats, pieces, flats, list(range(len(pieces))), zero.optimizer, publish)


def _pieces(part: Mapping[str, Tensor]) -> Iterator[tuple[str, int, str, Tensor]]:
    for key, numbers in part.items():
        kind, _, rest = key.partition("/")
        offset, _, name = rest.partition("/")
        if name:
            yield kind, int(offset), name, numbers


def _overlap(piece: Piece, offset: int, numbers: Tensor, flat: Tensor) -> int:
    """Copy what a written run of numbers and a piece have in common; how many that were."""
    first = max(piece.offset, offset)
    last = min(piece.offset + piece.length, offset + numbers.numel())
    if first >= last:
        return 0
    at = piece.start + first - piece.offset
    flat[at : at + last - first] = numbers[first - offset : last - offset]
    return last - first
