"""What is said of a search's budget before it starts: what is reachable, and how many architectures meet it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spos.cli.display import Display

if TYPE_CHECKING:
    import spos
    from spos.costs import Constraint, Share


def say_budget(net: spos.Supernet, constraints: list[Constraint], display: Display) -> None:
    """Shows for each cost its range and the share within its bounds, and for several costs what meets all of them."""
    import spos

    if not constraints:
        return
    found = spos.profile(net, constraints)
    for name, share in found.each.items():
        reach = found.ranges[name]
        known = f"{net.name} reaches {reach[0]:,.9g} to {reach[1]:,.9g}" if reach else "its range is not known"
        bounds = " and ".join(str(c) for c in constraints if c.cost.name == name)
        display.say(f"budget: {bounds}: {known}, {_share(share)} of the architectures")
    if len(found.each) > 1 and found.acceptance is not None:
        whole = spos.Share(found.feasible_fraction, found.interval, found.draws)
        display.say(f"budget: all bounds: {_share(whole)}; random draws meet them at a rate of {found.acceptance:.3g}")


def _share(share: Share) -> str:
    if share.fraction is None or share.interval is None:
        return "an unknown part"
    if not share.draws:
        return f"exactly {share.fraction:.4g}"
    low, high = share.interval
    return f"{share.fraction:.3g} ({low:.3g} to {high:.3g} at 95 % confidence, from {share.draws:,} draws)"
