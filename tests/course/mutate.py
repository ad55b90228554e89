"""Count the mutants of each reference that are caught: `python tests/course/mutate.py [ID …]`.

A mutant is the reference with one operator, constant, argument or statement changed. It counts if
one of 2,000 drawn calls, half of them hidden, gives another value than the reference. Only what
the exercise compares counts, not the padding that its text leaves open. The table shows how many of
these mutants the open check catches, and how many the open and the hidden check together.
"""

import ast
import copy
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress

from minilora.course import exercises, judge
from minilora.course.outcome import same
from minilora.course.student import Local

OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.LShift: ast.RShift, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.And: ast.Or,
    ast.Or: ast.And,
}  # fmt: skip
NAMES = {
    "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum", "fmin": "fmax",
    "fmax": "fmin", "sum": "mean", "mean": "sum", "ceil": "floor", "floor": "ceil",
    "abs": "negative", "ones": "zeros", "zeros": "ones", "adam_beta1": "adam_beta2",
    "adam_beta2": "adam_beta1",
    "rint": "floor", "sqrt": "square", "exp": "expm1", "log": "log1p", "cos": "sin",
}  # fmt: skip


def variants(node):
    """Yield the nodes that replace a node in a mutant."""
    kind = type(getattr(node, "op", None))
    if isinstance(node, ast.BinOp | ast.BoolOp) and kind in OPERATORS:
        yield changed(node, op=OPERATORS[kind]())
    if isinstance(node, ast.BinOp):
        yield node.left
        yield node.right
    if isinstance(node, ast.BinOp) and kind in (ast.MatMult, ast.Sub, ast.Div):
        yield changed(node, left=node.right, right=node.left)
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.Compare):
        for n, op in enumerate(node.ops):
            if type(op) in OPERATORS:
                ops = [*node.ops[:n], OPERATORS[type(op)](), *node.ops[n + 1 :]]
                yield changed(node, ops=ops)
        yield ast.Constant(True)
        yield ast.Constant(False)
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield ast.Constant(not value)
        elif isinstance(value, int | float):
            yield from (ast.Constant(other) for other in (value + 1, value - 1, 0 * value))
    if isinstance(node, ast.Call):
        for n in range(len(node.args) - 1):
            args = [*node.args[:n], node.args[n + 1], node.args[n], *node.args[n + 2 :]]
            yield changed(node, args=args)
        for n in range(len(node.keywords)):
            yield changed(node, keywords=node.keywords[:n] + node.keywords[n + 1 :])
        if node.args:
            yield node.args[0]
        elif isinstance(node.func, ast.Attribute):
            yield node.func.value
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield changed(node, attr=NAMES[node.attr])
    if isinstance(node, ast.Name) and node.id in NAMES:
        yield changed(node, id=NAMES[node.id])
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
        yield changed(node, elts=[node.elts[1], node.elts[0], *node.elts[2:]])
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr):
        yield ast.Pass()


def changed(node, **values):
    node = copy.copy(node)
    for name, value in values.items():
        setattr(node, name, value)
    return node


def mutants(source):
    """Yield (line, source) with one change."""
    tree = ast.parse(source)
    for function in tree.body:
        if ast.get_docstring(function) is not None:
            function.body = function.body[1:]
        function.decorator_list = []
    seen = {ast.unparse(tree)}
    for parent in ast.walk(tree):
        for field, old in ast.iter_fields(parent):
            if isinstance(parent, ast.arguments):
                continue  # defaults are the signature's
            for n, node in enumerate(old if isinstance(old, list) else [old]):
                for other in variants(node) if isinstance(node, ast.AST) else ():
                    new = [*old[:n], other, *old[n + 1 :]] if isinstance(old, list) else other
                    setattr(parent, field, new)
                    text = ast.unparse(ast.fix_missing_locations(tree))
                    setattr(parent, field, old)
                    if text not in seen:
                        seen.add(text)
                        before = ast.unparse(node).splitlines()[0]
                        yield f"{before}  →  {ast.unparse(other).splitlines()[0]}", text


def row(name):
    """Return (id, mutants that change a value, caught open, caught at all, survivors)."""
    exercise = exercises.load()[name]
    calls_of: list = []  # (call, the reference's outcome, bound), when first needed

    def changes(function):
        """Tell whether the function differs from the reference on one of the calls."""
        if not calls_of:
            for hidden in (False, True):
                for case in exercise.draw("mutants", 1000, 99, hidden):
                    calls_of.append((case, *judge.expected(exercise, tuple(case.items()))))
        for case, right, bound in calls_of:
            (mine,) = judge.outcomes(exercise, Local(function), [case])
            try:
                if not mine.crash and not same(mine, right, bound):
                    return True
            except RecursionError:  # a result that contains itself
                return False
        return False

    def caught(function, hidden):
        """Return what a check finds: "value" (a wrong value), "crash" or None."""
        found = None
        for rule in [*exercise.rules, judge.REFERENCE]:
            for wrong in judge.wrong_calls(exercise, Local(function), rule, hidden, hidden):
                if not wrong.mine.crash:
                    return "value"
                found = "crash"
        return found

    total, opened, found, survivors = 0, 0, 0, []
    for where, text in mutants(exercise.reference):
        try:
            function = exercises.compiled(exercise.module, text, exercise.name)
        except Exception:
            continue
        seen: list = []
        with suppress(RecursionError):
            seen.append(caught(function, False))
        if not seen:
            continue
        seen += [] if seen[0] else [caught(function, True)]
        if "value" in seen or changes(function):
            total += 1
            opened += seen[0] is not None
            found += any(seen)
            survivors += [] if any(seen) else [where]
    return name, total, opened, found, survivors


def main(names):
    names = names or [e.id for e in exercises.load().values() if e.kind == "function"]
    print("| exercise | mutants that change a value | caught, open | open and hidden |")
    print("| --- | --- | --- | --- |", flush=True)
    rows = []
    with ProcessPoolExecutor(2) as pool:
        for found in pool.map(row, names):
            rows.append(found)
            print(f"| {' | '.join(map(str, found[:4]))} |", flush=True)
    total, opened, found = (sum(r[n] for r in rows) for n in (1, 2, 3))
    print(f"| together | {total} | {opened} | {found} ({found / total:.1%}) |\n")
    for name, *_, survivors in rows:
        for where in survivors:
            print(f"{name}: {where}")


if __name__ == "__main__":
    main(sys.argv[1:])
