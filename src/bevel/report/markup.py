"""Building blocks of the report's sections: escaped text, tables, numbers, scales of drawings."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

_NAME_COLUMNS = 48


def short_name(layer: str) -> str:
    """A layer name that fits a table: exporters join module paths with semicolons; the last says most."""
    last = layer.rsplit(";", 1)[-1]
    return last if len(last) <= _NAME_COLUMNS else "..." + last[3 - _NAME_COLUMNS :]


def text(value: object) -> str:
    """`value` as HTML text or attribute."""
    return html.escape(str(value))


def section(title: str, *content: str) -> str:
    """A section with its heading; nothing when all content is empty."""
    body = "".join(content)
    anchor = title.lower().replace(" ", "-")
    return f"<section aria-labelledby={anchor}><h2 id={anchor}>{text(title)}</h2>{body}</section>" if body else ""


def note(content: str) -> str:
    """A paragraph of explanation; `content` is HTML."""
    return f"<p class=note>{content}</p>"


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Boxes of (what, value, explanation)."""
    boxes = (f"<div><dt>{text(k)}</dt><dd><b>{text(v)}</b><span>{text(why)}</span></dd></div>" for k, v, why in items)
    return f"<dl class=tiles>{''.join(boxes)}</dl>"


def head(name: str, *, numeric: bool = False) -> str:
    """A column head that sorts."""
    kind = " class=n" if numeric else ""
    return f"<th scope=col{kind} aria-sort=none><button type=button>{text(name)}</button></th>"


def row_name(name: str) -> str:
    """The head of a row: a layer or value name, short, whole on hover."""
    return f"<th scope=row class=name title='{text(name)}' data-sort='{text(name)}'>{text(short_name(name))}</th>"


def number(value: float | None, shown: str | None = None, *, kind: str = "n", style: str = "") -> str:
    """A cell that sorts by `value` and shows `shown`; None shows a dash and sorts last."""
    if value is None:
        return f"<td class={kind} data-sort=''>-</td>"
    extra = f" style='{style}'" if style else ""
    return f"<td class={kind} data-sort='{value}'{extra}>{text(value if shown is None else shown)}</td>"


def cell(value: object) -> str:
    """A cell of text."""
    return f"<td>{text(value)}</td>"


def table(caption: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table that sorts by its heads and scrolls where it is wider than the page."""
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<div class=scroll tabindex=0 role=region aria-label='{text(caption)}'><table class=sortable><caption>{text(caption)}"
        f"</caption><thead><tr>{''.join(heads)}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def svg(width: float, height: float, title: str, marks: Sequence[str], *, kind: str = "wide") -> str:
    """A drawing in a box that scrolls where it is wider than the page."""
    box = f"<svg viewBox='0 0 {width:.0f} {height:.0f}' role=img><title>{text(title)}</title>{''.join(marks)}</svg>"
    return f"<div class='scroll {kind}' tabindex=0 role=region aria-label='{text(title)}'>{box}</div>"


def label(x: float, y: float, words: object, anchor: str = "start", kind: str = "") -> str:
    """Text in a drawing."""
    kind = f" class={kind}" if kind else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{kind}>{text(words)}</text>"


def ticks(top: float, count: int = 5) -> list[float]:
    """About `count` round numbers from 0 to `top`."""
    step = 10.0 ** math.floor(math.log10(top / count))
    step *= next(factor for factor in (1, 2, 5, 10) if top / (step * factor) <= count)
    return [step * i for i in range(int(top / step) + 1)]


def duration(ms: float) -> str:
    """A time with its unit."""
    return f"{ms * 1e3:.4g} us" if ms < 1 else f"{ms:.4g} ms"


def kib(size: float) -> str:
    """A size with its unit."""
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.2f} MiB"
