"""Wu et al. 2024, equations 6 to 9, one row at a time."""

from __future__ import annotations

from tests.reference.kd import Rows
from tests.reference.response import kl, mean_over_rows


def adaptive_kl(student: Rows, teacher: Rows, mass: float, temperature: float) -> float:
    """The head is filled with the likeliest classes until the next one would exceed the mass."""

    def divergence(p: list[float], q: list[float]) -> float:
        likely = sorted(range(len(p)), key=lambda k: -p[k])
        head = [likely[0]]
        total = p[likely[0]]
        for k in likely[1:]:
            total += p[k]
            if total > mass:
                break
            head.append(k)
        gaps = [abs(a - b) for a, b in zip(p, q, strict=True)]
        in_head = sum(gaps[k] for k in head)
        share = in_head / sum(gaps)
        return share * kl(p, q) + (1 - share) * kl(q, p)

    return mean_over_rows(divergence, student, teacher, temperature)
