"""What `compression.py` reads off its runs: rows, and means over seeds."""

from __future__ import annotations

import statistics
from typing import Any

from compression_arms import SHARES
from workers import Job, Outcome

# Of an arm whose networks were trained further at their lambda by the bound.
FURTHER = ", trained on by its bound"


def run_rows(arm: str, job: Job, outcome: Outcome) -> list[dict[str, Any]]:
    """A row for every lambda that a run is read off at, and one for what was trained on from there."""
    head = {"arm": arm, "hypernet": job.parameters["hypernet"], "seed": job.parameters["seed"]}
    if "error" in outcome:
        return [{**head, "lambda": job.parameters["lambda"], "error": outcome["error"]}]
    result, settings = outcome["result"], job.config["compress"]
    rows = []
    for lam, name, found in _found(arm, result["compression"]):
        curve = [
            {
                "fraction": round(point["fraction"], 5),
                "kept": point["kept"],
                "bytes": point.get("bytes"),
                **{part: _error(point[f"{part}_accuracy"]) for part in ("val", "test")},
                **{
                    f"tuned_{part}": _error(point["finetuned"][f"{part}_accuracy"])
                    for part in ("val", "test")
                    if "finetuned" in point
                },
                "tuned_at": point.get("finetuned", {}).get("learning_rate"),
            }
            for point in found["curve"]
        ]
        row = {**head, "arm": name, "lambda": lam, "curve": curve, "kept": found.get("z_above_1")}
        row |= {key: found[key] for key in ("objective", "expected_log_likelihood", "kl", "test_nll", "test_ece")}
        row |= {
            "epochs": settings["epochs"],
            "lambdas_per_step": settings.get("lambdas_per_step", 1),
            "training_seconds": result["training_seconds"],
            "seconds": outcome["seconds"],
        }
        rows.append(row)
    return rows


def _found(arm: str, results: list[dict[str, Any]]) -> list[tuple[float, str, dict[str, Any]]]:
    """Lambda, name of the arm, and figures."""
    found = []
    for one in results:
        found.append((one["lambda"], arm, one))
        if "posterior_finetuned" in one:
            found.append((one["lambda"], f"{arm}{FURTHER}", one["posterior_finetuned"]))
    return found


def _error(accuracy: float) -> float:
    return round(100 * (1 - accuracy), 3)


class Curves:
    """Means over seeds of an arm, by lambda and share that is left out.

    Args:
        rows: Of all arms.
        arm: Its name.
        hypernet: The kind of hypernetwork, where the arm has several; "constant" for direct runs.
    """

    def __init__(self, rows: list[dict[str, Any]], arm: str, hypernet: str | None = None) -> None:
        self.rows = [
            row
            for row in rows
            if row["arm"] == arm and "error" not in row and (hypernet is None or row["hypernet"] == hypernet)
        ]

    def values(self, lam: float, fraction: float, name: str) -> list[float]:
        """Of "val", "test", "tuned_val" or "tuned_test", in the order of the seeds."""
        return [
            point[name]
            for row in sorted(self.rows, key=lambda row: row["seed"])
            for point in row["curve"]
            if row["lambda"] == lam and abs(point["fraction"] - fraction) < 1e-4 and name in point
        ]

    def mean(self, lam: float, fraction: float, name: str) -> float | None:
        """Of `values`; None where there are none."""
        values = self.values(lam, fraction, name)
        return statistics.fmean(values) if values else None

    def sizes(self, fraction: float) -> list[int]:
        """Bytes of all networks of a share."""
        points = [point for row in self.rows for point in row["curve"] if abs(point["fraction"] - fraction) < 1e-4]
        return [point["bytes"] for point in points if point.get("bytes")]

    def mean_of(self, lam: float, name: str) -> float | None:
        """Mean over seeds of a figure that the row has itself: "objective", "kept" say."""
        values = [row[name] for row in self.rows if row["lambda"] == lam and row.get(name) is not None]
        return statistics.fmean(values) if values else None

    @property
    def lambdas(self) -> list[float]:
        """Those that were run, rising."""
        return sorted({row["lambda"] for row in self.rows})

    @property
    def fractions(self) -> list[float]:
        """Shares that are left out, rising."""
        return [point["fraction"] for point in self.rows[0]["curve"]] if self.rows else []

    def best(self, fraction: float, tuned: bool = False) -> tuple[float, float] | None:
        """Lambda of the smallest mean validation error, and the mean test error there."""
        before = "tuned_" if tuned else ""
        means = {lam: self.mean(lam, fraction, f"{before}val") for lam in self.lambdas}
        known = {lam: value for lam, value in means.items() if value is not None}
        if not known:
            return None
        lam = min(known, key=known.__getitem__)
        found = self.mean(lam, fraction, f"{before}test")
        return None if found is None else (lam, found)

    def removable(self, lam: float, loss: float, own: bool = False) -> float:
        """The largest share up to which the mean test error is at most that of the best whole network, of all lambda,
        and `loss` points; what has learned nothing has nothing to lose. `own`: than that of the same lambda."""
        errors = [self.mean(one, 0.0, "test") for one in self.lambdas if not own or one == lam]
        whole = min((error for error in errors if error is not None), default=None)
        found = 0.0
        for fraction in self.fractions:
            error = self.mean(lam, fraction, "test")
            if whole is None or error is None or error > whole + loss:
                break
            found = fraction
        return found


