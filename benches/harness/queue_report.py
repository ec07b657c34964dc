"""What the passes in queue mode amount to: medians, the limits, tables."""

from statistics import median

from harness.queueing import DELIVERING, HELD, KINDS, PEER
from harness.report import print_table, word

FIGURES = ("per_second", "p50_micros", "p99_micros", "cpu_micros", "delivered_per_second")
MIN_OVER_PEER = 20
MIN_OVER_BARE_STORE = 0.5
MAX_P99_IN_SYNCS = 8
MIN_BESIDE_DELIVERY = 0.6
# The paces of hookward's paced passes, in parts of its peak without delivery. Beside delivery it is somewhat above
# the least that is asked, so that a pace that is just kept is told from one that is just missed.
PACES = {HELD: 0.5, DELIVERING: 0.65}


def judge(size, rounds, paced):
    """The limits of one size of body as (what, limit, found, whether it is met)."""

    def pace(kind):
        return lambda one: one["passes"][size][kind].per_second

    over_peer = ratio(rounds, size, (DELIVERING, PEER), pace(DELIVERING), pace(PEER))
    over_store = ratio(rounds, size, (HELD,), pace(HELD), lambda one: one["bare"][size])
    in_syncs = ratio(paced, size, (HELD,), lambda one: one["passes"][size][HELD].p99_micros, sync_micros)
    peak = median_of(rounds, size, HELD, "per_second")
    beside = ratio(paced, size, (DELIVERING,), lambda one: kept_up(one["passes"][size][DELIVERING]), lambda _: peak)
    label = f"{size // 1024} KiB"
    return [
        at_least(f"{label}: acknowledgements/s, as a multiple of qhook's", over_peer, MIN_OVER_PEER),
        at_least(f"{label}: acknowledgements/s, as a share of the bare store's", over_store, MIN_OVER_BARE_STORE),
        at_most(f"{label}: p99 at half the peak rate, in syncs", in_syncs, MAX_P99_IN_SYNCS),
        at_least(f"{label}: acknowledged and delivered/s, as a share of the peak", beside, MIN_BESIDE_DELIVERY),
    ]


def kept_up(one):
    """What was acknowledged and also delivered, a second."""
    return min(one.per_second, one.delivered_per_second)


def median_of(rounds, size, kind, figure):
    found = [getattr(one["passes"][size][kind], figure) for one in rounds if kind in one["passes"][size]]
    return median(found) if found else None


def ratio(rounds, size, needed, upper, lower):
    """The median of the rounds' own ratios, for the machine's pace drifts; None without a round to take one from."""
    whole = [one for one in rounds if all(kind in one["passes"][size] for kind in needed)]
    return median(upper(one) / lower(one) for one in whole) if whole else None


def sync_micros(one):
    _per_second, p50_micros, _p99_micros = one["syncs"]
    return p50_micros


def at_least(what, found, limit):
    return what, f"≥ {limit:g}", found, found is not None and found >= limit


def at_most(what, found, limit):
    return what, f"≤ {limit:g}", found, found is not None and found <= limit


def print_report(found):
    rows = [("body", "", "acknowledgements/s", "p50 ms", "p99 ms", "CPU µs each", "delivered/s", "passes")]
    syncs = [one["syncs"] for one in found["rounds"] + found["paced"]]
    per_second, p50, p99 = (median(column) for column in zip(*syncs))
    rows.append(("4 KiB", "fdatasync alone", f"{per_second:,.0f}", millis(p50), millis(p99), "", "", str(len(syncs))))
    for size, paces in found["paces"].items():
        label = f"{size // 1024} KiB"
        bare = [one["bare"][size] for one in found["rounds"]]
        rows.append((label, "bare store", f"{median(bare):,.0f}", "", "", "", "", str(len(bare))))
        rows += [(label, kind, *cells(found["rounds"], size, kind)) for kind in KINDS]
        for kind, pace in paces.items():
            rows.append((label, f"{kind}, at {pace:,.0f}/s", *cells(found["paced"], size, kind)))
    print_table(rows, left_columns=2)
    print()
    rows = [("what", "limit", "measured", "")]
    for what, limit, measured, is_met in found["verdicts"]:
        rows.append((what, limit, "–" if measured is None else f"{measured:.2f}", word(is_met)))
    print_table(rows, left_columns=1)


def cells(rounds, size, kind):
    """Medians of a kind's passes."""
    count = sum(kind in one["passes"][size] for one in rounds)
    if count == 0:
        return ("–",) * 5 + ("0",)
    per_second, p50, p99, cpu, delivered = (median_of(rounds, size, kind, figure) for figure in FIGURES)
    return f"{per_second:,.0f}", millis(p50), millis(p99), f"{cpu:.0f}", f"{delivered:,.0f}", str(count)


def millis(micros):
    return f"{micros / 1000:.2f}"
