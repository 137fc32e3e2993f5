"""Tokens, types and attributes of the text form.

Values are written and read by *declared* type: the fields of an op's frozen attribute dataclass say what to print and what to
expect, so `1` in a float field is written `1.0` and equal graphs have equal text. `Scanner` turns text into tokens and knows the
line it is on; every error is an UnsupportedModel that names the line.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any, NoReturn

from bevel.errors import UnsupportedModel, VerifyError
from bevel.ir.types import Bool, Codebook, Dim, Elem, Float, Groups, Int, Quant, TensorType

# Integers have at most 20 digits (2^64) and names at most one line, so that hostile text stays cheap.
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|//[^\n]*)
    |(?P<line>\n)
    |(?P<float>-?(?:\d+(?:\.\d+)?[eE][+-]?\d+|\d+\.\d+|inf\b)|nan\b)
    |(?P<int>-?\d{1,20}(?!\d))
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<name>%[A-Za-z0-9_.$/-]+)
    |(?P<quoted>%"(?:[^"\\\n]|\\.)*")
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<dots>\.\.)
    |(?P<mark>[][(){}<>=,:@])""",
    re.VERBOSE,
)
_BARE_NAME = re.compile(r"[A-Za-z0-9_.$/-]+")
_BARE_DIM = re.compile(r"(?!(?:inf|nan)$)[A-Za-z_][A-Za-z0-9_]*")
_ELEM = re.compile(r"([fiu])(\d{1,2})")


class Kind(enum.Enum):
    """Class of a token."""

    FLOAT = "a float"
    INT = "an integer"
    WORD = "a word"
    NAME = "a value name"
    STRING = "a string"
    MARK = "a mark"
    END = "the end of the text"


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One token: its class, its text (decoded for names and strings) and the line it stands on."""

    kind: Kind
    text: str
    line: int


def format_name(name: str) -> str:
    """`%name`, quoted where it holds more than letters, digits and `_.$/-`."""
    return f"%{name}" if _BARE_NAME.fullmatch(name) else f"%{json.dumps(name)}"


def format_op(op: str) -> str:
    """An operator's name, quoted where it is not a word (custom operators: "domain.Op")."""
    return op if _BARE_DIM.fullmatch(op) else json.dumps(op)


def format_dim(dim: int | Dim) -> str:
    """`3`, or `batch(1..8)`; names that are not identifiers are quoted."""
    if not isinstance(dim, Dim):
        return str(int(dim))
    name = dim.name if _BARE_DIM.fullmatch(dim.name) else json.dumps(dim.name)
    return f"{name}({dim.lo}..{'' if dim.hi is None else dim.hi})"


def format_type(type_: TensorType) -> str:
    """`elem[dims]`, with `@[axes]` behind it where the layout is not row-major."""
    layout = "" if type_.layout is None else f"@[{', '.join(map(str, type_.layout))}]"
    return f"{type_.elem}[{','.join(format_dim(d) for d in type_.shape)}]{layout}"


def field_hints(attrs: type[Any]) -> dict[str, Any]:
    """Declared types of an attribute dataclass's fields, in order."""
    hints = typing.get_type_hints(attrs)
    return {f.name: hints[f.name] for f in dataclasses.fields(attrs)}


def format_attrs(attrs: Any) -> str:
    """`{field=value, ...}` of an attribute dataclass; empty when it has no fields.

    Raises:
        VerifyError: a field does not hold what it declares.
    """
    hints = field_hints(type(attrs))
    if not hints:
        return ""
    return "{" + ", ".join(f"{name}={_format(hint, getattr(attrs, name), name)}" for name, hint in hints.items()) + "}"


def _format(hint: Any, value: Any, field: str) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for member in args:
            if _holds(member, value):
                return _format(member, value, field)
    elif origin is tuple and isinstance(value, tuple):
        members = (args[0],) * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        if len(members) == len(value):
            return "[" + ", ".join(_format(m, v, field) for m, v in zip(members, value, strict=True)) + "]"
    elif _holds(hint, value):
        return _format_plain(hint, value)
    raise VerifyError(f"attribute {field!r} holds {value!r}, expected {hint}")


def _holds(hint: Any, value: Any) -> bool:
    """Whether a plain (not tuple, not union) hint can print `value`; numpy scalars count as the numbers they are."""
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return not isinstance(value, bool) and hasattr(value, "__index__")
    if hint is float:
        return not isinstance(value, bool) and hasattr(value, "__float__")
    return isinstance(value, hint)


def _format_plain(hint: Any, value: Any) -> str:
    if hint is bool:
        return "true" if value else "false"
    if hint is int:
        return str(int(value))
    if hint is float:
        return repr(float(value))
    if hint is str:
        return json.dumps(value)
    if hint is types.NoneType:
        return "none"
    if hint is Dim:
        return format_dim(value)
    return str(value)


