"""The posterior of a search: what it is sure of, draws of it as NNI trials, and an ensemble of what they trained.

One search on the digits gives a distribution over architectures. Five draws of it and the architecture of its mean are
retrained with ten seeds each, as trials of NNI's; the report says what is decided and what is open. Then the networks
are put together: for every seed, the ensemble weighted by the posterior against its best member, by the negative
log-likelihood of the test data. How they stand attacks, `nni-bayes-nas evaluate` on the run folder tells. No network
access; two to three minutes on two cores.

    python examples/05_posterior.py
    python examples/05_posterior.py --output runs/mine --set search.samples=8 --set retrain.epochs=20
"""

import argparse
from pathlib import Path

from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.cli import main as command
from nni_bayes_nas.experiment.evaluate import Settings, evaluate
from nni_bayes_nas.experiment.record import read_json
from nni_bayes_nas.report import write_report

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "posterior-digits.yaml")
parser.add_argument("--output", type=Path, default=Path("runs/posterior-digits"))
parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change the configuration")
parser.add_argument("--resume", action="store_true", help="go on with the run in --output")


def main() -> int:
    """Run, evaluate, say what came out."""
    options = parser.parse_args()
    folder = options.output.resolve()
    changes = [part for change in options.set for part in ("--set", change)]
    more = ["--resume"] if options.resume else []
    code = command(["run", str(options.config), "--output", str(folder), *changes, *more])
    if code:
        return code

    q = ArchitecturePosterior.from_dict(read_json(folder / "trials" / "search-s0" / "posterior.json"))
    print(f"\nentropy {q.entropy():.2f} of at most {q.log_count:.2f} nats; probability that an option is there:")
    for label, options_ in sorted(q.inclusion().items()):
        best = max(options_, key=lambda name: options_[name])
        print(f"  {label:<16}{best:<16}{options_[best]:.2f}")

    evaluate(folder, Settings(epsilons=(), damages=()))
    write_report([folder])
    print(f"\n{'':<38}{'seeds':>6}{'accuracy':>10}{'NLL':>9}{'ECE':>8}   NLL - best member (95 %)")
    for row in read_json(folder / "evaluation.json")["ensembles"]:
        scores, gap = row["scores"], row["difference"]
        interval = f"   {gap['mean']:+.4f} ({gap['low']:+.4f} ... {gap['high']:+.4f})" if gap else ""
        numbers = f"{scores['accuracy']:>10.4f}{scores['nll']:>9.4f}{scores['ece']:>8.4f}"
        print(f"{row['name']:<38}{len(row['seeds']):>6}{numbers}{interval}")
    print(f"\n{folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
