"""The data set's coverage of production's requests: requests unlike any row, and words that no row has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monitoring.datasets.similarity import COMPARED_MAX, TEXTS_MAX, WORD_PATTERN, make_terms, measure_nearest

FAR_QUANTILE = 0.05
"""A request is unlike the rows if its nearest row is less similar than this quantile of the rows' own nearest rows."""
GAP_SHARE_MIN, GAP_REQUESTS_MIN = 0.01, 5
FEW_RATIO = 0.1
"""A word is rare among the rows if its share there is at most this part of its share in production."""
GAPS_MAX = 10
TOGETHER_SHARE, TOGETHER_MAX = 0.5, 4
REQUESTS_SHOWN = 3


def measure_coverage(inputs: Sequence[str], texts: Mapping[str, str]) -> dict[str, Any]:
    """The coverage of requests' `texts` (by request id) by the inputs of training rows."""
    if not texts:
        return {
            "requests": 0,
            "words": ["No text of a request is kept: how well the set covers production is unknown."],
        }
    requests = list(texts)
    gaps = _find_gaps(inputs, texts)
    far = count_far(inputs, [texts[request] for request in requests])
    words = [_words_of_gap(gap, len(requests)) for gap in gaps]
    if far is not None:
        words.insert(
            0,
            f"{100 * far / len(requests):.1f}% of {len(requests):,} requests are unlike any training row; of rows like "
            f"the training rows {100 * FAR_QUANTILE:.0f}% would be.",
        )
    return {"requests": len(requests), "far": far, "gaps": gaps, "words": words}


def measure_production(inputs: Sequence[str], requests: Sequence[str]) -> dict[str, Any]:
    """The number of requests that are unlike all rows (None: unknown), and a sentence on it."""
    unlike = count_far(inputs, requests) if requests else None
    if not requests:
        words = "No text of a request can be read: whether the rows are like production is unknown."
    elif unlike is None:
        words = f"Whether these {len(inputs)} rows are like production is unknown: they are too few."
    else:
        words = (
            f"{100 * unlike / len(requests):.1f}% of {len(requests):,} requests of production are unlike any row; of "
            f"requests like the rows {100 * FAR_QUANTILE:.0f}% would be."
        )
    return {"requests": len(requests), "unlike": unlike, "words": words}


def count_far(inputs: Sequence[str], texts: Sequence[str]) -> int | None:
    """The number of texts that are unlike all inputs; None if there are too few inputs to tell."""
    inputs = list(dict.fromkeys(inputs))[:TEXTS_MAX]  # a repeated row would be its own nearest row
    if len(inputs) < 1 / FAR_QUANTILE:
        return None
    terms = make_terms()
    try:
        vectors = terms.fit_transform([*inputs, *texts])
    except ValueError:  # no words at all
        return None
    rows = vectors[: len(inputs)]
    among = measure_nearest(rows[:COMPARED_MAX], rows, apart=False)
    return int((measure_nearest(vectors[len(inputs) :], rows) < np.quantile(among, FAR_QUANTILE)).sum())


def _find_gaps(inputs: Sequence[str], texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Words of requests that rows lack, most frequent first. Each request counts for one word only."""
    in_rows = Counter(word for text in inputs for word in _words_in(text))
    by_request = {request: _words_in(text) for request, text in texts.items()}
    least = max(GAP_REQUESTS_MIN, GAP_SHARE_MIN * len(texts))
    shares = Counter(word for words in by_request.values() for word in words)
    missing = {
        word
        for word, count in shares.items()
        if count >= least and in_rows[word] / max(1, len(inputs)) <= FEW_RATIO * count / len(texts)
    }
    gaps: list[dict[str, Any]] = []
    while missing and len(gaps) < GAPS_MAX:
        counts = Counter(word for words in by_request.values() for word in words & missing)
        word, count = min(counts.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
        if count < least:
            break
        within = sorted(request for request, words in by_request.items() if word in words)
        beside = Counter(other for request in within for other in by_request[request] & missing if other != word)
        often = sorted((-each, other) for other, each in beside.items() if each >= TOGETHER_SHARE * count)
        gaps.append(
            {
                "word": word,
                "together": [other for _, other in often[:TOGETHER_MAX]],
                "requests": count,
                "rows": in_rows[word],
                "first": within[:REQUESTS_SHOWN],
            }
        )
        for request in within:
            del by_request[request]
    return gaps


def _words_in(text: str) -> set[str]:
    return {word for word in re.findall(WORD_PATTERN, text) if not word.isdecimal()}


def _words_of_gap(gap: Mapping[str, Any], requests: int) -> str:
    named = f"“{gap['word']}”" + (f" (with {', '.join(gap['together'])})" if gap["together"] else "")
    rows = {0: "No example of", 1: "One example of"}.get(gap["rows"], f"{gap['rows']} examples of")
    return f"{rows} {named}: {100 * gap['requests'] / requests:.1f}% of requests, such as {gap['first'][0]}."
