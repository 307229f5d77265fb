"""A recurrent decoder with attention: the tokens of a network, one after the other, given a task."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.coercion import require
from nni_bayes_nas.prediction.encoder import Condition, SetEncoder
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.tokens import Grammar, Vocabulary, encode


class _Lesson(NamedTuple):
    """The tokens of a network, what the grammar leaves open before each, and where each is."""

    tokens: Tensor
    allowed: Tensor
    places: Tensor


@functools.lru_cache(maxsize=1 << 14)
def _lesson(net: SparseArchitecture, budget: int, vocabulary: Vocabulary) -> _Lesson:
    # A fit sees a network many times, and its grammar is followed outside torch.
    sequence = encode(net, vocabulary)
    grammar = Grammar(vocabulary, net.n_inputs, net.n_outputs, budget)
    allowed = torch.zeros(len(sequence), vocabulary.size, dtype=torch.bool)
    places = torch.zeros(len(sequence), 4)
    for step, token in enumerate(sequence):
        allowed[step, grammar.allowed()] = True
        places[step] = torch.tensor(grammar.place)
        grammar.accept(token)
    return _Lesson(torch.tensor(sequence), allowed, places)


class Seq2Seq(nn.Module):
    """p(tokens | task), a GRU that attends to the vectors of the task in every step (Bahdanau et al., 2015).

    Networks are those of features by rank: input 0 is the feature that comes first in the order of the task.

    Args:
        encoder: Of tasks.
        vocabulary: Of tokens.
        dim: Of the decoder's state.
    """

    def __init__(self, encoder: SetEncoder, vocabulary: Vocabulary, dim: int = 96) -> None:
        super().__init__()
        self.encoder, self.vocabulary = encoder, vocabulary
        self.embed = nn.Embedding(vocabulary.size, dim)
        self.start = nn.Linear(encoder.dim, dim)
        self.keys = nn.Linear(encoder.dim, dim)
        self.values = nn.Linear(encoder.dim, dim)
        # Where in its layer, and in the list of its sources, the next token is.
        self.places = nn.Linear(4, dim)
        self.cell = nn.GRU(dim, dim, batch_first=True)
        self.out = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, vocabulary.size))

    def losses(self, conditions: Sequence[Condition], nets: Sequence[SparseArchitecture]) -> Tensor:
        """-log p(tokens | task) of every pair, in nats; tokens that the grammar leaves open alone count.

        Args:
            conditions: Tasks.
            nets: A network of each, its inputs by rank.
        """
        given = [
            _lesson(net, max(one.budget, net.n_connections), self.vocabulary)
            for net, one in zip(nets, conditions, strict=True)
        ]
        longest = max(len(lesson.tokens) for lesson in given)
        tokens = torch.full((len(nets), longest), self.vocabulary.END)
        allowed = torch.zeros(len(nets), longest, self.vocabulary.size, dtype=torch.bool)
        places = torch.zeros(len(nets), longest, 4)
        for i, lesson in enumerate(given):
            n = len(lesson.tokens)
            tokens[i, :n], allowed[i, :n], places[i, :n] = lesson.tokens, lesson.allowed, lesson.places
            allowed[i, n:, self.vocabulary.END] = True
        memory = self.encoder(conditions)
        state = self._state(memory)
        inputs = self.embed(tokens[:, :-1]) + self.places(places[:, 1:])
        hidden, _ = self.cell(inputs, state)
        logits = self._logits(hidden, memory).masked_fill(~allowed[:, 1:], float("-inf"))
        each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return each.reshape(len(nets), -1).sum(1)

    @torch.no_grad()
    def sample(
        self, condition: Condition, n: int, generator: torch.Generator, temperature: float = 1.0, greedy: int = 0
    ) -> list[tuple[SparseArchitecture, float]]:
        """Networks within the budget of a task, and their log p at temperature 1.

        Args:
            condition: The task.
            n: Networks.
            generator: Of the draws.
            temperature: Of the tokens; 0: the most probable token each time.
            greedy: The first so many have temperature 0.

        Raises:
            ConfigError: A negative temperature.
        """
        require(temperature >= 0, "temperature", "must not be negative", temperature, "1 draws from the model")
        grammars = [
            Grammar(self.vocabulary, condition.n_features, condition.n_classes, condition.budget) for _ in range(n)
        ]
        memory = self.encoder([condition]).expand(n, -1, -1)
        state, log_prob = self._state(memory), torch.zeros(n)
        last = torch.full((n,), self.vocabulary.BEGIN)
        for grammar in grammars:
            grammar.accept(self.vocabulary.BEGIN)
        while not all(grammar.done for grammar in grammars):
            allowed = torch.zeros(n, self.vocabulary.size, dtype=torch.bool)
            for i, grammar in enumerate(grammars):
                allowed[i, grammar.allowed() or [self.vocabulary.END]] = True
            places = torch.tensor([grammar.place for grammar in grammars])
            hidden, state = self.cell((self.embed(last) + self.places(places)).unsqueeze(1), state)
            logits = self._logits(hidden, memory)[:, 0].masked_fill(~allowed, float("-inf"))
            last = logits.argmax(-1)
            if temperature > 0 and greedy < n:
                chances = (logits[greedy:] / temperature).softmax(-1)
                last[greedy:] = torch.multinomial(chances, 1, generator=generator).flatten()
            log_prob += logits.log_softmax(-1).gather(1, last.unsqueeze(1)).flatten()
            for grammar, token in zip(grammars, last.tolist(), strict=True):
                if not grammar.done:
                    grammar.accept(token)
        return [(grammar.network(), value) for grammar, value in zip(grammars, log_prob.tolist(), strict=True)]

    def _state(self, memory: Tensor) -> Tensor:
        start: Tensor = self.start(memory.mean(1))
        return start.tanh().unsqueeze(0).contiguous()

    def _logits(self, hidden: Tensor, memory: Tensor) -> Tensor:
        keys, values = self.keys(memory), self.values(memory)
        attention = (hidden @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(-1)
        found: Tensor = self.out(torch.cat([hidden, attention @ values], -1))
        return found
