"""The task: kinds of contract clauses that one buyer looks for, and the risk that it sees in each."""

from __future__ import annotations

import json

RISKS = {
    "exclusivity": "high",
    "non-compete": "high",
    "ip-assignment": "high",
    "change-of-control": "high",
    "minimum-commitment": "medium",
    "anti-assignment": "medium",
    "liability-cap": "medium",
    "revenue-sharing": "medium",
    "convenience-termination": "medium",
    "license-grant": "low",
    "audit-rights": "low",
    "insurance": "low",
    "governing-law": "low",
}
"""Risk by kind of clause. Another organisation would write another table."""
CATEGORIES = {
    "Exclusivity": "exclusivity",
    "Non-Compete": "non-compete",
    "IP Ownership Assignment": "ip-assignment",
    "Change of Control": "change-of-control",
    "Minimum Commitment": "minimum-commitment",
    "Anti-Assignment": "anti-assignment",
    "Cap on Liability": "liability-cap",
    "Revenue/Profit Sharing": "revenue-sharing",
    "Termination for Convenience": "convenience-termination",
    "License Grant": "license-grant",
    "Audit Rights": "audit-rights",
    "Insurance": "insurance",
    "Governing Law": "governing-law",
}
"""Category of CUAD → kind of clause."""


def answer_for(kind: str) -> str:
    """The answer to a clause of this kind, as JSON."""
    return json.dumps({"kind": kind, "risk": RISKS[kind]}, separators=(",", ":"))
