"""Mutants of a source file: copies with one small mistake each, of the kinds that slip into numerical code.

Comparisons are shifted by one or negated, operators swapped, conditions negated, numbers and booleans
changed; signs, conversions and statements dropped. Strings, annotations and error messages stay as they are.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
CONVERSIONS = ("float", "int", "bool", "list", "dict", "abs")
DROPPED = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Raise, ast.Assert, ast.Continue, ast.Break)


@dataclass(frozen=True)
class Mutant:
    """One changed place of a source file.

    name: unique in its file and independent of line numbers. function: the qualified name of the outermost
    function whose body holds the change, or None for a change outside of functions. before, after: the
    changed lines. source: the whole text of the mutated file.
    """

    name: str
    function: str | None
    line: int
    before: str
    after: str
    source: str = field(repr=False)


class _Change(NamedTuple):
    """A part of the source (a node of its syntax tree), its new text, the class or function it lies in."""

    node: ast.AST
    new_text: str
    scope: str | None
    in_body: bool


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a source text that are Python, in the order of its lines."""
    lines = source.encode().splitlines(keepends=True)
    mutants: list[Mutant] = []
    names: Counter[str] = Counter()
    for change in sorted(_changes(ast.parse(source)), key=lambda c: (c.node.lineno, c.node.col_offset)):
        mutated, before, after = _apply(lines, change)
        if not _compiles(mutated):
            continue
        name = f"{change.scope or 'module'}: {before} → {after}"
        names[name] += 1
        unique = name if names[name] == 1 else f"{name} ({names[name]})"
        function = change.scope if change.in_body else None
        mutants.append(Mutant(unique, function, change.node.lineno, before, after, mutated))
    return mutants


def _apply(lines: list[bytes], change: _Change) -> tuple[str, str, str]:
    """The mutated source, and the changed lines before and after, each as one line without indentation."""
    node = change.node
    first, last = node.lineno - 1, node.end_lineno - 1
    # offsets of syntax trees count bytes
    prefix, suffix = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    changed = prefix + change.new_text.encode() + suffix
    mutated = b"".join([*lines[:first], changed, *lines[last + 1 :]]).decode()
    before = b"".join(lines[first : last + 1]).decode()
    return mutated, *(" ".join(text.split()) for text in (before, changed.decode()))


def _compiles(source: str) -> bool:
    try:
        compile(source, "<mutant>", "exec")
    except SyntaxError:
        return False
    return True


def _changes(node: ast.AST, scope: str | None = None, in_body: bool = False) -> Iterator[_Change]:
    """All changes in a node and below it."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef) and not in_body:
        inner = f"{scope}.{node.name}" if scope else node.name
        header = [*node.decorator_list, *([node.args] if isinstance(node, ast.FunctionDef) else [])]
        for child in header:
            yield from _changes(child, inner, False)
        for child in node.body:
            yield from _changes(child, inner, isinstance(node, ast.FunctionDef))
        return
    yield from (_Change(old, new, scope, in_body) for old, new in _replacements(node, scope is None))
    for child in _mutable_children(node):
        yield from _changes(child, scope, in_body)


def _mutable_children(node: ast.AST) -> list[ast.AST]:
    """Children of a node without annotations, formatted strings and what an error says."""
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return []
    if isinstance(node, ast.Assert):
        return [node.test]
    annotations = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [child for child in ast.iter_child_nodes(node) if child not in annotations]


def _replacements(node: ast.AST, at_module_level: bool) -> Iterator[tuple[ast.AST, str]]:
    """The part of a node that changes and its new text; several for some nodes, none for most."""
    if isinstance(node, ast.expr):
        yield from ((node, text) for text in _expressions(node))
    elif isinstance(node, ast.Return) and node.value is not None:
        yield node, "return None"
    elif isinstance(node, DROPPED) and not at_module_level and not _is_docstring(node):
        yield node, "pass"
    conditions = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else getattr(node, "ifs", [])
    for condition in conditions:
        if not isinstance(condition, ast.Compare | ast.BoolOp | ast.UnaryOp):
            yield condition, f"not {ast.unparse(condition)}"


def _expressions(node: ast.expr) -> Iterator[str]:
    """What an expression is replaced by."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        others = (other() for other in COMPARISONS[type(node.ops[0])])
        yield from (ast.unparse(ast.Compare(node.left, [other], node.comparators)) for other in others)
    elif isinstance(node, ast.BinOp):
        yield f"({ast.unparse(ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right))})"
    elif isinstance(node, ast.BoolOp):
        yield f"({ast.unparse(ast.BoolOp(OPERATORS[type(node.op)](), node.values))})"
    elif isinstance(node, ast.UnaryOp):
        yield f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield repr(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield from (repr(n) if n >= 0 else f"({n!r})" for n in (node.value + 1, node.value - 1))
    elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in CONVERSIONS and len(node.args) == 1:
        yield ast.unparse(node.args[0])


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
