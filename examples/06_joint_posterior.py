"""One lambda for structure and weights: a single search gives networks of every size, with their weights.

The search finds q(structure, weights | lambda) on the digits. At five lambda the architecture is read off with its
weights, which costs no step of training, and cut by relative density to ever fewer of them: the figure shows what each
is worth on test data against the parameters that are left. Printed beside are the negative log-likelihood of the
network of the means and of ten draws of all weights, and what the architectures are worth when NNI's trials train them
from the beginning. No network access; three to five minutes on two cores.

    python examples/06_joint_posterior.py
    python examples/06_joint_posterior.py --output runs/mine --set search.epochs=100 --set compress.finetune_epochs=0

One of these networks as a file: nni-bayes-nas export runs/joint-digits --compressed search-s0 --lambda L --fraction F
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from nni_bayes_nas.cli import main as command
from nni_bayes_nas.experiment.record import read_json

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "joint-digits.yaml")
parser.add_argument("--output", type=Path, default=Path("runs/joint-digits"))
parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change the configuration")
parser.add_argument("--resume", action="store_true", help="go on with the run in --output")


def left(row, kept):
    """Parameters that are left where so many weights are."""
    whole = row["curve"][0]
    return row["params"] - round(max(1, whole["kept"]) * whole["compression"]) + kept


def draw(rows, retrained, path):
    """Accuracy against what is left, and what is left against lambda."""
    figure, (accuracy, size) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = plt.get_cmap("viridis")([i / max(1, len(rows) - 1) for i in range(len(rows))])
    for colour, row in zip(colours, rows, strict=True):
        x = [left(row, point["kept"]) for point in row["curve"]]
        cut = [100 * point["test_accuracy"] for point in row["curve"]]
        tuned = [100 * point.get("finetuned", point)["test_accuracy"] for point in row["curve"]]
        accuracy.plot(x, cut, ":", color=colour, marker="o", ms=3)
        accuracy.plot(x, tuned, "-", color=colour, marker="o", ms=4, label=f"λ = {row['lambda']:.3g}")
        accuracy.plot(x[:1], cut[:1], "s", color=colour, ms=8)
        accuracy.plot(row["params"], 100 * retrained[row["lambda"]], "x", color=colour, ms=8, mew=2)
    best = max(100 * point["test_accuracy"] for row in rows for point in row["curve"])
    accuracy.set(xscale="log", ylim=(best - 20, best + 1), xlabel="parameters that are left", ylabel="test accuracy, %")
    accuracy.set_title("■ read off, dotted: cut, lines: and trained on; × trained from the beginning", fontsize=9)
    accuracy.legend(fontsize=8, frameon=False, loc="lower right")
    lams = [row["lambda"] for row in rows]
    size.plot(lams, [row["params"] for row in rows], "s-", color="#0072b2", label="of the architecture")
    size.plot(lams, [left(row, row["z_above_1"]) for row in rows], "o-", color="#d55e00", label="above one sd")
    size.set(xscale="log", yscale="log", xlabel="λ", ylabel="parameters")
    size.set_title("one search: q(structure, weights | λ)", fontsize=9)
    size.legend(fontsize=8, frameon=False)
    for axis in (accuracy.xaxis, size.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, size):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Run, say what came out, draw it."""
    options = parser.parse_args()
    folder = options.output.resolve()
    changes = [part for change in options.set for part in ("--set", change)]
    more = ["--resume"] if options.resume else []
    code = command(["run", str(options.config), "--output", str(folder), *changes, *more])
    if code:
        return code
    summary = read_json(folder / "summary.json")
    (found,) = (one for one in summary["compression"] if one["name"] == "search-s0")
    rows = sorted(found["rows"], key=lambda row: row["lambda"])
    retrained = {row["lambda"]: row["test_accuracy_mean"] for row in summary["architectures"]}
    heads = ("parameters", "above 1 sd", "test, %", "NLL", "NLL, drawn", "ECE, drawn", "retrained, %")
    print(f"\n{'lambda':>8}" + "".join(f"{head:>13}" for head in heads))
    for row in rows:
        lam, drawn = row["lambda"], row["predictive"]
        sizes = f"{row['params']:>13}{left(row, row['z_above_1']):>13}"
        numbers = (
            f"{100 * row['test_accuracy']:>13.2f}{row['test_nll']:>13.4f}{drawn['nll']:>13.4f}{drawn['ece']:>13.4f}"
        )
        print(f"{lam:>8.3g}{sizes}{numbers}{100 * retrained[lam]:>13.2f}")
    draw(rows, retrained, folder / "joint.png")
    print(f"\n{folder / 'joint.png'}\n{folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
