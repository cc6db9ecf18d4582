"""HA-DW: GRPO's advantages reweighted by a prompt's difficulty against a success rate tracked over batches (Yang et
al., "Your Group-Relative Advantage Is Biased", arXiv 2601.08521).

Equation numbers are the paper's. The authors' code (github.com/yangfengkai/HA-DW, ``verl/trainer/ppo/core_algos.py``)
has the anchor of Eq. 134 only, and measures a batch against one that counts the batch itself, where Eq. 13 does not. Of
Eq. 8 the constants eta and m are not published.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

from verl_v05.estimators.base import Estimator, GroupAdvantage, estimator
from verl_v05.estimators.groups import check, make_groups, success
from verl_v05.fusion import Array


@dataclass(frozen=True)
class Anchor:
    """What is carried from batch to batch; ``asdict`` of it is JSON."""

    belief: float | None = None  # success rate expected of the next batch, C; None before the first batch
    recent: tuple[float, ...] = ()  # newest last: success rates of batches without ``eta``, beliefs with it

    def __post_init__(self) -> None:
        object.__setattr__(self, "recent", tuple(self.recent))  # JSON has lists
        known = self.recent if self.belief is None else (self.belief, *self.recent)
        check(all(0 <= c <= 1 for c in known), f"an anchor's belief and recent must be in [0, 1]; got {self}")

    def update(self, rate: float, *, window: int, eta: float | None) -> Anchor:
        """The anchor after a batch of success rate ``rate``.

        Without ``eta`` the belief is the mean of the last ``window`` batches' success rates (Eq. 134). With it
        C+ = (1 - eta_t) C + eta_t y (Eq. 8), eta_t = min(1, eta * sigma) with sigma the standard deviation of the
        last ``window`` beliefs (Eq. 9-11). sigma is not defined before there are as many, and from equal beliefs
        Eq. 8 never departs: until then C is the mean of all batches (ours).
        """
        if eta is None:
            recent = (*self.recent, rate)[-window:]
            return Anchor(fmean(recent), recent)
        warm = len(self.recent) >= window
        gain = min(1.0, eta * pstdev(self.recent[-window:])) if warm else 1 / (len(self.recent) + 1)
        belief = rate if self.belief is None else (1 - gain) * self.belief + gain * rate
        return Anchor(belief, (*self.recent, belief)[-window:])


def step(
    anchor: Anchor,
    rewards: Array,
    group: Array,
    *,
    scale: float = 1.3,
    window: int = 10,
    eta: float | None = None,
    low: float = 0.0,
    high: float = 1.0,
    eps: float = 1e-6,
) -> tuple[Anchor, GroupAdvantage]:
    """A = Phi * (s - p) / (std + eps), Phi = scale * exp(-sign(s - p) * (p - C)) (Eq. 13-16 and 24-25).

    s is the rollout's success, p and std are its group's mean and standard deviation of s, C is the anchor's belief
    before this batch (of the first batch: its own success rate, as in the authors' code). A success on a prompt
    harder than expected (p < C) counts for more and a failure on it for less, and the reverse on an easier one.

    Args:
        anchor: of the batches before; ``Anchor()`` for none.
        rewards: in [low, high], (R,); s = (r - low) / (high - low).
        group: (R,) in 0..G-1, as for :func:`verl_v05.estimators.groups.make_groups`.
        scale: lambda_scale, > 0; the default is the best of the paper's Table 7 (1.5 in the code).
        window: batches the anchor looks back on (h, m), >= 1, with ``eta`` >= 2; the default is that of
            the code's scripts.
        eta: None for the hard anchor of Eq. 134, > 0 for the Kalman-style one of Eq. 8; see :meth:`Anchor.update`.
        low, high: reward of a failure and of a success.
        eps: added to the standard deviation (divisor k - 1, as the code), > 0.

    Returns:
        The anchor for the next batch; the advantages, with the group means, on the rewards' scale, as baselines.
        All 0 for a group of one and for a group of equal rewards.

    Raises:
        ValueError: as ``make_groups``, a reward outside [low, high], or a parameter out of range.
    """
    check(scale > 0, f"scale must be positive; got {scale}")
    check(eta is None or eta > 0, f"eta must be positive, or null for the mean of the last batches; got {eta}")
    fewest = 1 if eta is None else 2
    check(window >= fewest, f"window must be at least {fewest}; got {window}")
    check(eps > 0, f"eps must be positive; got {eps}")
    groups = make_groups(success(rewards, low, high), group)
    xp, p = groups.xp, groups.mean()
    rate = float(xp.mean(groups.rewards))  # Eq. 7
    difficulty = p - (rate if anchor.belief is None else anchor.belief)  # Eq. 13
    baseline = p[groups.index]
    centred = groups.rewards - baseline
    weight = scale * xp.exp(-xp.sign(centred) * difficulty[groups.index])  # Eq. 14-16
    advantage = weight * centred / (groups.std() + eps)[groups.index]
    result = GroupAdvantage(advantage, low + (high - low) * baseline)
    return anchor.update(rate, window=window, eta=eta), result


@estimator("ha_dw")
class HaDw(Estimator):
    """:func:`step` from one batch of a run to the next."""

    parameters = staticmethod(step)

    def __init__(self) -> None:
        self.anchor = Anchor()

    def advantages(self, rewards: Array, group: Array, **parameters: Any) -> GroupAdvantage:
        """See :func:`step`; the anchor moves on."""
        self.anchor, result = step(self.anchor, rewards, group, **parameters)
        return result

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.anchor)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.anchor = Anchor(**state)
