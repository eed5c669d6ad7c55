"""The frame of reports as one HTML file: for phones and wide screens, light and dark."""

from __future__ import annotations

from html import escape

STYLE = (
    ":root{color-scheme:light dark;--line:#ddd;--wrong:#fdecea;--right:#edf7ed;--good:#2e7d32;--bad:#c62828;--dim:#666}"
    "@media(prefers-color-scheme:dark){:root{--line:#444;--wrong:#4a211d;--right:#1d3a20;--good:#81c784;--bad:#ef9a9a;"
    "--dim:#aaa}}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    ".wide{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;"
    "padding:.3rem .7rem;border-top:1px solid var(--line)}.figures td{white-space:nowrap}"
    "td pre{white-space:pre-wrap;min-width:14rem;margin:0;font-size:13px}code{word-break:break-all}"
    "svg{width:100%;min-width:560px;max-width:760px;height:auto}svg text{fill:currentColor}"
    ".wrong{background:var(--wrong)}.right{background:var(--right)}.good{color:var(--good)}.bad{color:var(--bad)}"
    ".dim{color:var(--dim)}"
)


def make_web_page(title: str, body: str) -> str:
    """A page with this title, which is escaped, and this body, which is HTML."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style>{body}</html>\n"
    )


def wrap_wide(content: str, kind: str = "") -> str:
    """HTML that scrolls sideways on its own if the screen is narrower."""
    return f"<div class='wide {kind}' tabindex='0'>{content}</div>"
