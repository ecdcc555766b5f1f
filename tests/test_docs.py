"""What is public says what it takes, what it gives, and what it refuses."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from gmcore import ops
from gmcore.errors import ArgumentError
from gmcore.nn import Functional
from gmcore.op import Op

MODULES = (
    "gmcore",
    "gmcore.distributions",
    "gmcore.nn",
    "gmcore.ops",
    "gmcore.optim",
    "gmcore.optim.lr_scheduler",
    "gmkernels",
)
IMPLIED = {"backend", "inplace", "reduce", "size_average", "validate_args"}
"""Parameters that are explained once: `backend` of a kernel's wrapper in `gmkernels`, `validate_args` in
`Distribution`, and arguments of PyTorch's that modules refuse in `gmcore.nn.Functional`."""


def public() -> Iterator[tuple[str, Any]]:
    """Each public function and class once, under the first module that lists it."""
    seen = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
            thing = getattr(module, name)
            at_home = getattr(thing, "__module__", "").split(".")[0] in ("gmcore", "gmkernels")
            if at_home and (inspect.isfunction(thing) or inspect.isclass(thing)) and id(thing) not in seen:
                seen.add(id(thing))
                yield f"{module_name}.{name}", thing


PUBLIC = dict(public())


def sections(doc: str) -> dict[str, str]:
    """The text of a numpydoc docstring by the title of its section; what comes first has the title ""."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", doc, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def parameters(thing: Any) -> list[str]:
    return [name for name in inspect.signature(thing).parameters if name not in IMPLIED]


def source(thing: Any) -> ast.FunctionDef | None:
    """The function, or the constructor of a class, as written; None where a class has no constructor of its own."""
    function = vars(thing).get("__init__") if inspect.isclass(thing) else inspect.unwrap(thing)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (TypeError, OSError):  # none, or made by the dataclass or NamedTuple machinery
        return None
    assert isinstance(tree.body[0], ast.FunctionDef)
    return tree.body[0]


def explained(thing: Any, doc: str) -> set[str]:
    """The parameters that a docstring explains, itself or by sending to another: "see `Other`", "`ops.function`"."""
    parts = sections(doc)
    named = set()
    for line in (parts.get("Parameters", "") + parts.get("Attributes", "")).splitlines():
        if not line.startswith(" "):
            named |= {name.strip(" *`") for name in line.partition(":")[0].split(",")}
    if "Parameters" not in parts and len(parameters(thing)) == 1:
        named |= set(re.findall(r"\w+", parts[""]))
    if "Parameters" not in parts:
        for other in re.findall(r"Parameters: see `(\w+)`", doc):
            parent = getattr(importlib.import_module(thing.__module__), other)
            named |= explained(parent, inspect.cleandoc(parent.__doc__))
        if inspect.isclass(thing) and issubclass(thing, Functional):
            for other in re.findall(r"`ops\.(\w+)`", doc):
                function = getattr(ops, other)
                if not isinstance(function, Op):
                    named |= explained(function, inspect.cleandoc(function.__doc__))
    return named


def problems(thing: Any) -> list[str]:
    """What the docstring of a function or class leaves out."""
    doc = inspect.cleandoc(thing.__doc__ or "")
    if not doc or doc.startswith(f"{thing.__name__}("):  # none, or a dataclass's own
        return ["has no docstring"]
    found = []
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return found
    parts = sections(doc)
    if len(parts[""].split("\n\n")[0].splitlines()) > 2:
        found.append("does not start with a summary")
    names = parameters(thing)
    named = explained(thing, doc)
    found += [f"does not say what {name} is" for name in names if name not in named]
    function = source(thing)
    if function is None:
        return found
    own = [node for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    if own and "Raises" not in parts:
        found.append("raises, and does not say when")
    gives = not inspect.isclass(thing) and not (
        isinstance(function.returns, ast.Constant) and function.returns.value is None
    )
    if gives and not ({"Returns", "Yields"} & set(parts) or len(names) == 0):
        found.append("does not say what it returns")
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_and_class_explains_itself(name: str) -> None:
    found = problems(PUBLIC[name])
    assert found == []


def test_a_docstring_that_leaves_something_out_is_found() -> None:
    def bare(x: Any, axis: int) -> Any:
        """Something of `x`."""
        raise ArgumentError("never")

    def full(x: Any, axis: int) -> Any:
        """Something.

        Parameters
        ----------
        x, axis : anything.

        Returns
        -------
        Something.

        Raises
        ------
        ArgumentError : always.
        """
        raise ArgumentError("always")

    assert problems(full) == []
    assert problems(bare) == [
        "does not say what x is",
        "does not say what axis is",
        "raises, and does not say when",
        "does not say what it returns",
    ]


def test_every_public_operation_has_a_formula() -> None:
    declared = {name: getattr(ops, name) for name in ops.__all__ if isinstance(getattr(ops, name), Op)}
    assert len(declared) > 50
    assert [name for name, op in declared.items() if not op.formula or op.formula not in (op.__doc__ or "")] == []
