"""What the graders of the sets put in front of a program: imports that solutions rely on."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Final


def _star_imports(names: str) -> str:
    return "".join(f"from {name} import *\n" for name in names.split())


def _imports(names: str) -> str:
    return "".join(f"import {name}\n" for name in names.split())


#: LiveCodeBench: every public name of these modules, in this order, and a deeper recursion.
LIVECODEBENCH: Final = (
    _star_imports(
        "string re datetime collections heapq bisect copy math random statistics itertools functools operator"
    )
    + _star_imports("io sys json builtins typing")
    + _imports("string re datetime collections heapq bisect copy math random statistics itertools functools operator")
    + _imports("io sys json")
    + "sys.setrecursionlimit(50000)\n"
)

#: APPS and TACO, but for numpy, which only solutions that import it themselves are given; and the deeper recursion.
APPS: Final = _imports("sys time itertools collections math fractions random heapq") + (
    "from itertools import accumulate, product, permutations, combinations\n"
    "from collections import Counter, OrderedDict, deque, defaultdict, ChainMap\n"
    "from functools import lru_cache\n"
    "from math import sqrt, sin, cos, tan, ceil, fabs, floor, gcd, exp, log, log2\n"
    "from typing import List, Tuple\n"
    "from heapq import *\n"
    "sys.setrecursionlimit(50000)\n"
)


def header_of(prompt: str, entry_point: str) -> str | None:
    """What stands in ``prompt``, the start of a program, beside the function ``entry_point`` that is to be completed.

    Its imports and helpers belong to the problem. None where there is nothing else.
    Example: ``header_of("import math\\n\\ndef area(r):\\n    '''Of a circle.'''\\n", "area") == "import math"``.
    """
    try:
        statements: Iterable[ast.stmt] = ast.parse(prompt).body
    except (SyntaxError, ValueError):  # cut off in the middle of the function: the imports above it can still be read
        lines = [line for line in prompt.splitlines() if line.startswith(("import ", "from "))]
        return "\n".join(lines) or None
    kept = [one for one in statements if not (isinstance(one, ast.FunctionDef) and one.name == entry_point)]
    return "\n".join(map(ast.unparse, kept)) or None
