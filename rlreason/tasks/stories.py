"""The stories of the task ``word_problems``: what is told, what is given, and the steps to the answer.

A telling names people as {name}, {they}, {They}, {other}, what is counted as {things}, and given numbers by their
slots: small letters are amounts (2 to max_number), capitals are counts (2 to 9). A step is ``left sign right = name``;
what it names, later steps may use. The last one is the answer.
"""

from dataclasses import dataclass

__all__ = ["NAMES", "STORIES", "THINGS", "Story"]


@dataclass(frozen=True, slots=True)
class Story:
    """``slots``: one letter each. ``heldout``: told in held-out problems alone."""

    name: str
    slots: str
    steps: tuple[str, ...]
    tellings: tuple[str, ...]
    heldout: bool = False


NAMES = (
    ("Mia", "she"),
    ("Ben", "he"),
    ("Lena", "she"),
    ("Omar", "he"),
    ("Ruth", "she"),
    ("Ivan", "he"),
    ("Sara", "she"),
    ("Paul", "he"),
    ("Nora", "she"),
    ("Hugo", "he"),
    ("Ada", "she"),
    ("Leo", "he"),
)
THINGS = ("apples", "marbles", "stickers", "books", "coins", "pencils", "shells", "cards", "stamps", "buttons")

STORIES = (
    # One step.
    Story(
        "gets_more",
        "ab",
        ("a + b = c",),
        (
            "{name} has {a} {things}. {other} gives {name} {b} more. How many {things} does {name} have now?",
            "{name} had {a} {things} and then found {b} more. How many {things} does {name} have in all?",
        ),
    ),
    Story(
        "gives_away",
        "ab",
        ("a - b = c",),
        (
            "{name} has {a} {things} and gives {b} of them to {other}. How many {things} does {name} have left?",
            "There were {a} {things} on the table. {name} took {b} of them. How many {things} are still there?",
        ),
    ),
    Story(
        "boxes",
        "Ab",
        ("A * b = c",),
        (
            "{name} has {A} boxes with {b} {things} in each box. How many {things} does {name} have?",
            "A shop sells bags of {b} {things}. {name} buys {A} bags. How many {things} does {they} buy?",
        ),
    ),
    Story(
        "shares",
        "aB",
        ("a / B = c",),
        (
            "{name} shares {a} {things} equally among {B} friends. How many {things} does each friend get?",
            "{a} {things} are put into {B} jars, the same number in each. How many {things} are in one jar?",
        ),
    ),
    Story(
        "more_than",
        "ab",
        ("a + b = c",),
        (
            "{name} has {a} {things}. {other} has {b} more {things} than {name}. How many {things} does {other} have?",
            "{other} collected {b} {things} more than {name}, who collected {a}. How many did {other} collect?",
        ),
    ),
    Story(
        "difference",
        "ab",
        ("a - b = c",),
        (
            "{name} has {a} {things} and {other} has {b}. How many more {things} does {name} have than {other}?",
            "{other} has {b} {things} and wants to have {a}. How many {things} are missing?",
        ),
    ),
    Story(
        "days",
        "aB",
        ("a * B = c",),
        (
            "{name} reads {a} pages every day. How many pages does {they} read in {B} days?",
            "{name} runs {a} minutes each day. How many minutes does {they} run in {B} days?",
        ),
    ),
    # Two steps.
    Story(
        "gives_and_buys",
        "abc",
        ("a - b = d", "d + c = e"),
        (
            "{name} has {a} {things}. {They} gives {b} of them to {other} and buys {c} more. "
            "How many {things} does {name} have now?",
            "{name} had {a} {things}, lost {b} and then found {c}. How many {things} does {they} have in the end?",
        ),
    ),
    Story(
        "boxes_and_loose",
        "Abc",
        ("A * b = d", "d + c = e"),
        (
            "{name} has {A} boxes of {b} {things} and {c} loose {things}. How many {things} does {they} have in all?",
            "There are {A} rows with {b} {things} in each, and {c} more on the floor. How many {things} are there?",
        ),
    ),
    Story(
        "boxes_less",
        "Abc",
        ("A * b = d", "d - c = e"),
        (
            "{name} buys {A} bags with {b} {things} each and gives {c} {things} to {other}. "
            "How many {things} are left?",
            "{name} fills {A} jars with {b} {things} each. Then {c} {things} break. How many are whole?",
        ),
    ),
    Story(
        "shares_rest",
        "abC",
        ("a - b = d", "d / C = e"),
        (
            "{name} has {a} {things}. {They} keeps {b} and shares the rest equally among {C} friends. "
            "How many {things} does each friend get?",
            "Of {a} {things}, {b} are broken. The others are packed into {C} boxes, the same number in each. "
            "How many {things} are in a box?",
        ),
    ),
    Story(
        "two_kinds",
        "AbCd",
        ("A * b = e", "C * d = f", "e + f = g"),
        (
            "{name} buys {A} packs of {b} {things} and {C} packs of {d} {things}. How many {things} does {they} buy?",
            "A shelf has {A} rows of {b} {things} and {C} rows of {d} {things}. How many {things} are on it?",
        ),
    ),
    Story(
        "together",
        "ab",
        ("a + b = c", "a + c = d"),
        (
            "{name} has {a} {things}. {other} has {b} more than {name}. How many {things} do they have together?",
            "{name} found {a} {things} and {other} found {b} more than that. How many did the two find in all?",
        ),
    ),
    Story(
        "price_change",
        "aBc",
        ("a * B = d", "d + c = e"),
        (
            "One ticket costs {a} dollars. {name} buys {B} tickets and a drink for {c} dollars. "
            "How many dollars does {they} pay?",
            "{name} pays {a} dollars for each of {B} toys and {c} dollars for a bag. What does {they} pay in dollars?",
        ),
    ),
    Story(
        "money_left",
        "aBc",
        ("B * c = d", "a - d = e"),
        (
            "{name} has {a} dollars and buys {B} pens for {c} dollars each. How many dollars are left?",
            "From {a} dollars {name} spends {c} dollars on each of {B} days. How many dollars does {they} still have?",
        ),
    ),
    Story(
        "weeks",
        "AbC",
        ("A * b = d", "d * C = e"),
        (
            "{name} trains {A} times a week, {b} minutes each time. How many minutes does {they} train in {C} weeks?",
            "Each of {A} cows gives {b} liters of milk a day. How many liters do they give in {C} days?",
        ),
    ),
    # Three steps.
    Story(
        "sell_then_share",
        "AbcD",
        ("A * b = e", "e - c = f", "f / D = g"),
        (
            "{name} bakes {A} trays of {b} cookies, eats {c} of them and divides the rest equally among {D} friends. "
            "How many cookies does each friend get?",
            "{A} baskets hold {b} eggs each. {c} eggs break, and the others go into {D} equal boxes. "
            "How many eggs are in each box?",
        ),
    ),
    Story(
        "three_people",
        "abC",
        ("a + b = d", "d * C = e", "e + a = f"),
        (
            "{name} has {a} {things}. {other} has {b} more than {name}. A shop has {C} times as many as {other}. "
            "How many {things} do {name} and the shop have together?",
        ),
    ),
    Story(
        "bus",
        "abcd",
        ("a + b = e", "e - c = f", "f + d = g"),
        (
            "A bus has {a} passengers. At the first stop {b} get on, at the second {c} get off, at the third {d} get "
            "on. How many passengers are on the bus now?",
            "{name} has {a} {things}, wins {b}, loses {c} and then wins {d}. How many {things} does {they} have now?",
        ),
    ),
    # Held out.
    Story(
        "water_tank",
        "ab",
        ("a - b = c",),
        (
            "A tank holds {a} liters of water. After {name} waters the garden, {b} liters are left. "
            "How many liters did {they} use?",
        ),
        heldout=True,
    ),
    Story(
        "tables",
        "Ab",
        ("A * b = c",),
        ("A hall has {A} tables, and {b} guests sit at each table. How many guests are in the hall?",),
        heldout=True,
    ),
    Story(
        "ribbon",
        "aB",
        ("a / B = c",),
        ("{name} cuts a ribbon of {a} meters into {B} pieces of the same length. How many meters long is each piece?",),
        heldout=True,
    ),
    Story(
        "train_cars",
        "Abc",
        ("A * b = d", "d - c = e"),
        ("A train has {A} cars with {b} seats each. {c} seats are taken. How many seats are free?",),
        heldout=True,
    ),
    Story(
        "savings",
        "aBc",
        ("B * c = d", "a + d = e"),
        (
            "{name} has saved {a} dollars and saves {c} dollars more every week. How many dollars does {they} have "
            "after {B} weeks?",
        ),
        heldout=True,
    ),
    Story(
        "library",
        "abc",
        ("a + b = d", "d - c = e"),
        (
            "A library had {a} novels. It bought {b} new ones and lent {c} to readers. How many novels are in the "
            "library now?",
        ),
        heldout=True,
    ),
    Story(
        "teams",
        "abC",
        ("a + b = d", "d / C = e"),
        ("{a} girls and {b} boys form {C} teams of the same size. How many children are in each team?",),
        heldout=True,
    ),
    Story(
        "farm",
        "AbCd",
        ("A * b = e", "C * d = f", "e - f = g"),
        ("A farmer picks {A} crates of {b} pears and sells {C} bags of {d} pears. How many pears are left?",),
        heldout=True,
    ),
)
