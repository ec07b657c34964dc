"""What the passes amount to: medians, ratios, verdicts, tables."""

from statistics import median

MIN_REQUESTS_RATIO = 0.97
MAX_P99_RATIO = 1.15
FIGURES = ("cpu_micros", "per_second", "p50_micros", "p99_micros", "rss_bytes")


def summarize(case, rounds, tally):
    """One case as plain data. `rounds`: one dict of clean passes by contestant for each round."""
    contestants = {}
    for name in tally:
        passes = [passes[name] for passes in rounds if name in passes]
        contestants[name] = {**medians(passes), "passes": [vars(one) for one in passes], **tally[name]}
    summary = {"case": case.name, "contestants": contestants}
    pairs = [passes for passes in rounds if "hookward" in passes and "haproxy" in passes]
    if pairs:
        summary["ratios"] = judge(case, pairs)
    return summary


def medians(passes):
    if not passes:
        return {}
    return {figure: median(getattr(one, figure) for one in passes) for figure in FIGURES}


def judge(case, pairs):
    """hookward to HAProxy: the median of the rounds' own ratios, for the machine's pace drifts."""

    def ratios(figure):
        return [getattr(one["hookward"], figure) / getattr(one["haproxy"], figure) for one in pairs]

    cpu = ratios("cpu_micros")
    verdict = {
        "cpu": median(cpu),
        "cpu_lowest": min(cpu),
        "cpu_highest": max(cpu),
        "must": case.must,
        "goal": case.goal,
        "must_met": median(cpu) <= case.must,
        "goal_met": median(cpu) <= case.goal,
        "per_second": median(ratios("per_second")),
        "p99": median(ratios("p99_micros")),
    }
    if case.pace_judged:
        verdict["per_second_met"] = verdict["per_second"] >= MIN_REQUESTS_RATIO
        verdict["p99_met"] = verdict["p99"] <= MAX_P99_RATIO
    return verdict


def missed(summary):
    ratios = summary.get("ratios", {})
    return [name for name in ("must_met", "per_second_met", "p99_met") if not ratios.get(name, True)]


def print_report(summaries):
    rows = [("case", "contestant", "CPU µs/request", "requests/s", "p50 ms", "p99 ms", "RSS MiB")]
    rows[0] += ("passes", "left out")
    for summary in summaries:
        for name, found in summary["contestants"].items():
            out = str(found["disturbed"]) + (f" + {found['faulty']} failed" if found["faulty"] else "")
            if not found["passes"]:
                rows.append((summary["case"], name, "–", "–", "–", "–", "–", "0", out))
                continue
            rows.append(
                (
                    summary["case"],
                    name,
                    f"{found['cpu_micros']:.1f}",
                    f"{found['per_second']:,.0f}",
                    f"{found['p50_micros'] / 1000:.2f}",
                    f"{found['p99_micros'] / 1000:.2f}",
                    f"{found['rss_bytes'] / 2**20:.1f}",
                    str(len(found["passes"])),
                    out,
                )
            )
    print_table(rows, left_columns=2)

    rows = [("hookward / HAProxy", "CPU", "range", "must", "", "goal", "", "requests/s", "≥ 0.97", "p99", "≤ 1.15")]
    for summary in summaries:
        found = summary.get("ratios")
        if found:
            rows.append(
                (
                    summary["case"],
                    f"{found['cpu']:.2f}",
                    f"{found['cpu_lowest']:.2f}–{found['cpu_highest']:.2f}",
                    f"{found['must']:.2f}",
                    word(found["must_met"]),
                    f"{found['goal']:.2f}",
                    word(found["goal_met"]),
                    f"{found['per_second']:.2f}",
                    word(found.get("per_second_met")),
                    f"{found['p99']:.2f}",
                    word(found.get("p99_met")),
                )
            )
    if len(rows) > 1:
        print()
        print_table(rows, left_columns=1)


def word(met):
    return "not judged" if met is None else "MET" if met else "MISSED"


def print_table(rows, left_columns):
    """A Markdown table, so that it can be pasted where it is kept."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column < left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            rules = [
                "-" * width if column < left_columns else "-" * (width - 1) + ":"
                for column, width in enumerate(widths)
            ]
            print("| " + " | ".join(rules) + " |")
