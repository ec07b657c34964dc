"""What the passes in queue mode amount to: medians, the limits, tables."""

from statistics import median

from harness.report import print_table, word

HELD, DELIVERING, PEER = "hookward, held", "hookward", "qhook"
MIN_OVER_PEER = 20
MIN_OVER_BARE_STORE = 0.5
MAX_P99_IN_SYNCS = 8
MIN_BESIDE_DELIVERY = 0.6
# Delivery is at the same rate when at most a tenth of what came in meanwhile was left lying.
MIN_DELIVERED = 0.9


def judge(size, rounds, paced):
    """The limits of one size of body as (what, limit, found, whether it is met)."""

    def pace(kind):
        return lambda one: one["passes"][size][kind].per_second

    over_peer = ratio(rounds, size, (DELIVERING, PEER), pace(DELIVERING), pace(PEER))
    over_store = ratio(rounds, size, (HELD,), pace(HELD), lambda one: one["bare"][size])
    in_syncs = ratio(paced, size, (HELD,), lambda one: one["passes"][size][HELD].p99_micros, sync_micros)
    beside = ratio(rounds, size, (HELD, DELIVERING), pace(DELIVERING), pace(HELD))
    delivered = ratio(
        rounds, size, (DELIVERING,), lambda one: one["passes"][size][DELIVERING].delivered_per_second, pace(DELIVERING)
    )
    label = f"{size // 1024} KiB"
    return [
        at_least(f"{label}: acknowledgements/s, as a multiple of qhook's", over_peer, MIN_OVER_PEER),
        at_least(f"{label}: acknowledgements/s, as a share of the bare store's", over_store, MIN_OVER_BARE_STORE),
        at_most(f"{label}: p99 at half the peak, in syncs", in_syncs, MAX_P99_IN_SYNCS),
        at_least(f"{label}: acknowledgements/s beside delivery, as a share of those without", beside, MIN_BESIDE_DELIVERY),
        at_least(f"{label}: delivered meanwhile, as a share of what came in", delivered, MIN_DELIVERED),
    ]


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
    for size, half in found["halves"].items():
        label = f"{size // 1024} KiB"
        bare = [one["bare"][size] for one in found["rounds"]]
        rows.append((label, "bare store", f"{median(bare):,.0f}", "", "", "", "", str(len(bare))))
        for kind in (HELD, DELIVERING, PEER):
            rows.append((label, kind, *cells(found["rounds"], size, kind)))
        for kind in (HELD, DELIVERING):
            rows.append((label, f"{kind}, at {half:,.0f}/s", *cells(found["paced"], size, kind)))
    print_table(rows, left_columns=2)
    print()
    rows = [("what", "limit", "measured", "")]
    for what, limit, measured, is_met in found["verdicts"]:
        rows.append((what, limit, "–" if measured is None else f"{measured:.2f}", word(is_met)))
    print_table(rows, left_columns=1)


def cells(rounds, size, kind):
    """Medians of a kind's passes."""
    passes = [one["passes"][size][kind] for one in rounds if kind in one["passes"][size]]
    if not passes:
        return ("–",) * 5 + ("0",)

    def middle(figure):
        return median(getattr(one, figure) for one in passes)

    return (
        f"{middle('per_second'):,.0f}",
        millis(middle("p50_micros")),
        millis(middle("p99_micros")),
        f"{middle('cpu_micros'):.0f}",
        f"{middle('delivered_per_second'):,.0f}",
        str(len(passes)),
    )


def millis(micros):
    return f"{micros / 1000:.2f}"
