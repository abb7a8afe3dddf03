"""The 97.5% point of Student's t distribution, from a table below ten degrees of freedom and by a series above."""

from __future__ import annotations

Z = 1.959963984540054
"""The same point of the normal distribution."""
_FEW = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def student(freedom: int) -> float:
    """97.5% point for so many degrees of freedom, >= 1; exact to 0.2%.

    The series is the expansion of Cornish and Fisher to its second term.
    """
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / freedom + second / freedom**2