class Scanner:
    """A cursor over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self._tokens = self._split(text)
        self._at = 0

    @staticmethod
    def _split(text: str) -> list[Token]:
        tokens: list[Token] = []
        position, line = 0, 1
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise UnsupportedModel(f"line {line}: {text[position : position + 20]!r} is no token of the text form")
            position = match.end()
            found, group = match.group(), match.lastgroup
            if group == "line":
                line += 1
            elif group in ("quoted", "string"):
                kind = Kind.NAME if group == "quoted" else Kind.STRING
                tokens.append(Token(kind, _unquote(found.removeprefix("%"), line), line))
            elif group == "name":
                tokens.append(Token(Kind.NAME, found[1:], line))
            elif group != "space":
                kind = {"float": Kind.FLOAT, "int": Kind.INT, "word": Kind.WORD}.get(group or "", Kind.MARK)
                tokens.append(Token(kind, found, line))
        tokens.append(Token(Kind.END, "", line))
        return tokens

    @property
    def line(self) -> int:
        """Line of the next token, from 1."""
        return self._tokens[self._at].line

    @property
    def last_line(self) -> int:
        """Line of the token read last, where an error in something just read belongs."""
        return self._tokens[max(self._at - 1, 0)].line

    def fail(self, expected: str) -> NoReturn:
        """Raise UnsupportedModel: the next token is not what was expected."""
        token = self._tokens[self._at]
        found = f"{token.text!r}" if token.kind is not Kind.END else token.kind.value
        raise UnsupportedModel(f"line {token.line}: found {found}, expected {expected}")

    def peek(self, text: str, ahead: int = 0) -> bool:
        """True when the next token (or the one `ahead` of it) is the mark or word `text`."""
        token = self._tokens[min(self._at + ahead, len(self._tokens) - 1)]
        return token.kind in (Kind.MARK, Kind.WORD) and token.text == text

    def peek_kind(self) -> Kind:
        """Class of the next token."""
        return self._tokens[self._at].kind

    def accept(self, text: str) -> bool:
        """Step over the mark or word `text` if it comes next."""
        found = self.peek(text)
        self._at += found
        return found

    def expect(self, text: str) -> None:
        """Step over the mark or word `text`.

        Raises:
            UnsupportedModel: something else comes next.
        """
        if not self.accept(text):
            self.fail(repr(text))

    def take(self, kind: Kind) -> str:
        """The text of the next token, which must be of `kind`.

        Raises:
            UnsupportedModel: something else comes next.
        """
        token = self._tokens[self._at]
        if token.kind is not kind:
            self.fail(kind.value)
        self._at += 1
        return token.text

    def integer(self) -> int:
        """The next token as an integer."""
        return int(self.take(Kind.INT))

    def number(self) -> float:
        """The next token as a float; integers count."""
        return float(self.take(Kind.INT if self.peek_kind() is Kind.INT else Kind.FLOAT))

    def items(self, open_: str, close: str, item: Callable[[], Any]) -> tuple[Any, ...]:
        """A bracketed list separated by commas; `item` reads one element."""
        self.expect(open_)
        found: list[Any] = []
        while not self.peek(close):
            if found:
                self.expect(",")
            found.append(item())
        self.expect(close)
        return tuple(found)

    def dim(self) -> int | Dim:
        """An integer or a symbolic dimension."""
        if self.peek_kind() is Kind.INT:
            return self.integer()
        name = self.take(Kind.STRING if self.peek_kind() is Kind.STRING else Kind.WORD)
        self.expect("(")
        lo = self.integer()
        self.expect("..")
        hi = None if self.peek(")") else self.integer()
        self.expect(")")
        return typing.cast("Dim", self._built(Dim, name, lo, hi))

    def _built(self, class_: type[Any], *args: Any) -> Any:
        """`class_(*args)`, with what its constructor refuses as an error of this line."""
        try:
            return class_(*args)
        except ValueError as error:
            raise UnsupportedModel(f"line {self.last_line}: {error}") from None

    def elem(self) -> Elem:
        """An element type."""
        if self.accept("bool"):
            return Bool()
        if self.accept("q"):
            return self._quant()
        if self.accept("codebook"):
            self.expect("<")
            codes = self._int_type()
            self.expect(",")
            table = self.items("[", "]", self.number)
            scale: tuple[Any, ...] = (1.0,)
            axis: int | None = None
            if self.peek(",") and self.peek("scale", 1):
                self._at += 2
                self.expect("=")
                scale = self.items("[", "]", self.number)
            if self.peek(",") and self.peek("axis", 1):
                self._at += 2
                self.expect("=")
                axis = self.integer()
            self.expect(">")
            return typing.cast("Elem", self._built(Codebook, codes, table, scale, axis))
        letter, bits = self._sized()
        return typing.cast("Elem", self._built(Float, bits) if letter == "f" else self._built(Int, bits, letter == "i"))

    def _sized(self) -> tuple[str, int]:
        if self.peek_kind() is Kind.WORD:
            match = _ELEM.fullmatch(self._tokens[self._at].text)
            if match is not None:
                self._at += 1
                return match[1], int(match[2])
        self.fail("an element type such as f32, i8, bool or q<i8, scale=[...], zp=[...]>")

    def _int_type(self) -> Int:
        letter, bits = self._sized()
        return typing.cast("Int", self._built(Int, bits, letter == "i"))

    def _quant(self) -> Quant:
        self.expect("<")
        storage = self._int_type()
        self.expect(",")
        self.expect("scale")
        self.expect("=")
        scale = self.items("[", "]", self.number)
        self.expect(",")
        self.expect("zp")
        self.expect("=")
        zero_point = self.items("[", "]", self.integer)
        found: dict[str, int | None] = {"axis": None, "block": None}
        for field in found:
            if self.peek(",") and self.peek(field, 1):
                self._at += 2
                self.expect("=")
                found[field] = self.integer()
        groups = self._groups() if self.peek(",") else None
        self.expect(">")
        return typing.cast("Quant", self._built(Quant, storage, scale, zero_point, found["axis"], found["block"], groups))

    def _groups(self) -> Groups:
        for word in (",", "codes", "="):
            self.expect(word)
        codes = self._int_type()
        for word in (",", "group", "="):
            self.expect(word)
        return typing.cast("Groups", self._built(Groups, codes, self.integer()))

    def tensor_type(self) -> TensorType:
        """An element type with its shape and, where given, its layout."""
        elem = self.elem()
        shape = self.items("[", "]", self.dim)
        if any(isinstance(d, int) and d < 0 for d in shape):
            raise UnsupportedModel(f"line {self.last_line}: shape {list(map(str, shape))} has a negative dimension")
        layout = self.items("[", "]", self.integer) if self.accept("@") else None
        return TensorType(shape, elem, layout)

    def attrs(self, class_: type[Any]) -> Any:
        """An attribute dataclass; fields may be left out where they have defaults.

        Raises:
            UnsupportedModel: an unknown, repeated or missing field, or one that holds something else than it declares.
        """
        hints = field_hints(class_)
        values: dict[str, Any] = {}
        if self.peek("{"):
            for name, value in self.items("{", "}", lambda: self._field(hints)):
                if name in values:
                    raise UnsupportedModel(f"line {self.last_line}: attribute {name!r} is given twice")
                values[name] = value
        required = {f.name for f in dataclasses.fields(class_) if f.default is dataclasses.MISSING}
        if missing := sorted(required - values.keys()):
            raise UnsupportedModel(f"line {self.last_line}: attributes {missing} are missing")
        return class_(**values)

    def _field(self, hints: dict[str, Any]) -> tuple[str, Any]:
        if self.peek_kind() is not Kind.WORD or self._tokens[self._at].text not in hints:
            self.fail(f"one of the attributes {sorted(hints)}")
        name = self.take(Kind.WORD)
        self.expect("=")
        return name, self._value(hints[name])

    def _value(self, hint: Any) -> Any:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is tuple:
            if len(args) == 2 and args[1] is Ellipsis:
                return self.items("[", "]", lambda: self._value(args[0]))
            members = iter(args)
            values = self.items("[", "]", lambda: self._value(next(members, None)))
            if len(values) != len(args):
                raise UnsupportedModel(f"line {self.last_line}: {len(values)} numbers, expected {len(args)}")
            return values
        if origin in (typing.Union, types.UnionType):
            if types.NoneType in args and self.accept("none"):
                return None
            if set(args) == {int, Dim}:
                return self.dim()
            (hint,) = (a for a in args if a is not types.NoneType)
        return self._plain(hint)

    def _plain(self, hint: Any) -> Any:
        if hint is bool:
            if self.peek("true") or self.peek("false"):
                return self.take(Kind.WORD) == "true"
            self.fail("true or false")
        if hint is Quant:
            self.expect("q")
            return self._quant()
        readers: dict[Any, Callable[[], Any]] = {int: self.integer, float: self.number, str: lambda: self.take(Kind.STRING)}
        if hint not in readers:
            self.fail("fewer values")
        return readers[hint]()


def _unquote(quoted: str, line: int) -> str:
    try:
        text = json.loads(quoted)
    except ValueError as error:
        raise UnsupportedModel(f"line {line}: {quoted} is no string: {error}") from None
    return typing.cast("str", text)
