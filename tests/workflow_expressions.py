"""Reduces an expression of a workflow as far as the inputs that are known decide it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

_WHOLE = re.compile(r"\$\{\{(.*)\}\}", re.DOTALL)
_ALONE = re.compile(r"\$\{\{ inputs\.([\w-]+) \}\}")
_INPUT = re.compile(r"\binputs\.(\w+)")
_TO_PYTHON = ((r"&&", " and "), (r"\|\|", " or "), (r"!(?!=)", " not "))
_FROM_PYTHON = ((r"\band\b", "&&"), (r"\bor\b", "||"), (r"\bnot ", "!"))


def reduced(text: str, inputs: Mapping[str, Any]) -> str:
    """Return a value of a workflow with its inputs put in.

    Of an expression that they decide the result is left, of any other what they leave open:
    `${{ inputs.where == 'a' && vars.A || 'b' }}` is `${{ vars.A || 'b' }}` for a.
    """
    text = _ALONE.sub(lambda m: str(inputs.get(m[1], m[0])), text)
    if not (whole := _WHOLE.fullmatch(text.strip())) or "${{" in whole[1]:
        return text
    known = {name: str(value) for name, value in inputs.items() if "${{" not in str(value)}
    code = _INPUT.sub(lambda m: repr(known[m[1]]) if m[1] in known else m[0], whole[1])
    try:
        left = _left(ast.parse(_translated(code, _TO_PYTHON).strip(), mode="eval").body)
    except SyntaxError:  # not of the few forms that are worth it
        return text
    if isinstance(left, ast.Constant):
        return str(left.value)
    return f"${{{{ {_translated(ast.unparse(left), _FROM_PYTHON)} }}}}"


def _translated(code: str, words: tuple[tuple[str, str], ...]) -> str:
    for old, new in words:
        code = re.sub(old, new, code)
    return code


def _left(node: ast.expr) -> ast.expr:
    """Return what is left of an expression when its constant parts are carried out."""
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
        sides = node.left, node.comparators[0]
        if all(isinstance(side, ast.Constant) for side in sides):
            same = ast.literal_eval(sides[0]) == ast.literal_eval(sides[1])
            return ast.Constant(same is isinstance(node.ops[0], ast.Eq))
    if not isinstance(node, ast.BoolOp):
        return node
    *before, last = map(_left, node.values)
    parts: list[ast.expr] = []
    for part in before:
        if isinstance(part, ast.Constant) and bool(part.value) is isinstance(node.op, ast.Or):
            last = part  # it decides: what comes after it is never looked at
            break
        if not isinstance(part, ast.Constant):
            parts.append(part)
    return ast.BoolOp(node.op, [*parts, last]) if parts else last
