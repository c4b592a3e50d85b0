"""The canary: two drawings, shown in both orders, before anything is paid for. Who does not see them writes no texts.

A wrong key in a request, a model without eyes or a server that drops images answers all the same, fluently: texts from
nothing. Only an answer that changes with the pictures, and is right both times, proves that they arrived, and in order.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw
from pydantic import SecretStr

from infra.base.errors import OacirError
from pipelines.annotators.base import Rejection, flat
from pipelines.annotators.chat.answers import Answer, CanaryForm, Shape, read_answer
from pipelines.annotators.chat.client import ChatClient, NoAnswer, Reply
from pipelines.annotators.chat.options import ChatOptions
from pipelines.annotators.chat.pictures import data_url
from pipelines.annotators.chat.prompts import Part, Picture, Question, canary_text, payload

SIDE_PX = 224
COLOURS = {
    "red": (214, 30, 36), "green": (30, 150, 60), "blue": (30, 70, 210), "yellow": (245, 205, 30),
    "black": (20, 20, 20),
}  # fmt: skip
SHAPES: dict[str, frozenset[str]] = {
    "circle": frozenset({"circle", "disc", "disk", "dot", "round"}),
    "square": frozenset({"square", "rectangle"}),
    "triangle": frozenset({"triangle"}),
}
"""Shape → words that mean it."""


@dataclass(frozen=True)
class Drawing:
    """One shape on white."""

    shape: str
    colour: str

    def image(self) -> Image.Image:
        """The picture, RGB."""
        image = Image.new("RGB", (SIDE_PX, SIDE_PX), (255, 255, 255))
        pen, fill = ImageDraw.Draw(image), COLOURS[self.colour]
        low, high = SIDE_PX // 5, SIDE_PX - SIDE_PX // 5
        if self.shape == "circle":
            pen.ellipse((low, low, high, high), fill=fill)
        elif self.shape == "square":
            pen.rectangle((low, low, high, high), fill=fill)
        else:
            pen.polygon([(low, high), (high, high), (SIDE_PX // 2, low)], fill=fill)
        return image

    def is_said(self, answer: Shape) -> bool:
        """Whether an answer means it."""
        return flat(answer.colour) == self.colour and flat(answer.shape) in SHAPES[self.shape]


def draw_two(rng: random.Random) -> tuple[Drawing, Drawing]:
    """Two drawings that differ in shape and colour."""
    shapes, colours = rng.sample(sorted(SHAPES), 2), rng.sample(sorted(COLOURS), 2)
    return Drawing(shapes[0], colours[0]), Drawing(shapes[1], colours[1])


def check_eyes(options: ChatOptions, key: SecretStr | None, rng: random.Random) -> list[Reply]:
    """Ask the server what two drawings show, in both orders.

    Returns:
        Its two replies.

    Raises:
        OacirError: it does not answer, does not see the pictures or not in their order, or does not count tokens
            although a budget needs them.
    """
    return asyncio.run(_ask(options, key, draw_two(rng)))


async def _ask(options: ChatOptions, key: SecretStr | None, drawings: tuple[Drawing, Drawing]) -> list[Reply]:
    urls = {str(n): data_url(drawing.image(), SIDE_PX) for n, drawing in enumerate(drawings)}
    replies = []
    async with ChatClient(options, key) as client:
        for order in ((0, 1), (1, 0)):
            parts: tuple[Part, ...] = (canary_text(), *(Picture("", str(n)) for n in order))
            question = Question((("user", parts),), "canary", 0, "")
            try:
                reply = await client.ask(payload(question, options, urls))
            except NoAnswer as error:
                raise OacirError(
                    f"{options.base_url}: {options.model} does not answer a request with two pictures ({error}); name a"
                    " vision-language model that takes several, or take out what the server does not know with"
                    " chat.parameters (NAME: null) and chat.answers_as"
                ) from error
            _judge(options, [drawings[n] for n in order], reply)
            replies.append(reply)
    return replies


def _judge(options: ChatOptions, shown: list[Drawing], reply: Reply) -> None:
    answer = Answer(**vars(reply), paid_by="")
    said = read_answer(answer, CanaryForm)
    drawn = " and ".join(f"a {d.colour} {d.shape}" for d in shown)
    if isinstance(said, Rejection) or not (shown[0].is_said(said.first) and shown[1].is_said(said.second)):
        found = said.detail if isinstance(said, Rejection) else repr(reply.content)
        raise OacirError(
            f"{options.base_url}: {options.model} does not see the pictures: shown {drawn} it answered {found[:300]};"
            " its texts would be made up, so nothing is asked; name a vision-language model that takes several images"
        )
    counts = (reply.prompt_tokens, reply.completion_tokens)
    if (options.most_tokens or options.most_money) and None in counts:
        raise OacirError(
            f"{options.base_url}: the server does not say how many tokens it took, so no budget can be kept; set"
            " chat.most_tokens and chat.most_money to null"
        )
