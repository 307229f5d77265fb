"""Random sparse networks for tests."""

import random

from nni_bayes_nas.prediction.tokens import Grammar, Vocabulary

SMALL = Vocabulary(max_depth=3, widths=(1, 2, 3, 5), base=4)


def drawn(seed, vocabulary=SMALL, n_inputs=6, n_outputs=3, budget=None):
    """A network of random tokens, all that the grammar allows as probable."""
    generator, grammar = random.Random(seed), Grammar(vocabulary, n_inputs, n_outputs, budget)
    while not grammar.done:
        grammar.accept(generator.choice(grammar.allowed()))
    return grammar.network()
