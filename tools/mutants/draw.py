"""Draws mutants of Python and C++ sources: one operator, constant, comparison, call or argument changed in each."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PYTHON_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"), ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}  # fmt: skip
# Binary operators of C++ stand between spaces here, as the formatter has them; brackets of templates do not.
_CPP_OPERATORS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+", "*": "+", "/": "*",
    "%": "/", "&&": "||", "||": "&&", "+=": "-=", "-=": "+=", "<<": ">>", ">>": "<<",
}  # fmt: skip
_CPP_PATTERNS = {
    "operator": r"(?<= )(?:<<|>>|<=|>=|==|!=|&&|\|\||\+=|-=|[-+*/%<>])(?= )",
    "constant": r"(?<![\w.\"'])\d+(?![\w.\"'])",
    "dropped call": r"(?<=[;{}\n)])[ \n]+[a-zA-Z_][\w:]*(?:<\w+>)?\([^;{}]*\);(?= *\n)",
    "swapped arguments": r"(?<=\w\()([\w.]+(?:\[\w+\])?), ([\w.]+(?:\[\w+\])?)(?=[,)])",
}


@dataclass(frozen=True)
class Mutant:
    """Characters `start` to `end` of `path` become `new`."""

    group: str
    path: str
    line: int
    kind: str
    start: int
    end: int
    old: str
    new: str


def draw(root: Path, groups: dict[str, tuple[str, ...]], seed: int) -> dict[str, list[Mutant]]:
    """All mutants of each group's files (patterns below `root`), in an order made by the seed.

    Kinds take turns and so do files, so that the first few of a group are not all constants of its longest file.
    """
    drawn = {}
    for group, patterns in groups.items():
        rng = random.Random(f"{seed} {group}")
        piles: dict[tuple[str, str], list[Mutant]] = {}
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            find = _in_python if path.suffix == ".py" else _in_cpp
            text = path.read_text()
            for kind, start, end, new in find(text):
                name, line = str(path.relative_to(root)), text.count("\n", 0, start) + 1
                mutant = Mutant(group, name, line, kind, start, end, text[start:end], new)
                piles.setdefault((kind, name), []).append(mutant)
        for pile in piles.values():
            rng.shuffle(pile)
        order = sorted(piles)
        rng.shuffle(order)
        turns = [[(i, order.index(key), each) for i, each in enumerate(pile)] for key, pile in sorted(piles.items())]
        drawn[group] = [each for _, _, each in sorted((t for turn in turns for t in turn), key=lambda t: t[:2])]
    return drawn


def _in_python(text: str) -> Iterator[tuple[str, int, int, str]]:
    tree = ast.parse(text)
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    data = text.encode()

    def at(line: int, column: int) -> int:
        return len(data[: starts[line - 1] + column].decode())

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def between(left: ast.expr, operator: ast.AST, right: ast.expr, kind: str) -> Iterator[tuple[str, int, int, str]]:
        old, new = _PYTHON_OPERATORS.get(type(operator), ("", ""))
        start, end = span(left)[1], span(right)[0]
        found = text.find(old, start, end)
        if old and found >= 0:
            yield kind, found, found + len(old), new

    for node in _computing(tree):
        match node:
            case ast.Compare(left, operators, rights):
                for a, operator, b in zip([left, *rights], operators, rights, strict=False):
                    yield from between(a, operator, b, "comparison")
            case ast.BinOp(left, operator, right):
                yield from between(left, operator, right, "operator")
            case ast.BoolOp(operator, values):
                yield from between(values[0], operator, values[1], "operator")
            case ast.UnaryOp(ast.Not()):
                yield "operator", span(node)[0], span(node)[0] + len("not "), ""
            case ast.Constant(bool(value)):
                yield "constant", *span(node), str(not value)
            case ast.Constant(int(value)):
                yield "constant", *span(node), str(value + 1)
            case ast.Expr(ast.Call()):
                yield "dropped call", *span(node), "None"
            case ast.Call(_, [first, second, *_]) if not isinstance(first, ast.Starred | ast.GeneratorExp):
                if not isinstance(second, ast.Starred):
                    (a, b), (c, d) = span(first), span(second)
                    yield "swapped arguments", a, d, text[c:d] + text[b:c] + text[a:b]


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below that are computed: no annotations, no messages of errors, nothing for the type checker alone."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "msg") or isinstance(node, ast.Raise):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child)):
                yield child
                yield from _computing(child)


def _in_cpp(text: str) -> Iterator[tuple[str, int, int, str]]:
    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "_", match[0])

    code = re.sub(r"//[^\n]*|/\*.*?\*/|^ *#[^\n]*|\"[^\"\n]*\"|static_assert[^;]*;", blank, text, flags=re.S | re.M)
    for kind, pattern in _CPP_PATTERNS.items():
        for match in re.finditer(pattern, code):
            start, end = match.span()
            match kind:
                case "operator":
                    yield kind, start, end, _CPP_OPERATORS[match[0]]
                case "constant":
                    yield kind, start, end, str(int(match[0]) + 1)
                case "dropped call":
                    yield kind, end - len(match[0].lstrip()), end, ";"
                case _:
                    yield kind, start, end, f"{match[2]}, {match[1]}"
