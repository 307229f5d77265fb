"""A small network for all data, predicted from searches on small parts of data sets.

NNI trials search networks of few connections on parts of the digits, of wine, breast cancer and made-up tables; a
meta-model learns which network suits which part; it predicts networks for all digits, which further trials train beside
others of as many connections. The figure shows what they are worth, and where predictions for parts that were kept out
were wrong. No network access; two to three minutes on two cores.

    python examples/08_predict_architecture.py
    python examples/08_predict_architecture.py --output runs/mine --set predict.tasks=80 --set data.name=wine

The same searches for other data:

    python examples/08_predict_architecture.py --output runs/other --set data.name=breast_cancer \\
        --set predict.tasks=0 --set predict.bank=runs/mine
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from nni_bayes_nas.cli import main as command
from nni_bayes_nas.experiment.record import read_json

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "predict-digits.yaml")
parser.add_argument("--output", type=Path, default=Path("runs/predict-digits"))
parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change the configuration")
parser.add_argument("--resume", action="store_true", help="go on with the run in --output")


def draw(prediction, path):
    """Accuracy against connections, and losses of predictions for parts that were kept out."""
    figure, (accuracy, errors) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = {}
    for verified in prediction["verified"]:
        for row in verified["rows"]:
            name = f"predicted, {row['method']}" if row["predicted"] else row["method"]
            lines.setdefault(name, []).append((row["connections"], verified["budget"], 100 * row["test_accuracy"]))
    for i, (name, points) in enumerate(lines.items()):
        if name == "dense":
            accuracy.axhline(points[0][2], color="0.5", ls=":", label=f"dense, {points[0][0]} connections")
            continue
        ours = name.startswith("predicted")
        style = {"lw": 2.2, "marker": "o"} if ours else {"lw": 1, "marker": "s", "ls": "--"}
        accuracy.plot([b for _, b, _ in points], [a for *_, a in points], ms=4, color=f"C{i}", label=name, **style)
    budgets = sorted({one["budget"] for one in prediction["verified"]})
    accuracy.set(xscale="log", xlabel="connections", ylabel="test accuracy, %", title="networks for all data")
    accuracy.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    accuracy.minorticks_off()
    accuracy.legend(fontsize=8, frameon=False)
    rows = [row for fit in prediction["fits"] for row in fit["errors"]]
    for i, source in enumerate(sorted({row["source"] for row in rows})):
        mine = [row for row in rows if row["source"] == source]
        errors.plot(
            [row["loss_others"] - row["loss_found"] for row in mine],
            [row["loss"] - row["loss_found"] for row in mine],
            "o",
            color=f"C{i}",
            label=source,
        )
    most = max([0.01, *(row["loss_others"] - row["loss_found"] for row in rows)])
    errors.plot([0, most], [0, most], color="0.5", lw=1)
    errors.axhline(0, color="0.5", lw=1)
    errors.set(
        xlabel="mean loss of the networks of the search, above the best",
        ylabel="loss of the predicted one, above the best",
        title="parts that were kept out",
    )
    errors.legend(fontsize=8, frameon=False)
    for axes in (accuracy, errors):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Run, say what came out, draw it."""
    options = parser.parse_args()
    folder = options.output.resolve()
    changes = [
        part for change in [*options.set, "experiment.plan=architecture_prediction"] for part in ("--set", change)
    ]
    more = ["--resume"] if options.resume else []
    code = command(["run", str(options.config), "--output", str(folder), *changes, *more])
    if code:
        return code
    prediction = read_json(folder / "summary.json")["prediction"]
    bank = prediction["bank"]
    print(f"\n{bank['entries']} entries of {bank['tasks']} parts in {bank['seconds']:.0f} s of searching")
    for fit in prediction["fits"]:
        seconds = max(one["seconds"] for one in fit["predictions"])
        fitted = f"fitted in {fit['seconds_fit']:.0f} s, its ranker in {fit['seconds_ranker']:.0f} s"
        print(f"{fit['kind']}: {fitted}, a prediction takes {seconds:.2f} s at most")
    print(f"\n{'budget':>8}  {'network':<30}{'connections':>12}{'validation, %':>15}{'test, %':>10}")
    for verified in prediction["verified"]:
        for row in verified["rows"]:
            name = f"predicted, {row['method']}" if row["predicted"] else row["method"]
            scores = f"{100 * row['val_accuracy']:>15.2f}{100 * row['test_accuracy']:>10.2f}"
            print(f"{verified['budget']:>8}  {name:<30}{row['connections']:>12}{scores}")
    draw(prediction, folder / "prediction.png")
    print(f"\n{folder / 'prediction.png'}\n{folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
