"""The words and phrasings of the generated facts world: its whole language is on this page.

Names are made of two words each, from pools that share no word with each other or with the rest
of the language. All text is lower-case and closed: no world uses a word that is not here.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

WOMEN = (
    "ana cora ella gwen ida kira mara olga rosa tara vera yara alma clara flora greta iris lena"
).split()
MEN = (
    "ben dan finn hugo jonas leo nils paul sven umar wim zeno bruno david emil henry jakob marco"
).split()

# Kind of entity -> the pools of its first and second word.
NAMES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "person": (
        WOMEN + MEN,
        (
            "velk ost lund moss hart dahl berg kane reyes novak silva weber costa frost grant holt "
            "ivers jensen koch lang meyer noor pratt quinn rossi sato torres unger varga walsh "
            "yates zeller abbott brandt clarke duval"
        ).split(),
    ),
    "company": (
        (
            "amber cedar coral delta ember falcon garnet harbor ivory jasper keystone lotus maple "
            "nova onyx pearl quartz raven summit tiger umbra vista willow zenith anchor beacon "
            "copper dragon eagle granite heron indigo juniper lantern marble nimbus orchid"
        ).split(),
        (
            "mills labs group brothers partners industries traders makers guild union forge house "
            "studio crafts"
        ).split(),
    ),
    "city": (
        (
            "port fort lake mount saint glen royal upper lower castle cape bay ridge valley grand "
            "old"
        ).split(),
        (
            "velna harlow marrow dunmore ashby corvin elmira farrow galden hollis kestra linton "
            "morvan nolby orsted ridley selby tarvin ulster wexley arden belford calder denby "
            "eskdale fulton"
        ).split(),
    ),
    "country": (
        (
            "norvia talia velda morenia sarova kaldia pelora brenia drovia fenria galmora hestia "
            "ivoria jurania lorvia marenia nestria orlandia"
        ).split(),
        "isles coast republic kingdom federation".split(),
    ),
}

# Relation -> kind of its subject, kind of its object.
RELATIONS: dict[str, tuple[str, str]] = {
    "employer": ("person", "company"),
    "birth": ("person", "city"),
    "base": ("company", "city"),
    "country": ("city", "country"),
}

# How a passage states a fact: {a} is the subject, {x} the object.
STATED: dict[str, list[str]] = {
    "employer": ["{a} works for {x}.", "{a} has a job at {x}.", "{a} is employed by {x}."],
    "birth": ["{a} was born in {x}.", "the birthplace of {a} is {x}."],
    "base": ["{a} is based in {x}.", "the home city of {a} is {x}."],
    "country": ["{a} is in {x}.", "{a} is a city in {x}."],
}

# Sentences about a person that answer no question.
JOBS = "cook clerk driver nurse guard".split()
HOBBIES = "chess tennis football".split()
ASIDES = ["{she} is a {job}.", "{she} likes {hobby}."]

# Chain of relations -> its phrasings; {} is the entity that the question names.
QUESTIONS: dict[tuple[str, ...], list[str]] = {
    ("employer",): [
        "where does {} work?",
        "which company does {} work for?",
        "who is {} employed by?",
    ],
    ("birth",): [
        "where was {} born?",
        "which city was {} born in?",
        "what is the birthplace of {}?",
    ],
    ("base",): [
        "where is {} based?",
        "which city is {} based in?",
        "what is the home city of {}?",
    ],
    ("country",): [
        "which country is {} in?",
        "in which country is {}?",
        "what is the country of {}?",
    ],
    ("employer", "base"): [
        "where is the company that employs {} based?",
        "which city is the employer of {} based in?",
        "in which city is the company where {} works based?",
    ],
    ("birth", "country"): [
        "in which country was {} born?",
        "which country was {} born in?",
        "which country is the birthplace of {} in?",
    ],
    ("base", "country"): [
        "in which country is {} based?",
        "which country is {} based in?",
        "what is the home country of {}?",
    ],
    ("employer", "base", "country"): [
        "in which country is the company where {} works based?",
        "which country is the employer of {} based in?",
        "what is the home country of the company that employs {}?",
    ],
}

_OPPOSITES = [("hot", "cold"), ("day", "night"), ("big", "small"), ("up", "down")]
_COLORS = {"snow": "white", "grass": "green", "coal": "black", "blood": "red", "lemon": "yellow"}
_COUNTS = {
    ("legs", "spider"): "eight",
    ("legs", "dog"): "four",
    ("legs", "bird"): "two",
    ("days", "week"): "seven",
    ("months", "year"): "twelve",
}

# What everyone knows, and no passage says: (phrasings, answer).
COMMON: list[tuple[list[str], str]] = [
    *(
        ([f"what is the opposite of {a}?", f"which word is the opposite of {a}?"], b)
        for pair in _OPPOSITES
        for a, b in (pair, pair[::-1])
    ),
    *(
        ([f"what color is {thing}?", f"what is the color of {thing}?"], color)
        for thing, color in _COLORS.items()
    ),
    *(
        ([f"how many {part} does a {whole} have?", f"how many {part} are in a {whole}?"], count)
        if part != "legs"
        else ([f"how many {part} does a {whole} have?"], count)
        for (part, whole), count in _COUNTS.items()
    ),
]


def vocabulary() -> list[str]:
    """Texts that hold every word and punctuation mark any world can use.

    A word-level tokenizer trained on them (and on the prompts' own words) meets no unknown word,
    and is the same for every seed and size of world.
    """
    blank = {"a": "", "x": "", "she": "she he", "job": "", "hobby": ""}
    sentences = [sentence for forms in STATED.values() for sentence in forms]
    names = [" ".join([*first, *second]) for first, second in NAMES.values()]
    questions = [form.format("") for forms in QUESTIONS.values() for form in forms]
    common = [text for forms, answer in COMMON for text in (*forms, answer)]
    fill = string.Formatter().vformat
    return [
        *names,
        " ".join(JOBS + HOBBIES),
        *(fill(s, (), blank) for s in sentences + ASIDES),
        *questions,
        *common,
    ]
