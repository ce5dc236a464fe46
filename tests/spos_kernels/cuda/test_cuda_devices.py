"""Tensors on a GPU that is not the current one."""

from __future__ import annotations

import pytest
import torch

import spos_kernels as sk
from spos_kernels.cuda.modules import module_of


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_gpu_that_is_not_the_current_one() -> None:
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    there = sk.depthwise_conv2d(x.to("cuda:1"), weight.to("cuda:1"))
    assert torch.equal(there.cpu(), sk.depthwise_conv2d(x.to("cuda:0"), weight.to("cuda:0")).cpu())
    assert torch.cuda.current_device() == 0
    y = torch.empty_like(x, device="cuda:0", memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="is on GPU"):
        module_of("cuda").im2row(x.to("cuda:1", memory_format=torch.channels_last), y, 1, 1, 0, 0)
