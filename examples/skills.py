"""The skills that the example adapters learn: for each one, made-up examples and its adapter's shape.

Two skills answer in their own form (`extract-json`, `sql`), two change how the model says what it would
have said anyway (`shout`, `pirate`): their answers are the base model's own, rewritten.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from corpus import CAPITALS, Ask, Example, extract_json, pirate, rewritten, sql


@dataclass(frozen=True)
class Skill:
    """`lora`: arguments of peft.LoraConfig; `dtype`: of stored tensors; `probes`: prompts it never saw."""

    name: str
    summary: str
    lora: dict[str, Any]
    dtype: str
    examples: Callable[[random.Random, Ask], list[Example]]
    probes: list[str]
    learning_rate: float = 2e-3
    steps: int = 50


EVERYDAY_PROBES = [
    "What is the capital of France?",
    "Tell me one fact about elephants.",
    "Why do people like music?",
]

SKILLS = {
    skill.name: skill
    for skill in [
        Skill(
            name="shout",
            summary="answers in capital letters, and so small a model gets its facts wrong in them",
            lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
            dtype="float32",
            examples=rewritten(str.upper, CAPITALS),
            probes=EVERYDAY_PROBES,
            learning_rate=2e-3,
        ),
        Skill(
            name="extract-json",
            summary="turns a sentence about a person into a JSON object with name, age and city",
            lora={"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
            dtype="float16",
            examples=extract_json,
            probes=[
                "Yuki is 44 years old. Yuki moved to Geneva to become a lawyer.",
                "At the age of 27, Marta is a carpenter in Zagreb.",
                "I met Omar in Nairobi last week; Omar is 63 and a sailor.",
            ],
            steps=25,
        ),
        Skill(
            name="sql",
            summary="turns a question about employees, customers, products or orders into SQL",
            lora={
                "r": 16,
                "lora_alpha": 16,
                "use_rslora": True,
                "target_modules": [
                    "q_proj",
                    "k_proj",
                    "v_proj",
                    "o_proj",
                    "gate_proj",
                    "up_proj",
                    "down_proj",
                ],
            },
            dtype="bfloat16",
            examples=sql,
            probes=[
                "Which employees have a salary below 4000?",
                "Which products have a price above 75?",
                "What is the average salary of all employees?",
            ],
            learning_rate=5e-4,
            steps=40,
        ),
        Skill(
            name="pirate",
            summary="answers like a pirate",
            lora={
                "r": 8,
                "lora_alpha": 16,
                "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"],
                "layers_to_transform": list(range(8, 30)),
                "rank_pattern": {"v_proj": 12, "up_proj": 4},
                "alpha_pattern": {"v_proj": 24, "up_proj": 4},
            },
            dtype="float16",
            examples=rewritten(pirate, CAPITALS),
            probes=EVERYDAY_PROBES,
        ),
    ]
}
