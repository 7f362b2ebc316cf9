"""Which entry an optimizer has, and where its options come from."""

from types import SimpleNamespace

import pytest
import torch

from adafisher_hf import AdaFisher, AdaFisherConfig, AdaFisherW, register_optimizer, unregister_optimizer
from adafisher_hf.integrations.entries import OPTIMIZERS, config_of, entry_of_name, entry_of_optimizer, unwrapped
from tests.integrations.test_register_optimizer import Signed, SignedConfig
from tests.models import llama


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture
def names():
    register_optimizer("fast", Signed, SignedConfig)
    register_optimizer("slow", Signed, SignedConfig)
    yield
    unregister_optimizer("fast")
    unregister_optimizer("slow")


def signed(model):
    return Signed(model.parameters(), beta=0.5, nesterov=True)


def wrapped(optimizer):
    """As accelerate does."""
    return SimpleNamespace(optimizer=optimizer)


def args(optim, optim_args=None):
    return SimpleNamespace(optim=optim, optim_args=optim_args, adam_beta1=0.75)


class Mine(AdaFisherW):
    """As somebody may write it."""


@pytest.mark.parametrize(("cls", "name"), [(AdaFisher, "adafisher"), (AdaFisherW, "adafisherw"), (Mine, "adafisherw")])
def test_the_entry_of_the_nearest_class(model, cls, name):
    optimizer = wrapped(wrapped(cls(model.parameters(), model=model)))
    # AdaFisherW is an AdaFisher as well, but not the one that these arguments mean.
    for asked in (None, args("adafisher"), args("adafisherw"), args("adamw_torch")):
        assert entry_of_optimizer(optimizer, asked) is OPTIMIZERS[name]
    assert config_of(optimizer, args("adamw_torch")) == AdaFisherConfig().resolved()


def test_others_have_none(model):
    for optimizer in (None, torch.optim.SGD(model.parameters()), object()):
        assert entry_of_optimizer(optimizer) is entry_of_optimizer(optimizer, args("adafisherw")) is None
        assert config_of(optimizer, args("adafisherw")) is None
    assert entry_of_name("sgd") is entry_of_name(None) is None


def test_of_several_names_the_arguments_choose(names, model):
    optimizer = signed(model)
    for name in ("fast", "slow"):
        assert entry_of_optimizer(optimizer, args(name)) is OPTIMIZERS[name]
        assert config_of(optimizer, args(name, "beta=0.5")) == SignedConfig(beta=0.5)
    assert entry_of_optimizer(optimizer) is OPTIMIZERS["fast"]
    assert config_of(optimizer, args("sgd", "beta=0.5")) is None


class Ahead(torch.optim.Optimizer):
    """Holds another optimizer, as Lookahead does."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer


def test_a_registered_optimizer_is_not_opened(names, model):
    inner, ahead = signed(model), Ahead(signed(model))
    assert unwrapped(wrapped(inner)) is inner
    assert unwrapped(wrapped(ahead)) is ahead.optimizer
    register_optimizer("ahead", Ahead, SignedConfig)
    try:
        assert unwrapped(wrapped(ahead)) is ahead
    finally:
        unregister_optimizer("ahead")
