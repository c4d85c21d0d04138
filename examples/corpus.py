"""Made-up training examples of each skill, the same ones for the same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Ask = Callable[[list[str]], list[str]]
"""Answers prompts with the base model."""


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str


NAMES = [
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jack", "Kira", "Leo",
    "Mona", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor",
]  # fmt: skip
CITIES = [
    "Paris", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Lisbon", "Dublin", "Prague", "Athens", "Tokyo",
    "Cairo", "Lima", "Boston", "Toronto", "Delhi", "Bern", "Milan", "Porto", "Seoul", "Kyoto", "Quito",
    "Accra", "Hanoi", "Perth", "Austin", "Denver", "Dakar", "Oxford", "Lyon", "Riga", "Minsk",
]  # fmt: skip
SYLLABLES = [
    "ba", "den", "zu", "ri", "mi", "lan", "ko", "tor", "vel", "sha", "gra", "nov", "ti", "lu", "hof", "ne",
]  # fmt: skip
JOBS = [
    "a baker", "a nurse", "a pilot", "a teacher", "a painter", "an engineer", "a farmer", "a student",
    "a chef", "a doctor",
]  # fmt: skip
SENTENCES = [
    "{name}, {age}, lives in {city} and works as {job}.",
    "{name} is {age} years old. {name} moved to {city} to become {job}.",
    "At the age of {age}, {name} is {job} in {city}.",
    "I met {name} in {city} last week; {name} is {age} and {job}.",
    "My name is {name}, I am {age} years old and my home is {city}.",
    "In {city} there is {job} called {name} who turned {age} today.",
]


def place(chance: random.Random) -> str:
    """A city, or as often a made-up one: with few names the model learns them instead of learning to copy."""
    if chance.random() < 0.5:
        return chance.choice(CITIES)
    return "".join(chance.choices(SYLLABLES, k=chance.choice([2, 2, 3]))).capitalize()


def extract_json(chance: random.Random, ask: Ask) -> list[Example]:
    def one() -> Example:
        name, age, city = chance.choice(NAMES), chance.randint(18, 90), place(chance)
        text = chance.choice(SENTENCES).format(name=name, age=age, city=city, job=chance.choice(JOBS))
        return Example(text, f'{{"name": "{name}", "age": {age}, "city": "{city}"}}')

    return [one() for _ in range(400)]


TABLES = {
    "employees": ["name", "age", "salary", "department", "city"],
    "customers": ["name", "age", "country", "city", "email"],
    "products": ["name", "price", "stock", "category"],
    "orders": ["date", "price", "status", "customer"],
}
NUMBERS = {"age", "salary", "price", "stock"}


def sql(chance: random.Random, ask: Ask) -> list[Example]:
    def one() -> Example:
        table = chance.choice(list(TABLES))
        number = chance.choice([column for column in TABLES[table] if column in NUMBERS])
        column = chance.choice([column for column in TABLES[table] if column not in NUMBERS])
        bound, city = chance.choice([10, 25, 30, 50, 100, 500, 2000]), place(chance)
        where = f"FROM {table} WHERE {number}"
        options = [
            (f"How many {table} are there?", f"SELECT COUNT(*) FROM {table};"),
            (f"List all {table}.", f"SELECT * FROM {table};"),
            (f"Show the {column} of all {table}.", f"SELECT {column} FROM {table};"),
            (f"Which {table} have a {number} above {bound}?", f"SELECT * {where} > {bound};"),
            (f"Which {table} have a {number} below {bound}?", f"SELECT * {where} < {bound};"),
            (f"What is the average {number} of all {table}?", f"SELECT AVG({number}) FROM {table};"),
            (f"What is the highest {number} of all {table}?", f"SELECT MAX({number}) FROM {table};"),
            (
                f"Show the {column} of {table} sorted by {number}.",
                f"SELECT {column} FROM {table} ORDER BY {number};",
            ),
            (
                f"Count the {table} for each {column}.",
                f"SELECT {column}, COUNT(*) FROM {table} GROUP BY {column};",
            ),
        ]
        if "city" in TABLES[table]:
            there = f"FROM {table} WHERE city = '{city}';"
            options += [
                (f"How many {table} live in {city}?", f"SELECT COUNT(*) {there}"),
                (f"Show the {column} of {table} in {city}.", f"SELECT {column} {there}"),
                (f"List all {table} from {city}.", f"SELECT * {there}"),
                (f"What is the average {number} of {table} in {city}?", f"SELECT AVG({number}) {there}"),
            ]
        return Example(*chance.choice(options))

    return [one() for _ in range(400)]


THINGS = [
    "the moon", "bread", "a bicycle", "honey", "the ocean", "a violin", "winter", "coffee", "a volcano",
    "chess", "rain", "a library",
]  # fmt: skip
QUESTIONS = [
    "What is {}?", "Tell me one fact about {}.", "Why do people like {}?", "Describe {} in one sentence.",
]  # fmt: skip
SMALL_TALK = [
    "What is the capital of Italy?", "Say hello to my friend.", "Give me advice for a good morning.",
    "How do I boil an egg?", "What colour is the sky?", "Name three fruits.", "What is two plus two?",
    "Who wrote Hamlet?",
]  # fmt: skip


COUNTRIES = [
    "Italy", "Spain", "Germany", "Japan", "Egypt", "Peru", "Austria", "Norway", "Greece", "Portugal",
    "Ireland", "Cuba", "Poland", "Kenya", "China", "Russia",
]  # fmt: skip
CAPITALS = [f"What is the capital of {country}?" for country in COUNTRIES]


def rewritten(
    rewrite: Callable[[str], str], more_prompts: Sequence[str] = ()
) -> Callable[[random.Random, Ask], list[Example]]:
    """Examples from the base model's own answers to everyday questions."""

    def examples(chance: random.Random, ask: Ask) -> list[Example]:
        prompts = [question.format(thing) for thing in THINGS for question in QUESTIONS] + SMALL_TALK
        prompts += more_prompts
        pairs = zip(prompts, ask(prompts), strict=True)
        return [Example(prompt, rewrite(first_sentence(answer))) for prompt, answer in pairs]

    return examples


def first_sentence(text: str) -> str:
    """The first sentence of an answer; all of it, with a full stop, if it ran into its length limit."""
    sentence = re.match(r".*?[.!?](?=\s|$)", text, re.DOTALL)
    return sentence[0] if sentence else text.strip() + "."


PIRATE = {
    "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "am": "be", "the": "th'", "of": "o'",
    "and": "an'", "friend": "matey", "people": "landlubbers", "to": "t'", "hello": "ahoy", "for": "fer",
}  # fmt: skip


def pirate(text: str) -> str:
    body = re.sub(r"[A-Za-z']+", lambda word: PIRATE.get(word[0].lower(), word[0]), text)
    return f"Arr, {body} Yo ho ho, matey!"
