"""A decoder of trees: every node has a state from its parent and one from the sibling before it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.coercion import require


@dataclass(frozen=True)
class Tree:
    """A label and subtrees, in order."""

    label: int
    children: tuple[Tree, ...] = ()

    @property
    def size(self) -> int:
        """Nodes."""
        return 1 + sum(child.size for child in self.children)


@dataclass
class Node:
    """One that is being decoded: its states."""

    hidden: Tensor
    ancestral: Tensor
    fraternal: Tensor
    label: int = -1
    children: list[Node] = field(default_factory=list)

    def tree(self) -> Tree:
        """What is there below it."""
        return Tree(self.label, tuple(child.tree() for child in self.children))


class DoublyRecurrent(nn.Module):
    """Doubly recurrent decoder (Alvarez-Melis & Jaakkola, 2017).

        a_i = g_a(a_parent, x_parent),  f_i = g_f(f_previous, x_previous),  h_i = tanh(U_a a_i + U_f f_i + U_c context)
        p(child) = s(u_a h_i),  p(next sibling) = s(u_f h_i)
        p(label) = softmax(W h_i + child v_a + sibling v_f)

    with GRUs g_a and g_f, x the embedding of a label. In training child and sibling are those of the tree. The root has
    no sibling, its a is made of the context.

    Args:
        n_labels: Labels.
        dim: Of the states.
        n_context: Of the context vector.
    """

    def __init__(self, n_labels: int, dim: int, n_context: int) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Embedding(n_labels, dim)
        self.from_parent, self.from_sibling = nn.GRUCell(dim, dim), nn.GRUCell(dim, dim)
        self.start, self.of_context = nn.Linear(n_context, dim), nn.Linear(n_context, dim)
        self.of_parent, self.of_sibling = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.topology = nn.Linear(dim, 2)
        self.labels = nn.Linear(dim, n_labels)
        self.of_topology = nn.Linear(2, n_labels, bias=False)

    def hidden(self, ancestral: Tensor, fraternal: Tensor, context: Tensor) -> Tensor:
        """h of nodes, `(n, dim)`."""
        summed: Tensor = self.of_parent(ancestral) + self.of_sibling(fraternal) + self.of_context(context)
        return summed.tanh()

    def label_logits(self, hidden: Tensor, topology: Tensor) -> Tensor:
        """Of nodes with (child, next sibling), `(n, 2)` of 0 and 1."""
        found: Tensor = self.labels(hidden) + self.of_topology(topology)
        return found

    def losses(self, trees: Sequence[Tree], context: Tensor) -> Tensor:
        """-log p of every tree given its row of the context, in nats: labels, and both answers of every node.

        Nodes at the same place among their siblings and on the same level are treated together.
        """
        total = context.new_zeros(len(trees))
        level: list[tuple[Tree, int]] = [(tree, i) for i, tree in enumerate(trees)]
        families = [[each] for each in level]
        ancestral = self.start(context).tanh()
        is_root = True
        while families:
            parents, states = [], []
            fraternal = context.new_zeros(len(families), self.dim)
            for place in range(max(map(len, families))):
                here = [k for k, family in enumerate(families) if len(family) > place]
                nodes = [families[k][place] for k in here]
                which, owner = torch.tensor(here), torch.tensor([tree for _, tree in nodes])
                hidden = self.hidden(ancestral[which], fraternal[which], context[owner])
                more = [len(families[k]) > place + 1 for k in here]
                topology = torch.tensor([[bool(node.children), m] for (node, _), m in zip(nodes, more, strict=True)])
                topology = topology.to(hidden)
                labels = torch.tensor([node.label for node, _ in nodes])
                loss = F.cross_entropy(self.label_logits(hidden, topology), labels, reduction="none")
                answers = F.binary_cross_entropy_with_logits(self.topology(hidden), topology, reduction="none")
                loss = loss + (answers[:, 0] if is_root else answers.sum(1))
                total = total.index_add(0, owner, loss)
                x = self.embed(labels)
                moved = self.from_sibling(x, fraternal[which])
                fraternal = fraternal.index_copy(0, which, moved)
                below = self.from_parent(x, ancestral[which])
                for row, (node, tree) in enumerate(nodes):
                    if node.children:
                        parents.append([(child, tree) for child in node.children])
                        states.append(below[row])
            families, is_root = parents, False
            if families:
                ancestral = torch.stack(states)
        return total

    # -- decoding, node by node --------------------------------------------------------------------------------------

    def root(self, context: Tensor) -> Node:
        """The root, `context` of one tree."""
        ancestral, fraternal = self.start(context).tanh(), context.new_zeros(self.dim)
        return Node(self.hidden(ancestral, fraternal, context), ancestral, fraternal)

    def child(self, parent: Node, context: Tensor) -> Node:
        """The next child of a node whose label, and that of its last child, is known."""
        if parent.children:
            last = parent.children[-1]
            ancestral = last.ancestral
            fraternal = self.from_sibling(self.embed.weight[last.label], last.fraternal)
        else:
            ancestral = self.from_parent(self.embed.weight[parent.label], parent.ancestral)
            fraternal = context.new_zeros(self.dim)
        node = Node(self.hidden(ancestral, fraternal, context), ancestral, fraternal)
        parent.children.append(node)
        return node

    @torch.no_grad()
    def sample(self, context: Tensor, generator: torch.Generator | None = None, max_nodes: int = 200) -> Tree | None:
        """A tree; the most probable answer of every node where there is no generator.

        Args:
            context: Of one tree.
            generator: Of the draws.
            max_nodes: None is given where there would be more.
        """
        answer = chooser(generator)
        root, count = self.root(context), 0
        waiting: list[tuple[Node, Node | None]] = [(root, None)]
        while waiting:
            node, parent = waiting.pop()
            count += 1
            if count > max_nodes:
                return None
            logits = self.topology(node.hidden)
            has_child = answer([0.0, float(logits[0])]) == 1
            has_sibling = parent is not None and answer([0.0, float(logits[1])]) == 1
            topology = torch.tensor([float(has_child), float(has_sibling)])
            node.label = answer(self.label_logits(node.hidden, topology).tolist())
            if has_sibling:
                assert parent is not None
                waiting.append((self.child(parent, context), parent))
            if has_child:
                waiting.append((self.child(node, context), node))
        return root.tree()


def chooser(generator: torch.Generator | None, temperature: float = 1.0) -> Callable[[Sequence[float]], int]:
    """Picks one of logits: the largest without a generator, or at temperature 0, else at random.

    A tree is thousands of small choices: they are made outside torch, from a seed that the generator gives.

    Raises:
        ConfigError: A negative temperature.
    """
    require(temperature >= 0, "temperature", "must not be negative", temperature, "1 draws from the model")
    draws = None
    if generator is not None and temperature > 0:
        draws = random.Random(int(torch.randint(2**62, (), generator=generator)))

    def choose(logits: Sequence[float]) -> int:
        largest = max(logits)
        if draws is None:
            return logits.index(largest)
        return draws.choices(range(len(logits)), [math.exp((value - largest) / temperature) for value in logits])[0]

    return choose
