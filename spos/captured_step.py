"""A supernet's training step on a GPU as one captured graph, which is replayed for every path."""

from __future__ import annotations

from torch import nn

from spos.choices import ChoiceBlock
from spos.spaces.shufflenet import ShuffleBlock, ShuffleNetOneShot
from spos_kernels.choice_block_reference import Branch
from spos_kernels.cuda.training_step import Network


def network_of(network: ShuffleNetOneShot) -> Network:
    """Return the tensors of a ShuffleNet supernet's layers, of all its options, as the step runs them.

    Raises TypeError for blocks that are no choices among operators of the released space.
    """
    blocks: list[tuple[tuple[Branch, ...], int]] = []
    for index, block in enumerate(network.features):
        options = [block.branch(i) for i in range(len(block.labels))] if isinstance(block, ChoiceBlock) else [block]
        links = [option.link() for option in options if type(option) is ShuffleBlock]
        if len(links) != len(options):
            raise TypeError(f"features[{index}] is a {type(block).__name__}: expected a choice among ShuffleBlocks")
        blocks.append((tuple(link.branch for link in links), links[0].stride))
    stem, last = network.first_conv.link(), network.conv_last.link()
    classifier = network.classifier[0]
    assert isinstance(classifier, nn.Linear)
    return Network(stem.branch.main[0], stem.stride, tuple(blocks), last.branch.main[0], classifier.weight)
