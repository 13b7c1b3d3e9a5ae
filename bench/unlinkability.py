"""How well two galleries' embeddings can be told to be of one person: plain, and each under its gallery's transform.

The measure is D_sys of Gomez-Barrero, Galbally, Rathgeb and Busch (2018), General framework to evaluate unlinkability
in biometric template protection systems, with omega = 1: 0 is unlinkable, 1 is fully linkable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface_bench.people import person
from sealface_client.transform import Transform

THRESHOLD = 0.07
BINS = 50
DRAWS = 10  # pairs of transforms: figures across galleries are means over them, the rest of the last

KNOWN = (16, 64, 256)
"""How many people an attacker knows in both galleries."""

Vector = NDArray[np.float64]
Pairs = dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]


def scores(left: Vector, right: Vector) -> Vector:
    """Cosines of pairs, (n,), of embeddings (n, d)."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: Vector = np.einsum("ij,ij->i", left, right) / lengths
    return cosines


def linkability(mated: Vector, non_mated: Vector, bins: int = BINS) -> float:
    """D_sys: the mean over mated scores of max(0, 2 LR / (1 + LR) - 1), LR the ratio of the two histograms."""
    edges = np.histogram_bin_edges(np.concatenate([mated, non_mated]), bins)
    p = np.histogram(mated, edges)[0] / len(mated)
    q = np.histogram(non_mated, edges)[0] / len(non_mated)
    local = np.divide(p - q, p + q, out=np.zeros(bins), where=p + q > 0)  # 2 LR / (1 + LR) - 1 at omega = 1
    return float(p @ np.maximum(local, 0))


def equal_error_rate(mated: Vector, non_mated: Vector) -> float:
    """Where as many mated pairs are missed as non-mated ones are taken for mated."""
    thresholds = np.unique(np.concatenate([mated, non_mated]))
    missed = np.searchsorted(np.sort(mated), thresholds) / len(mated)
    taken = 1 - np.searchsorted(np.sort(non_mated), thresholds) / len(non_mated)
    nearest = np.argmin(np.abs(missed - taken))
    return float((missed[nearest] + taken[nearest]) / 2)


def figures(prefix: str, mated: Vector, non_mated: Vector) -> dict[str, float]:
    """Means, standard deviations, d-prime, EER and D_sys of two sets of scores."""
    spread = np.sqrt((mated.var() + non_mated.var()) / 2)
    return {
        f"{prefix}_mated_mean": float(mated.mean()),
        f"{prefix}_mated_std": float(mated.std()),
        f"{prefix}_non_mated_mean": float(non_mated.mean()),
        f"{prefix}_non_mated_std": float(non_mated.std()),
        f"{prefix}_d_prime": float((mated.mean() - non_mated.mean()) / spread),
        f"{prefix}_eer": equal_error_rate(mated, non_mated),
        f"{prefix}_d_sys": linkability(mated, non_mated),
    }


def measure(names: Sequence[str], embeddings: Vector, *, seed: int = 1) -> tuple[dict[str, Any], dict[str, Vector]]:
    """Figures, flat, and the scores of the last draw.

    Args:
        names: of faces, Person_Name_0001.
        embeddings: (n, d).
        seed: of the choice of pairs; the transforms' seeds are fresh each time.
    """
    pairs = _pairs(names, np.random.default_rng(seed))
    x = np.asarray(embeddings, np.float64)
    found: dict[str, Vector] = {}
    across = []
    for _ in range(DRAWS):
        first, second = (x @ Transform.generate(gallery).matrix(x.shape[1]) for gallery in ("first", "second"))
        for kind, (i, j) in pairs.items():
            found[f"plain_{kind}"] = scores(x[i], x[j])
            found[f"within_{kind}"] = scores(first[i], first[j])
            found[f"across_{kind}"] = scores(first[i], second[j])
        across.append(figures("across", found["across_mated"], found["across_non_mated"]))
    plain, within = (np.concatenate([found[f"{way}_{kind}"] for kind in pairs]) for way in ("plain", "within"))
    result: dict[str, Any] = {kind + "_pairs": len(i) for kind, (i, _) in pairs.items()}
    result["dimension"] = x.shape[1]
    result["decisions_changed"] = int(np.sum((1 - plain <= THRESHOLD) != (1 - within <= THRESHOLD)))
    result["largest_score_difference"] = float(np.abs(plain - within).max())
    for way in ("plain", "within"):
        result |= figures(way, found[f"{way}_mated"], found[f"{way}_non_mated"])
    result |= {name: float(np.mean([drawn[name] for drawn in across])) for name in across[0]}
    result["across_d_sys_largest"] = max(drawn["across_d_sys"] for drawn in across)
    unit = [rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (first, second)]
    for known in KNOWN:
        if 2 * known <= len(pairs["mated"][0]):
            result[f"known_{known}_d_sys"] = _known(*unit, pairs, known)
    result["whole_galleries_d_sys"] = _aligned(*unit, names, pairs)
    return result, found


