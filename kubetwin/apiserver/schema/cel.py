"""Validation rules in CEL (`x-kubernetes-validations`) and RE2 patterns, on Google's `cel-expr-python`.

The library is imported when the first rule or pattern is compiled. Its expressions see `self`, and in transition rules
`oldSelf`, as plain values: `kubetwin.apiserver.schema.rules` makes them from the object and its schema.

Rules are checked for syntax, unknown functions and result type when compiled. Field names are not: a rule that reads a
field which is not declared fails when it is evaluated. There is no cost budget either, so a CustomResourceDefinition
that is accepted here can still be refused by a Kubernetes cluster for its estimated cost. Text in a format such as
date-time stays text for a rule: the library takes no timestamps inside of objects.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cel_expr_python.cel import Env, Expression  # type: ignore[import-untyped]  # stubs, but no py.typed

_STRINGS: Final = re.compile(
    r"""[rRbB]{0,2}('''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""", re.DOTALL
)
_OLD_SELF: Final = re.compile(r"(?<![\w.])oldSelf\b")
_WORDS: Final = (
    (re.compile(r'Key not found in map : "?(.*?)"?$'), r"no such key: \1"),
    (re.compile(r"Index error: index=(-?\d+).*"), r"index out of bounds: \1"),
    (re.compile(r"cannot convert (\w+) to (\w+)"), r"type conversion error from '\1' to '\2'"),
    (re.compile(r"divide by zero"), "division by zero"),
    (re.compile(r"No matching overloads found.*"), "no such overload"),
)
"""Errors of the library, and the same in the words of Kubernetes."""
_CODE: Final = re.compile(r"^[A-Z_]+: ")


class RuleError(Exception):
    """An expression does not compile, or did not come to a result for this value. The text says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `x-kubernetes-validations`, compiled."""

    source: str
    program: "Program"
    message: str = ""
    message_program: "Program | None" = None
    reason: str = "FieldValueInvalid"
    field_path: str = ""
    optional_old_self: bool = False

    @property
    def is_transition(self) -> bool:
        return self.program.uses_old_self

    @property
    def shown(self) -> str:
        """What an error calls the rule."""
        return self.message or self.source.strip()


class Program:
    """A compiled expression."""

    def __init__(self, source: str, *, result: str, optional_old_self: bool = False) -> None:
        """Compile `source`; `result` is the type it must have, such as BOOL.

        Raises:
            RuleError: It does not parse, calls an unknown function or has another type.
        """
        self.uses_old_self = _OLD_SELF.search(_STRINGS.sub("''", source)) is not None
        self._optional = optional_old_self and self.uses_old_self
        if self._optional:
            # The library takes no optional as a value: make one around the expression.
            source = f"cel.bind(oldSelf, hasOldSelf ? optional.of(plainOldSelf) : optional.none(), (\n{source}\n))"
        self._expression = _compile(source)
        found = self._expression.return_type().name()
        if found.lower() not in (result.lower(), "dyn"):
            raise RuleError(f"must evaluate to a {result.lower()}, not {found}")
        self._result = result.lower()

    def run(self, this: Any, old: Any = None, *, has_old: bool = False) -> Any:
        """The value of the expression for `self` and `oldSelf`.

        Raises:
            RuleError: An error while evaluating (missing key, bad conversion…), or a result of another type.
        """
        data = {"self": this}
        if self._optional:
            data |= {"hasOldSelf": has_old, "plainOldSelf": old}
        elif self.uses_old_self:
            data["oldSelf"] = old
        try:
            result = self._expression.eval(data=data)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RuleError(_plain(str(error))) from error
        if result.type().name().lower() != self._result:
            raise RuleError(_plain(str(result.value())))
        return result.plain_value()


class Pattern:
    """A regular expression in RE2 syntax, matched in linear time, as Kubernetes does."""

    def __init__(self, source: str) -> None:
        """Raises RuleError where `source` is no valid expression."""
        self.source = source
        self._program = Program(f"self.matches({json.dumps(source, ensure_ascii=False)})", result="bool")
        self._program.run("")

    def found_in(self, text: str) -> bool:
        """Whether it matches anywhere in the text."""
        return bool(self._program.run(text))


def _plain(error: str) -> str:
    """The library's error in the words that users of Kubernetes know."""
    text = _CODE.sub("", error, count=1).strip()
    for found, words in _WORDS:
        text = found.sub(words, text)
    return text


def _compile(source: str) -> "Expression":
    try:
        return _environment().compile(source)
    except RuntimeError as error:
        raise RuleError(_plain(str(error)).splitlines()[0]) from error


@cache
def _environment() -> "Env":
    from cel_expr_python import cel  # type: ignore[import-untyped]  # stubs, but no py.typed
    from cel_expr_python.ext import (  # type: ignore[import-untyped]  # stubs, but no py.typed
        ext_bindings,
        ext_encoders,
        ext_math,
        ext_optional,
        ext_strings,
    )

    from kubetwin.apiserver.schema import cel_functions

    dyn = cel.Type.DYN
    return cel.NewEnv(
        variables={"self": dyn, "oldSelf": dyn, "hasOldSelf": cel.Type.BOOL, "plainOldSelf": dyn},
        extensions=[
            ext_strings.ExtStrings(),
            ext_math.ExtMath(),
            ext_optional.ExtOptional(),
            ext_bindings.ExtBindings(),
            ext_encoders.ExtEncoders(),
            cel_functions.extension(),
        ],
    )
