"""Reports of evaluations as one file: HTML with plots, or Markdown; with answers side by side where texts are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gateway.cli.evaluation_report import tell_report, tell_suites
from gateway.cli.tables import Row, make_readable
from gateway.cli.tool_calls import describe_offer, write_called, write_message
from monitoring.evaluation.judge_trust import describe_trust
from monitoring.web_page import make_web_page, wrap_wide

Texts = Sequence[Mapping[str, Any]]
WIDTH, BAR, LEFT = 760, 26, 170
CHARACTERS_MAX = 1500
"""Most characters of a request or an answer that are shown."""


class _Markdown:
    """A report as Markdown."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def say(self, *texts: str) -> None:
        """Write each text as a line."""
        self.parts += [_plain(text) + "\n" for text in texts]

    def table(self, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """A table."""
        lines = [columns, ["---"] * len(columns), *rows]
        self.parts.append("\n".join(f"|{'|'.join(map(_cell, line))}|" for line in lines) + "\n")

    def head(self, text: str) -> None:
        """A heading."""
        self.parts.append(f"## {_plain(text)}\n")

    def raw(self, page: str) -> None:
        """Leave the HTML out."""


class _Html:
    """A report as HTML; all texts are escaped."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def say(self, *texts: str) -> None:
        """Write each text as a paragraph."""
        self.parts += [f"<p>{escape(make_readable(text))}</p>" for text in texts if text]

    def table(self, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """A table."""
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(make_readable(cell))}</td>" for cell in row) + "</tr>" for row in rows
        )
        self.parts.append(wrap_wide(f"<table><tr>{head}</tr>{body}</table>", "figures"))

    def head(self, text: str) -> None:
        """A heading."""
        self.parts.append(f"<h2>{escape(make_readable(text))}</h2>")

    def raw(self, page: str) -> None:
        """Write HTML unchanged."""
        self.parts.append(wrap_wide(page))


def make_html(answers: Sequence[Mapping[str, Any]], texts: Mapping[str, Texts]) -> str:
    """The page of one or several evaluations; `texts` are the rows with texts by evaluation."""
    page = _Html()
    _write(page, answers, texts)
    title = _title(answers)
    return make_web_page(title, f"<h1>{escape(title)}</h1>{''.join(page.parts)}")


def make_markdown(answers: Sequence[Mapping[str, Any]], texts: Mapping[str, Texts]) -> str:
    """The report as Markdown, without plots."""
    page = _Markdown()
    _write(page, answers, texts)
    return "\n".join([f"# {_title(answers)}\n", *page.parts])


def _title(answers: Sequence[Mapping[str, Any]]) -> str:
    return f"Evaluation of {', '.join(dict.fromkeys(answer['version'] or answer['task'] for answer in answers))}"


def _write(page: _Html | _Markdown, answers: Sequence[Mapping[str, Any]], texts: Mapping[str, Texts]) -> None:
    done = [answer for answer in answers if answer["status"] == "done"]
    if len(answers) > 1:
        tell_suites(page, answers)
    for answer in done:
        page.head(f"{answer['suite'] or 'Data'} {answer['data_digest'][:12]}")
        page.raw(draw_shares(answer["report"]["arms"], describe_trust(answer["report"].get("judge"))))
        tell_report(page, answer)
        for arm, figures in answer["report"]["arms"].items():
            _write_confusion(page, arm, figures.get("confusion") or {})
        _write_texts(page, answer["arms"], texts.get(answer["id"], ()))


def draw_shares(arms: Mapping[str, Mapping[str, Any]], trust: str) -> str:
    """A bar for each arm's share of right answers, with its 95% interval, as SVG."""
    caption = f"Right answers{trust}, with 95% intervals"
    shapes = [f'<text x="5" y="{24 + len(arms) * BAR}">{caption}</text>']
    for at, (arm, figures) in enumerate(arms.items()):
        share, y = figures["accuracy"], 10 + at * BAR
        if share["share"] is None:
            continue
        right, low, high = (LEFT + (WIDTH - LEFT - 60) * share[name] for name in ("share", "low", "high"))
        middle = y + BAR / 2 - 4
        shapes.append(
            f'<text x="5" y="{y + 14}">{escape(arm)}</text><rect x="{LEFT}" y="{y}" width="{right - LEFT:.1f}" '
            f'height="{BAR - 8}" fill="#90caf9"/><line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" '
            f'stroke="currentColor" stroke-width="2"/><text x="{high + 6:.1f}" y="{y + 14}">{share["share"]:.1%}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {34 + len(arms) * BAR}" font-size="13" '
        f'font-family="sans-serif"><title>{caption}</title>{"".join(shapes)}</svg>'
    )


def _write_confusion(page: _Html | _Markdown, arm: str, confusion: Mapping[str, Mapping[str, int]]) -> None:
    """Write expected and answered classes: few as a coloured matrix, many as a list."""
    mistakes = [
        (expected, answered or "(no class)", count)
        for expected, counts in confusion.items()
        for answered, count in counts.items()
        if answered != expected
    ]
    if not mistakes:
        return
    page.say(f"Mistakes of {arm}, the most frequent first:")
    page.table(("expected", "answered", "rows"), sorted(mistakes, key=lambda row: -row[2])[:40])
    names = list(confusion)
    if len(names) > 20:
        return
    answered = [*names, *([""] if any("" in counts for counts in confusion.values()) else [])]
    head = "".join(f"<th>{escape(make_readable(name) or '(no class)')}</th>" for name in answered)
    rows = ""
    for name in names:
        total = sum(confusion[name].values())
        cells = "".join(_shaded(confusion[name].get(other, 0), total, other == name) for other in answered)
        rows += f"<tr><th>{escape(make_readable(name))}</th>{cells}</tr>"
    caption = f"<caption>{escape(arm)}: expected (rows) and answered</caption>"
    page.raw(f"<table>{caption}<tr><th></th>{head}</tr>{rows}</table>")


def _shaded(count: int, total: int, is_right: bool) -> str:
    colour = "46,125,50" if is_right else "198,40,40"
    return f"<td style='background:rgba({colour},{0.7 * count / total:.2f})'>{count or ''}</td>"


def _write_texts(page: _Html | _Markdown, arms: Sequence[str], texts: Texts) -> None:
    """Write the rows that an arm answered wrong, with all answers side by side."""
    if not texts:
        return
    page.say(f"{len(texts)} rows that an arm got wrong:")
    columns = ("request", "expected", *arms)
    if isinstance(page, _Markdown):
        rows = [(_prompt_of(row), _expected_of(row), *(_answer_of(row, arm) for arm in arms)) for row in texts]
        page.table(columns, [[cell[:CHARACTERS_MAX] for cell in row] for row in rows])
        return
    lines = []
    for row in texts:
        cells = [("", _prompt_of(row)), ("", _expected_of(row))]
        cells += [("right" if row["right"].get(arm) else "wrong", _answer_of(row, arm)) for arm in arms]
        tds = "".join(f"<td class='{kind}'><pre>{escape(text[:CHARACTERS_MAX])}</pre></td>" for kind, text in cells)
        lines.append(f"<tr>{tds}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    page.raw(f"<table><tr>{head}</tr>{''.join(lines)}</table>")


def _prompt_of(row: Mapping[str, Any]) -> str:
    said = (f"{part.get('role')}: {write_message(part)}" for part in row.get("messages") or ())
    return str(row.get("prompt") or "\n".join([*describe_offer(row), *said]))


def _expected_of(row: Mapping[str, Any]) -> str:
    return write_called(row["expected"], row) or "-"


def _answer_of(row: Mapping[str, Any], arm: str) -> str:
    return write_called(row["answers"].get(arm) or "-", row)


def _cell(value: Any) -> str:
    return _plain(value).replace("|", "\\|")


def _plain(value: Any) -> str:
    """A value as Markdown that holds no HTML: names of classes are the data's."""
    return make_readable(value).replace("<", "&lt;")