def gaps(rows: list[dict[str, Any]], arm: str, hypernet: str) -> dict[float, float]:
    """How far J of an arm's runs is from the largest that is known, by lambda: the mean over seeds, in nats.

    The largest is of all kinds, as trained for all lambda and as trained on at this one, of the same prior and seed: a
    lower bound of the optimum, and the gap one of the gap to that, which nobody knows.
    """
    known: dict[tuple[float, int], float] = {}
    for row in rows:
        if row["arm"] in (arm, arm + FURTHER) and "objective" in row:
            at = row["lambda"], row["seed"]
            known[at] = max(known.get(at, row["objective"]), row["objective"])
    found: dict[float, list[float]] = {}
    for row in Curves(rows, arm, hypernet).rows:
        if "objective" in row:
            found.setdefault(row["lambda"], []).append(known[row["lambda"], row["seed"]] - row["objective"])
    return {lam: statistics.fmean(values) for lam, values in found.items()}


def print_curves(rows: list[dict[str, Any]]) -> None:
    """A line for every arm, kind and lambda: mean test errors by compression, before and after fine-tuning."""
    for arm, kind in dict.fromkeys((row["arm"], row.get("hypernet")) for row in rows):
        curves = Curves(rows, arm, kind)
        if not curves.rows:
            print(f"{arm}, {kind}: not run")
            continue
        shares = all(f in {*SHARES, *(i / 10 for i in range(10)), 0.95} for f in curves.fractions)
        names = [f"{f:.0%}" if shares else f"{1 / (1 - f):.0f} x" for f in curves.fractions]
        print(f"\n{f'{arm}, {kind}':<40}{'kept':>9}" + "".join(f"{name:>14}" for name in names))
        for lam in curves.lambdas:
            kept = curves.mean_of(lam, "kept")
            cells = "".join(f"{_cell(curves, lam, f):>14}" for f in curves.fractions)
            print(f"{'lambda ' + format(lam, 'g'):<40}{'' if kept is None else format(kept, '.0f'):>9}{cells}")
    print()


def _cell(curves: Curves, lam: float, fraction: float) -> str:
    raw, tuned = (curves.mean(lam, fraction, name) for name in ("test", "tuned_test"))
    return (f"{raw:.2f}" if raw is not None else "") + (f" / {tuned:.2f}" if tuned is not None else "")
