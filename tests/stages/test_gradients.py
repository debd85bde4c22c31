"""One vector holds the gradients that autograd would leave on the tensors."""

import torch

from isvit_lightning.stages.gradients import FlatGradients


def test_the_vector_holds_what_autograd_gives() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    bias = torch.randn(3, requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    x = torch.randn(5, 4)

    def loss() -> torch.Tensor:
        return ((x @ weight.T + bias) * scale).square().mean()

    wanted = torch.autograd.grad(loss(), [weight, bias, scale])
    gradients = FlatGradients([weight, bias, scale])
    for _ in range(2):  # what an earlier step left does not count
        gradients.collect()
        loss().backward()
    assert torch.equal(gradients.vector[:-1], torch.cat([part.flatten() for part in wanted]))
    assert weight.grad is not None
    assert weight.grad.data_ptr() == gradients.vector.data_ptr()


def test_several_passes_add_up_and_the_loss_lies_behind() -> None:
    weight = torch.ones(2, requires_grad=True)
    gradients = FlatGradients([weight])
    gradients.collect()
    for factor in (1.0, 2.0):
        loss = (weight * factor).sum()
        loss.backward()
        gradients.loss.add_(loss.detach())
    assert gradients.vector.tolist() == [3.0, 3.0, 6.0]


def test_a_tensor_without_gradient_gets_zeros() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    gradients = FlatGradients([used, unused])
    gradients.vector.fill_(7)
    gradients.collect()
    used.sum().backward()
    assert gradients.vector.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_attach_brings_another_vector_back() -> None:
    weight = torch.ones(2, requires_grad=True)
    first, second = FlatGradients([weight]), FlatGradients([weight])
    first.collect()
    weight.sum().backward()
    second.collect()
    (weight * 2).sum().backward()
    first.vector.add_(second.vector)
    first.attach()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0, 3.0]
