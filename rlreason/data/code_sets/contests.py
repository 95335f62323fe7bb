"""Sets of whole programs and of functions that are called: APPS, TACO, LiveCodeBench, CodeContests and their kin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from rlreason.data.code_sets import checkers, headers, packed
from rlreason.data.code_sets.cells import (
    BadRow,
    HubRow,
    decoded,
    mapping,
    megabytes,
    seconds,
    sequence,
    texts,
)
from rlreason.data.code_sets.shape import (
    CodeProblem,
    Setting,
    asked_for_function,
    asked_for_program,
    call_tests,
    either_tests,
    stdin_tests,
)

#: CodeContests: ``solutions.language`` of Python 3.
_PYTHON3: Final = 3


def apps(row: HubRow) -> CodeProblem:
    """codeparrot/apps. Its grader allows 4 seconds for a case."""
    return _input_output(row, Setting(prelude=headers.APPS, seconds=4.0), key=f"apps/{row.text('problem_id', 'id')}")


def taco(row: HubRow) -> CodeProblem:
    """BAAI/TACO: as APPS, with limits of its own."""
    setting = Setting(
        prelude=headers.APPS,
        seconds=seconds(row.optional("time_limit")),
        megabytes=megabytes(row.optional("memory_limit")),
    )
    return _input_output(row, setting, key="")


def _input_output(row: HubRow, setting: Setting, key: str) -> CodeProblem:
    question = row.text("question", "problem")
    tests = mapping(row.structure("input_output"), "input_output")
    starter = row.optional_text("starter_code")
    solutions = row.optional("solutions")
    found = decoded(solutions, "solutions") if solutions else []
    name = tests.get("fn_name")
    return CodeProblem(
        key=key,
        prompt=asked_for_function(question, starter, str(name)) if name else asked_for_program(question),
        tests=_named_tests(tests, setting),
        solution=next(iter(texts(found, "solutions")), ""),
        rest=row.rest(),
    )


def _named_tests(tests: Mapping[str, object], setting: Setting) -> dict[str, object]:
    """Of ``{"inputs": [...], "outputs": [...], "fn_name": ...}``: with a name calls, without one programs."""
    inputs = sequence(tests.get("inputs"), "inputs")
    outputs = sequence(tests.get("outputs"), "outputs")
    if len(inputs) != len(outputs):
        raise BadRow("its inputs and outputs are not as many")
    name = tests.get("fn_name")
    if not name:
        return stdin_tests([(_lines(one), _lines(other)) for one, other in zip(inputs, outputs, strict=True)], setting)
    arguments = [sequence(one, "inputs") for one in inputs]
    return _calls(str(name), arguments, outputs, setting)


def _lines(value: object) -> str:
    """A text, or a list of its lines; a number is written out."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return "\n".join(map(_lines, sequence(value, "an input or output")))


def _pairs(value: object, name: str) -> list[tuple[str, str]]:
    """Inputs and outputs: a list of objects that have both, or one object that has a list of each."""
    if isinstance(value, Mapping):
        inputs, outputs = (sequence(value.get(key) or [], name) for key in ("input", "output"))
        if len(inputs) != len(outputs):
            raise BadRow(f"{name!r} has not as many inputs as outputs")
        return [(_lines(one), _lines(other)) for one, other in zip(inputs, outputs, strict=True)]
    return [(_lines(case.get("input")), _lines(case.get("output"))) for case in _cases(value)]


def _calls(
    name: str, inputs: Sequence[Sequence[object]], outputs: Sequence[object], setting: Setting
) -> dict[str, object]:
    """Calls whose expected results may stand in a list of one, as APPS writes most of them and some it doesn't.

    Where every result is a list of one, both what it holds and the list itself are accepted, as by the set's grader. A
    dictionary whose keys are all numbers had numbers for keys before JSON, which has none.
    """
    wrapped = all(
        isinstance(output, Sequence) and not isinstance(output, str) and len(output) == 1 for output in outputs
    )
    numbered = any(_with_numbers(list(arguments)) != list(arguments) for arguments in inputs)
    if not wrapped and not numbered:
        return call_tests(name, list(zip(inputs, outputs, strict=True)), setting)
    accepted = [[output, *(output if wrapped and isinstance(output, Sequence) else [])] for output in outputs]
    cases = [
        (_arguments(arguments), [_with_numbers(one) for one in results])
        for arguments, results in zip(inputs, accepted, strict=True)
    ]
    return either_tests(name, cases, setting)


def _arguments(arguments: Sequence[object]) -> list[object]:
    return [_with_numbers(argument) for argument in arguments]


def _with_numbers(value: object) -> object:
    """``value`` with numbers for the keys of a dictionary that has nothing but numbers for keys."""
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if not isinstance(value, dict):
        return value
    whole = bool(value) and all(isinstance(key, str) and key.removeprefix("-").isdecimal() for key in value)
    return {int(key) if whole else key: _with_numbers(item) for key, item in value.items()}


