"""The card of a data set as one HTML file, with plots as SVG. It holds no text of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from monitoring.datasets.rows import describe_spellings
from monitoring.web_page import make_web_page, wrap_wide

WIDTH, ROW_HEIGHT, NAME_WIDTH, FIGURE_WIDTH = 760, 22, 200, 110
BARS_MAX = 40
COLOURS = ("#1e88e5", "#90caf9")


def make_card_page(card: Mapping[str, Any]) -> str:
    """The page of a card."""
    return make_web_page(f"Data set for {card['task']}", make_card(card))


def make_card(card: Mapping[str, Any]) -> str:
    """A card as HTML inside a page. All texts are escaped."""
    rows, classes, origins = card["rows"], card["classes"], card["origins"]
    figures = {
        "Training rows": rows["train"],
        "Held-out rows": rows["heldout"],
        "Left out": rows["left_out"],
        "Groups": f"{card['groups']['train']['count']:,} and {card['groups']['heldout']['count']:,} held out",
        "Inputs that contradict each other": card["conflicts"],
        "Near inputs with different answers": card["contrasts"]["pairs"],
        "Requests whose texts are in it": card["requests"],
    }
    if (tools := card.get("tools")) and tools["rows"]:
        figures |= {"Rows with tools": tools["rows"], "Different sets of tools": tools["sets"]}
        figures["Rows whose answer calls a tool"] = tools["calls"]
    names = list(dict.fromkeys([*classes["train"], *classes["heldout"]]))
    parts = [
        f"<h1>Data set for {escape(str(card['task']))}</h1><p><code>{escape(str(card.get('digest', '')))}</code></p>",
        _table(figures),
        _list(list_warnings(card)),
        _section("Coverage of production", _list(card["coverage"]["words"])),
        _section("Synthetic rows", _list(card["synthetic"]["words"])),
        _section(
            "Classes: training rows, and held-out rows below",
            draw_bars(
                {name or "(none)": (classes["train"].get(name, 0), classes["heldout"].get(name, 0)) for name in names}
            ),
        ),
        _section(
            "Origins: training rows, and held-out rows below",
            draw_bars({name: (origins["train"][name], origins["heldout"][name]) for name in origins["train"]}),
        ),
        *(
            _section(title, draw_bars({name.replace("_", " "): (count,) for name, count in counts.items()}))
            for title, counts in (("Left out", card["left_out"]), ("Kept texts", card.get("kept_texts")))
            if counts
        ),
        _section("Characters of inputs", draw_bars({name: (count,) for name, count in card["lengths"].items()})),
        _section("Sources", _table(card["sources"])),
    ]
    return "".join(parts)


def list_warnings(card: Mapping[str, Any]) -> list[str]:
    """Warnings of faults that a card's figures hide: in the division of the rows, and in the spelling of classes."""
    rows, classes, before = card["rows"], card["classes"], card.get("held_before", 0)
    groups = card["groups"]["train"]["count"]
    warnings = [
        f"{before:,} of the held-out rows are so because earlier sets of the task held them, or their groups, out."
        if before
        else "",
        f"No row is held out: a group is on one side, and sessions, equal and near texts leave {groups:,} of them."
        if card["options"]["heldout_share"] and not rows["heldout"]
        else "",
        describe_spellings([*classes["train"], *classes["heldout"]]),
    ]
    return [warning for warning in warnings if warning]


def draw_bars(bars: Mapping[str, Sequence[int]]) -> str:
    """Bars as SVG: for each name a bar for each of its counts. Only the first BARS_MAX names are drawn."""
    first_bars = list(bars.items())[:BARS_MAX]
    most = max((count for _, counts in first_bars for count in counts), default=0) or 1
    parts, y = [], 4
    for name, counts in first_bars:
        parts.append(f'<text x="0" y="{y + 12}">{escape(name[:32])}</text>')
        for colour, count in zip(COLOURS, counts, strict=False):
            width = (WIDTH - NAME_WIDTH - FIGURE_WIDTH) * count / most
            parts.append(
                f'<rect x="{NAME_WIDTH}" y="{y}" width="{width:.1f}" height="14" fill="{colour}"/>'
                f'<text x="{NAME_WIDTH + width + 6:.1f}" y="{y + 12}">{count:,}</text>'
            )
            y += 16
        y += ROW_HEIGHT - 16
    more = f"<p>{len(bars) - len(first_bars)} more are in card.json.</p>" if len(bars) > len(first_bars) else ""
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12">'
        f"{''.join(parts)}</svg>"
    )
    return wrap_wide(picture) + more


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}"


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _table(figures: Mapping[str, Any]) -> str:
    texts = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in figures.items()}
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in texts.items())
    return wrap_wide(f"<table>{''.join(cells)}</table>")
