"""What the paper reports of its ablations on OACIRR's test split, ViT-G: Avg of R_ID@1, R@1 and R@5 over four domains.

On other data, another split and another size than a sweep here: for the course of the curve, not for its height.
"""

from __future__ import annotations

DEPTH = {1: 78.10, 2: 79.00, 3: 78.83, 4: 78.59}
"""Table 12: layers of the contextual reasoning module → Avg, percent."""
PROBES = {2: 78.85, 4: 78.65, 8: 79.00, 16: 78.95, 32: 78.83}
"""Table 13: probe tokens → Avg, percent."""
TABLES = {
    "model.crm_layers": ("Table 12", "layers of the CRM", DEPTH),
    "model.probe_tokens": ("Table 13", "probe tokens", PROBES),
}
"""Searched field → the paper's table, what its rows are, and its figures."""