def livecodebench(row: HubRow) -> CodeProblem:
    """livecodebench/code_generation and code_generation_lite: the public and the private test cases, 6 seconds each."""
    cases = [*_cases(row.structure("public_test_cases")), *_cases(_private(row.value("private_test_cases")))]
    metadata = mapping(decoded(row.optional("metadata") or "{}", "metadata"), "metadata")
    question, starter = row.text("question_content"), row.optional_text("starter_code")
    name = metadata.get("func_name")
    return CodeProblem(
        key=row.text("question_id"),
        prompt=asked_for_function(question, starter, str(name)) if name else asked_for_program(question),
        tests=_typed_tests(cases, name, Setting(prelude=headers.LIVECODEBENCH, seconds=6.0)),
        rest=row.rest(),
    )


def _private(value: object) -> object:
    """The private cases: JSON, or JSON that is packed."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return decoded(packed.unpacked(value), "private_test_cases")


def _cases(value: object) -> list[Mapping[str, object]]:
    return [mapping(case, "a test case") for case in sequence(value, "test cases")]


def _typed_tests(cases: Sequence[Mapping[str, object]], name: object, setting: Setting) -> dict[str, object]:
    """Of ``[{"input", "output", "testtype": "stdin" | "functional"}]``, whose calls have an argument on each line."""
    kinds = {str(case.get("testtype")) for case in cases}
    pairs = [(_lines(case.get("input")), _lines(case.get("output"))) for case in cases]
    if kinds == {"stdin"}:
        return stdin_tests(pairs, setting)
    if kinds != {"functional"}:
        raise BadRow(
            f"its test cases are of types {', '.join(sorted(kinds)) or 'unknown'}, not all stdin or functional"
        )
    if not isinstance(name, str):
        raise BadRow("its functions have no name: metadata has no 'func_name'")
    arguments = [[decoded(line, "a test case's input") for line in one.split("\n") if line.strip()] for one, _ in pairs]
    results = [decoded(other, "a test case's output") for _, other in pairs]
    return call_tests(name, list(zip(arguments, results, strict=True)), setting)


def code_contests(row: HubRow) -> CodeProblem:
    """deepmind/code_contests: public, private and generated tests; words, whatever the case and the white space."""
    if row.optional("input_file") or row.optional("output_file"):
        raise BadRow("its programs read or write files and not standard input and output")
    pairs: list[tuple[str, str]] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        pairs += _pairs(decoded(row.optional(name) or [], name), name)
    memory = row.optional("memory_limit_bytes")
    setting = Setting(
        seconds=seconds(row.optional("time_limit")),
        megabytes=megabytes(memory / 2**20 if isinstance(memory, int | float) else None),
    )
    checker = checkers.for_code_contests(output for _, output in pairs)
    return CodeProblem(
        key=row.text("name"),
        prompt=asked_for_program(row.text("description")),
        tests=stdin_tests(pairs, setting, lines=False, checker=checker),
        solution=_python_solution(row.optional("solutions")),
        rest=row.rest(),
    )


def _python_solution(solutions: object) -> str:
    found = decoded(solutions, "solutions") if solutions else {}
    table = mapping(found, "solutions")
    languages = sequence(table.get("language") or [], "solutions")
    programs = texts(table.get("solution") or [], "solutions")
    python = (
        program for language, program in zip(languages, programs, strict=False) if language in {_PYTHON3, "PYTHON3"}
    )
    return next(python, "")


def code_contests_plus(row: HubRow) -> CodeProblem:
    """ByteDance-Seed/Code-Contests-Plus, one of the configs 1x to 5x, with its checker where that can be told."""
    pairs = _pairs(row.structure("test_cases"), "test_cases")
    compared = checkers.comparison(row.optional_text("checker"))
    milliseconds = seconds(row.optional("time_limit"))
    memory = megabytes(row.optional("memory_limit"))
    submissions = sequence(decoded(row.optional("correct_submissions") or [], "correct_submissions"), "submissions")
    programs = [mapping(one, "correct_submissions") for one in submissions]
    python = (str(one.get("code")) for one in programs if one.get("language") in {"py3", "python3", "PYTHON3"})
    return CodeProblem(
        key=row.text("id"),
        prompt=asked_for_program(row.text("description")),
        tests=stdin_tests(
            pairs, Setting(seconds=_seconds(milliseconds), megabytes=memory), lines=False, checker=compared.checker
        ),
        solution=next(python, ""),
        rest=row.rest(),
    )


def _seconds(limit: float | None) -> float | None:
    """CodeContests+ writes milliseconds; nobody waits 100 seconds for a case."""
    return limit / 1000 if limit is not None and limit >= 100 else limit


def codeforces(row: HubRow) -> CodeProblem:
    """open-r1/codeforces: its official tests and its checkers, which are programs in Python."""
    if row.optional("interaction_format"):
        raise BadRow("it is interactive")
    if row.optional("input_mode") not in {None, "", "stdio"}:
        raise BadRow("its programs read or write files and not standard input and output")
    pairs = _pairs(row.structure("official_tests"), "official_tests")
    compared = checkers.comparison(row.optional_text("generated_checker"))
    parts = [row.text("description")]
    for name, title in (("input_format", "Input"), ("output_format", "Output")):
        text = row.optional_text(name)
        parts += [f"{title}\n\n{text}"] if text.strip() else []
    for given, wanted in _pairs(decoded(row.optional("examples") or [], "examples"), "examples"):
        parts.append(f"Example input\n\n{given}\n\nExample output\n\n{wanted}")
    note = row.optional_text("note")
    parts += [f"Note\n\n{note}"] if note.strip() else []
    setting = Setting(seconds=seconds(row.optional("time_limit")), megabytes=megabytes(row.optional("memory_limit")))
    return CodeProblem(
        key=row.text("id"),
        prompt=asked_for_program("\n\n".join(part.strip() for part in parts)),
        tests=stdin_tests(pairs, setting, lines=False, checker=compared.checker),
        rest=row.rest(),
    )


def verifiable_coding(row: HubRow) -> CodeProblem:
    """PrimeIntellect/verifiable-coding-problems, and open-r1/verifiable-coding-problems-python made of it."""
    info = mapping(row.structure("verification_info"), "verification_info")
    language = str(info.get("language") or "python").lower()
    if language not in {"python", "python3", "py"}:
        raise BadRow(f"its programs are in {language}")
    metadata = mapping(decoded(row.optional("metadata") or "{}", "metadata"), "metadata")
    setting = Setting(
        prelude=headers.APPS,
        seconds=seconds(metadata.get("time_limit")),
        megabytes=megabytes(metadata.get("memory_limit")),
    )
    cases = _cases(info.get("test_cases"))
    return CodeProblem(
        key=row.text("problem_id"),
        prompt=row.text("prompt", "problem_statement", "problem").strip(),
        tests=_kinds_of_tests(cases, setting),
        solution=_unfenced(row.optional_text("gold_standard_solution")),
        rest=row.rest(),
    )


def _kinds_of_tests(cases: Sequence[Mapping[str, object]], setting: Setting) -> dict[str, object]:
    """Of ``[{"type": "stdin_stdout" | "function_call", "input", "output", "fn_name"}]``."""
    kinds = {str(case.get("type")) for case in cases}
    if kinds == {"stdin_stdout"}:
        return stdin_tests([(_lines(case.get("input")), _lines(case.get("output"))) for case in cases], setting)
    names = {str(case.get("fn_name")) for case in cases}
    if kinds != {"function_call"} or len(names) != 1:
        raise BadRow("its test cases are neither all of type stdin_stdout nor calls of one function")
    inputs, outputs = [case.get("input") for case in cases], [case.get("output") for case in cases]
    # A column of Parquet has text for every value; JSON has the values themselves, and an input is a list of arguments.
    if all(isinstance(one, str) for one in inputs):
        inputs = [decoded(one, "a test case's input") for one in inputs]
        outputs = [decoded(one, "a test case's output") for one in outputs]
    return _calls(names.pop(), [sequence(one, "a test case's input") for one in inputs], outputs, setting)


def _unfenced(program: str) -> str:
    """The program without the code fence around it."""
    lines = program.strip().splitlines()
    if len(lines) > 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        return "\n".join(lines[1:-1])
    return program


def deepcoder(row: HubRow) -> CodeProblem:
    """agentica-org/DeepCoder-Preview-Dataset, whose parts write their tests as the sets that they come from."""
    tests = row.structure("tests")
    metadata = mapping(decoded(row.optional("metadata") or "{}", "metadata"), "metadata")
    starter = row.optional_text("starter_code")
    setting = Setting(prelude=headers.LIVECODEBENCH, seconds=6.0)
    if isinstance(tests, Mapping):
        found = _named_tests(tests, setting)
    elif any("testtype" in case for case in _cases(tests)):
        own = [case.get("metadata") for case in _cases(tests)]
        names = [one.get("func_name") for one in own if isinstance(one, Mapping)]
        found = _typed_tests(_cases(tests), metadata.get("func_name") or next(iter(names), None), setting)
    else:
        found = _kinds_of_tests(_cases(tests), setting)
    question, name = row.text("problem"), found.get("entry_point")
    solutions = row.optional("solutions")
    programs = (
        decoded(solutions, "solutions") if isinstance(solutions, str) and solutions.startswith("[") else solutions
    )
    return CodeProblem(
        key="",
        prompt=asked_for_function(question, starter, str(name)) if name else asked_for_program(question),
        tests=found,
        solution=_unfenced(next(iter(texts(programs or [], "solutions")), "")),
        rest=row.rest(),
    )
