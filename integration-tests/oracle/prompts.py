"""The prompts of the golden file: chat and plain, short and long, unicode, digits and code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A prompt by name. `chat`: a user's turn to go through the chat template; otherwise text as it is."""

    name: str
    text: str
    chat: bool = True


STORY = """Once upon a time there was a small harbour town at the foot of a mountain. Every morning the
fishermen rowed out before sunrise, and every evening they came back with silver fish and long stories. The
baker, whose name was Marta, opened her shop at six and sold the first loaves while they were still warm. Her
neighbour Ivo repaired clocks; he had 37 of them on his wall, and no two showed the same time. On market days
people came from the villages in the valley with cheese, honey, wool and news. Nobody could remember a winter
as long as the one of 1908, when the snow covered the windows and the children walked to school over the
roofs. In that winter the lighthouse went dark. The keeper had fallen ill, and the oil was running low, and
somewhere out on the water there was a ship with forty people on board. Marta was the first to see that the
light was missing. She woke Ivo, and together they climbed the 212 steps of the tower, carrying everything
that would burn.
"""

PROMPTS = [
    Prompt("capital", "What is the capital of France?"),
    Prompt("person", "Yuki is 44 years old. Yuki moved to Geneva to become a lawyer."),
    Prompt("question", "Which products have a price above 75?"),
    Prompt("unicode", "Translate into English: «Où est la gare ?» 🚉 → 你好, привет!"),
    Prompt("plain", "The three primary colours are", chat=False),
    Prompt("code", "def fibonacci(n):\n    if n < 2:\n        return n\n    return", chat=False),
    Prompt("story", STORY, chat=False),
    Prompt("summary", f"Who climbed the tower, and why?\n\n{STORY}"),
]
