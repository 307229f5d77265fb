"""From a bank to networks for new data: fitting a meta-model and a ranker, and asking them."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nni_bayes_nas.coercion import require
from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.fused import FUSED
from nni_bayes_nas.prediction.bank import Entry, check_bank
from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.encoder import N_SIZES, Condition, SetEncoder, condition_of, with_classes
from nni_bayes_nas.prediction.inner_search import strongest
from nni_bayes_nas.prediction.many import require_finite
from nni_bayes_nas.prediction.random_nets import completed
from nni_bayes_nas.prediction.ranker import SHORT, Ranker, describe, short_losses
from nni_bayes_nas.prediction.seq2seq import Seq2Seq
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture, of_classes, of_columns
from nni_bayes_nas.prediction.tasks import TaskData
from nni_bayes_nas.prediction.tokens import Vocabulary
from nni_bayes_nas.prediction.training import seeds_of
from nni_bayes_nas.prediction.tree_meta import DoublyRecurrentMeta

Kind = Literal["seq2seq", "doubly_recurrent"]
KINDS: dict[Kind, Any] = {"seq2seq": Seq2Seq, "doubly_recurrent": DoublyRecurrentMeta}
REFINE_STEPS = 80
# Of so many networks that are drawn one stays as it is, too.
AS_DRAWN = 8
_NUMBERS = 0


@dataclass(frozen=True)
class Fitting:
    """How a meta-model is fitted.

    Args:
        steps: Of Adam, with a cosine schedule to zero.
        batch_size: Entries of a step.
        learning_rate: At the first step.
        temperature: Of the soft targets, in standard deviations of the losses of an entry's networks: which of them a
            step sees is drawn with probabilities exp(-loss / temperature).
        clip: Norm to which the gradient is clipped.
        numberings: Of the classes of an entry, its own among them: numbers of classes mean nothing, and what is learned
            of one holds for another. 1: as they are.
        seed: Of everything that is drawn.
    """

    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 3e-3
    temperature: float = 0.5
    clip: float = 1.0
    numberings: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "temperature", "clip", "numberings"):
            require(getattr(self, name) > 0, name, "must be positive", getattr(self, name), "raise it")


@dataclass(frozen=True)
class Predicted:
    """A network for given data.

    Attributes:
        net: Its inputs are the columns of the data.
        log_prob: Of the meta-model, in nats, of the network as it was drawn.
        score: Of the ranker: the least is expected to be the best of those that were drawn with it; None without one.
        drawn: Connections that the meta-model drew; the others fill the budget. 0 where only layers and activations are
            its own, see `Predictor.predict`.
    """

    net: SparseArchitecture
    log_prob: float
    score: float | None
    drawn: int


class Predictor:
    """A meta-model of networks given data, and what ranks them.

    Args:
        kind: Of the decoder.
        max_features: Columns that data may have.
        max_classes: Classes that they may have.
        vocabulary: Depths and widths of the networks.
        dim: Of encoder and decoder.
        seed: Of the initial weights.
        rank_steps: Of the short trainings by which networks are ranked, see `short_losses`.
        refine_steps: Of the short trainings by which connections are refined, see `predict`; 0: they are not.

    Attributes:
        model: The meta-model.
        loss: Of the last step of `fit`, in nats; None before.
        ranker: What ranks networks; None before `fit_ranker`.
    """

    def __init__(
        self,
        kind: Kind = "seq2seq",
        *,
        max_features: int = 64,
        max_classes: int = 10,
        vocabulary: Vocabulary = Vocabulary(),  # noqa: B008  it is frozen
        dim: int = 64,
        seed: int = 0,
        rank_steps: int = SHORT.steps,
        refine_steps: int = REFINE_STEPS,
    ) -> None:
        require(kind in KINDS, "kind", f"must be one of {', '.join(KINDS)}", kind, "seq2seq say")
        self.kind, self.max_features, self.max_classes = kind, max_features, max_classes
        self.vocabulary, self.dim, self.seed = vocabulary, dim, seed
        require(refine_steps >= 0, "refine_steps", "must be at least 0", refine_steps, "0 refines nothing")
        self.short, self.refine_steps = replace(SHORT, steps=rank_steps), refine_steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = KINDS[kind](SetEncoder(max_features, max_classes, dim), vocabulary, dim)
        self.loss: float | None = None
        self.ranker: Ranker | None = None

    def condition(
        self,
        data: TaskData,
        budget: int,
        n_classes: int,
        n_objects: int | None = None,
        order: Sequence[int] | None = None,
    ) -> Condition:
        """What the meta-model sees of data; see `condition_of`."""
        ranks = None if order is None else torch.tensor(order)
        return condition_of(
            data.x,
            data.y,
            budget,
            n_classes=n_classes,
            n_objects=n_objects,
            order=ranks,
            max_features=self.max_features,
            max_classes=self.max_classes,
        )

    def fit(
        self, entries: Sequence[Entry], data_of: Callable[[Entry], TaskData], how: Fitting, *, ranker: bool = True
    ) -> list[float]:
        """Learn from a bank.

        Args:
            entries: Of it.
            data_of: The data of an entry's task.
            how: See `Fitting`.
            ranker: Whether to `fit_ranker` too.

        Returns:
            -log p of the networks of each step, in nats: its mean over the batch.

        Raises:
            ConfigError: A bank from which nothing can be learned, or data for which the model was not built.
            NumericsError: A loss is not finite.
        """
        check_bank(entries)
        data = [data_of(entry) for entry in entries]
        conditions = [
            # In the order that its networks have their inputs in, whatever would be found today.
            self.condition(one, entry.budget, len(entry.task.classes), order=entry.order)
            for entry, one in zip(entries, data, strict=True)
        ]
        chances = [soft_targets(entry, how.temperature) for entry in entries]
        generator = torch.Generator().manual_seed(how.seed)
        # The same for all seeds: canonical forms of networks with other numbers of the classes are remembered.
        numbers = torch.Generator().manual_seed(_NUMBERS)
        numberings = [
            [
                list(range(one.n_classes)),
                *(torch.randperm(one.n_classes, generator=numbers).tolist() for _ in range(how.numberings - 1)),
            ]
            for one in conditions
        ]
        seen = [
            [with_classes(one, places, self.max_features) for places in own]
            for one, own in zip(conditions, numberings, strict=True)
        ]
        optimizer = torch.optim.Adam(self.model.parameters(), how.learning_rate, fused=FUSED)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
        losses = []
        self.model.train()
        for step in range(how.steps):
            batch = torch.randperm(len(entries), generator=generator)[: how.batch_size].tolist()
            picked = [int(torch.multinomial(chances[i], 1, generator=generator)) for i in batch]
            which = torch.randint(how.numberings, (len(batch),), generator=generator).tolist()
            nets = [
                of_classes(entries[i].found[k].net, numberings[i][j]) if j else entries[i].found[k].net
                for i, k, j in zip(batch, picked, which, strict=True)
            ]
            loss = self.model.losses([seen[i][j] for i, j in zip(batch, which, strict=True)], nets).mean()
            require_finite(loss, "the meta-model", step)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), how.clip)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        self.model.eval()
        self.loss = losses[-1]
        if ranker:
            self.fit_ranker(entries, data_of)
        return losses

    def fit_ranker(self, entries: Sequence[Entry], data_of: Callable[[Entry], TaskData]) -> None:
        """Learn from a bank to rank, which `fit` does too if it may: for a meta-model that was loaded.

        Args:
            entries: Of it.
            data_of: The data of an entry's task.
        """
        descriptions, losses, n_objects = [], [], []
        for entry in entries:
            one = data_of(entry)
            every = [*entry.found, *entry.others]
            ranked = one.in_order(torch.tensor(entry.order))
            descriptions.append(describe([each.net for each in every], ranked))
            losses.append([each.loss for each in every])
            n_objects.append(len(one.y))
        self.ranker = Ranker(self.seed).fit(descriptions, losses, n_objects)

    def predict(
        self,
        data: TaskData,
        budget: int,
        n_classes: int,
        *,
        n: int = 16,
        n_objects: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        seen: TaskData | None = None,
        refine: bool = True,
    ) -> list[Predicted]:
        """Networks for data, the best one first; no validation object is looked at.

        A network that is drawn with fewer connections than the budget has gets more, see `completed`: what it leaves
        unused is worth more than what the decoder says of it. Of all the layers and activations stay and connections
        are `refined`, for a short training on the data says more of these than a decoder knows; the most probable
        eighth stand beside them as they were drawn, and the ranker picks among all.

        Args:
            data: Objects that are looked at.
            budget: Connections at most.
            n_classes: Of the data.
            n: Networks that are drawn, at least one; equal ones come once.
            n_objects: There are in all, where only a part is given.
            seed: Of the draws.
            temperature: Of all but the first, which is the most probable one, token by token.
            seen: Objects that the decoder is shown in place of these, a control: if networks are as good then, it has
                learned nothing of what suits which data. Budget and numbers of objects, features and classes stay.
            refine: False: all stay as they were drawn, as without `refine_steps`.

        Raises:
            ConfigError: No network is wanted, a budget below the smallest network's, or data for which the model was
                not built.
        """
        require(n >= 1, "n", "must be at least 1", n, "16, say")
        condition = self.condition(data, budget, n_classes, n_objects)
        if seen is not None:
            other = self.condition(seen, budget, seen.n_classes)
            scalars = torch.cat([condition.scalars[:N_SIZES], other.scalars[N_SIZES:]])
            condition = replace(condition, objects=other.objects, scalars=scalars)
        generator = torch.Generator().manual_seed(seed)
        drawn = self.model.sample(condition, n, generator, temperature, greedy=1)
        by_form: dict[SparseArchitecture, tuple[float, int]] = {}
        filling, ordered = random.Random(seed), data.in_order(condition.order)
        for net, log_prob in drawn:
            by_form.setdefault(canonical(completed(net, budget, filling)), (log_prob, net.n_connections))
        if refine and self.refine_steps:
            own, known = list(by_form), by_form
            # Without a ranker nobody can choose between these and the others.
            likely = sorted(own, key=lambda net: -known[net][0]) if self.ranker is not None else []
            by_form = {net: known[net] for net in likely[: max(1, n // AS_DRAWN)]}
            for net, better in zip(own, self.refined(own, ordered, budget, seed), strict=True):
                log_prob, n_drawn = known[net]
                by_form.setdefault(canonical(better), (log_prob, n_drawn if better is net else 0))
        nets = list(by_form)
        scores: Sequence[float | None] = [None] * len(nets)
        if self.ranker is not None:
            scores = self.ranked(nets, ordered, seed)
        found = [
            Predicted(of_columns(net, condition.order.tolist()), by_form[net][0], score, by_form[net][1])
            for net, score in zip(nets, scores, strict=True)
        ]
        return sorted(found, key=lambda one: -one.log_prob if one.score is None else one.score)

    def refined(
        self, nets: Sequence[SparseArchitecture], data: TaskData, budget: int, seed: int
    ) -> list[SparseArchitecture]:
        """Of every network its layers and activations, with the largest connections of the dense one after a short
        training on the data (see `strongest`); itself where that diverges.

        Args:
            nets: Their inputs are ranks of features.
            data: In the order of these.
            budget: Connections at most.
            seed: Of the initial weights.
        """

        def of(some: list[SparseArchitecture], seeds: list[int]) -> list[SparseArchitecture]:
            try:
                return strongest(some, data, budget, seeds, replace(SHORT, steps=self.refine_steps))
            except NumericsError:  # of one; the others are trained by themselves
                if len(some) == 1:
                    return some
                return [net for one, own in zip(some, seeds, strict=True) for net in of([one], [own])]

        return of(list(nets), seeds_of(seed, len(nets)))

    def ranked(self, nets: Sequence[SparseArchitecture], data: TaskData, seed: int) -> list[float]:
        """What the ranker says of networks, whoever drew them; the least is expected to be the best of these.

        Args:
            nets: Their inputs are ranks of features.
            data: In the order of these.
            seed: Of the short trainings by which they are ranked.

        Raises:
            ConfigError: There is no ranker: the model was not fitted.
        """
        if self.ranker is None:
            raise ConfigError("networks are ranked by what was fitted to a bank, got a model that was not; call fit.")
        short = short_losses(nets, data, seed, self.short)
        return list(self.ranker.scores(describe(nets, data), short, len(data.y)))

    def save(self, path: Path) -> None:
        """Write the meta-model; `fit_ranker` fits the ranker anew from the bank.

        Args:
            path: Of a file of torch's.
        """
        sizes = {"max_features": self.max_features, "max_classes": self.max_classes, "dim": self.dim}
        steps = {"rank_steps": self.short.steps, "refine_steps": self.refine_steps}
        made: dict[str, Any] = {"kind": self.kind, "seed": self.seed, **steps, **sizes}
        held = {"made": made, "vocabulary": asdict(self.vocabulary), "model": self.model.state_dict()}
        torch.save(held, path)

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """Of `save`.

        Raises:
            ConfigError: The file is none.
        """
        try:
            held = torch.load(path, weights_only=True)
            made, words = dict(held["made"]), dict(held["vocabulary"])
            vocabulary = Vocabulary(**{**words, "widths": tuple(words["widths"])})
            predictor = cls(made.pop("kind"), vocabulary=vocabulary, **made)
            predictor.model.load_state_dict(held["model"])
        except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise ConfigError(f"a meta-model must be what `save` wrote, but reading {path} fails: {said}.") from error
        predictor.model.eval()
        return predictor


def soft_targets(entry: Entry, temperature: float) -> Tensor:
    """Chances of an entry's networks: a softmax of their losses, in standard deviations of these."""
    losses = torch.tensor([one.loss for one in entry.found], dtype=torch.float64)
    if len(losses) < 2:
        return torch.ones(1, dtype=torch.float64)
    return (-losses / losses.std().clamp_min(1e-9) / temperature).softmax(0)