def _known(first: Vector, second: Vector, pairs: Pairs, known: int) -> float:
    """D_sys for who knows some people in both galleries, and turns one onto the other by them.

    The turn that fits best solves the orthogonal Procrustes problem (Schönemann 1966).
    """
    (i, j), (k, m) = pairs["mated"], pairs["non_mated"]
    u, _, v = np.linalg.svd(first[i[:known]].T @ second[j[:known]])
    turned, rest = first @ u @ v, slice(known, None)
    return linkability(scores(turned[i[rest]], second[j[rest]]), scores(turned[k], second[m]))


def _aligned(first: Vector, second: Vector, names: Sequence[str], pairs: Pairs) -> float:
    """D_sys for who has two whole galleries of the same people, in other pictures, and knows nobody.

    Lays their principal axes over one another, with directions by the third moment; who works harder will link more.
    """
    number: dict[str, int] = {}
    half = []
    for name in names:
        number[person(name)] = number.get(person(name), -1) + 1
        half.append(number[person(name)] % 2)
    axes = []
    for side, rows in enumerate((first, second)):
        held = rows[np.array(half) == side]
        held = held - held.mean(axis=0)
        _, vectors = np.linalg.eigh(held.T @ held)
        axes.append(vectors * np.sign(((held @ vectors) ** 3).mean(axis=0)))
    turned = first @ axes[0] @ axes[1].T
    mated, non_mated = (scores(turned[i], second[j]) for i, j in (pairs["mated"], pairs["non_mated"]))
    return linkability(mated, non_mated)


def picture(found: dict[str, Vector]) -> str:
    """Histograms of plain scores, and of those across two transformed galleries, as SVG."""
    edges, width, height = np.linspace(-1, 1, 101), 600, 150
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {2 * height + 60}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for row, (way, title) in enumerate((("plain", "no transform"), ("across", "each gallery its own transform"))):
        base = (row + 1) * (height + 25)
        shares = {kind: np.histogram(found[f"{way}_{kind}"], edges)[0] for kind in ("mated", "non_mated")}
        for kind, colour in (("mated", "#0072b2"), ("non_mated", "#d55e00")):
            heights = shares[kind] / max(shares[kind].max(), 1) * (height - 25)
            points = " ".join(
                f"{x:.0f},{base - y:.1f}"
                for k, y in enumerate(heights)
                for x in (k * width / 100, (k + 1) * width / 100)
            )
            lines.append(
                f'<polygon points="0,{base} {points} {width},{base}" fill="{colour}" fill-opacity="0.4" '
                f'stroke="{colour}"/>'
            )
        lines.append(f'<text x="8" y="{base - height + 14}">{title}</text>')
        lines.append(f'<path d="M0 {base}H{width}" stroke="black"/>')
    lines.append(
        f'<text x="8" y="{2 * height + 56}">cosine from -1 to 1; <tspan fill="#0072b2">mated</tspan>, '
        '<tspan fill="#d55e00">non-mated</tspan> pairs; each histogram scaled to its peak</text></svg>'
    )
    return "\n".join(lines) + "\n"


def _pairs(names: Sequence[str], rng: np.random.Generator) -> Pairs:
    """One mated pair a person, so that nobody with many pictures outweighs others, and 20 times as many non-mated."""
    people = np.unique([person(name) for name in names], return_inverse=True)[1]
    several = np.flatnonzero(np.bincount(people) > 1)
    mated = np.array([rng.choice(np.flatnonzero(people == p), 2, replace=False) for p in several])
    drawn = rng.integers(len(people), size=(20 * len(mated), 2))
    drawn = drawn[people[drawn[:, 0]] != people[drawn[:, 1]]]
    return {"mated": (mated[:, 0], mated[:, 1]), "non_mated": (drawn[:, 0], drawn[:, 1])}
