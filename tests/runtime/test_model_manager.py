"""Which models a worker has, by name."""

import asyncio

import pytest

from flashgen_runtime.errors import ConfigError, RequestError, WeightsError
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.testing import FakeEmbeddings, fake_manager
from flashgen_runtime.worker import ModelManager
from tests.runtime_workers import model_config, server_config

CONFIGS = (model_config("one", aliases=("first", "uno")), model_config("two"))


def test_models_are_loaded_in_order():
    """The first model of the configuration is loaded first."""
    order = []

    def load(config):
        order.append(config.id)
        return FakeEmbeddings(ModelStatus(id=config.id))

    ModelManager(CONFIGS, load).load_all()

    assert order == ["one", "two"]


def test_the_log_says_how_a_model_runs(caplog):
    """What the model says about itself; what it does not have is left out."""
    status = ModelStatus(id="one", dtype="bfloat16", quantization="int8", path="plain", path_reason="no interface")

    with caplog.at_level("INFO"):
        ModelManager(CONFIGS[:1], lambda _: FakeEmbeddings(status)).load_all()

    (record,) = [record for record in caplog.records if record.message == "loaded"]
    said = record.fields
    assert (said["dtype"], said["quantization"]) == ("bfloat16", "int8")
    assert (said["path"], said["path_reason"]) == ("plain", "no interface")
    assert "kernels" not in said


@pytest.mark.parametrize(("name", "model_id"), [("one", "one"), ("first", "one"), ("uno", "one"), ("two", "two")])
def test_a_model_is_leased_by_each_of_its_names(name, model_id):
    """An id and its aliases lead to the same model, which counts its leases."""
    manager = fake_manager(server_config(*CONFIGS))
    manager.load_all()

    async def main():
        async with manager.lease(name) as model, manager.lease(model_id) as same:
            return model is same, model.status.id, manager.num_leases(name)

    assert asyncio.run(main()) == (True, model_id, 2)
    assert manager.num_leases(name) == 0


def test_a_lease_ends_with_an_exception_too():
    """A request that fails gives its model back."""
    manager = fake_manager(server_config(*CONFIGS))
    manager.load_all()

    async def main():
        async with manager.lease("one"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert manager.num_leases("one") == 0


@pytest.mark.parametrize(("name", "kind"), [("three", "unknown_model"), ("one", "unavailable")])
def test_a_model_that_is_not_there_is_refused(name, kind):
    """An unknown name and a model that is still loading are different refusals."""
    manager = fake_manager(server_config(*CONFIGS))

    async def main():
        async with manager.lease(name):
            raise AssertionError

    with pytest.raises(RequestError) as caught:
        asyncio.run(main())
    assert caught.value.kind == kind


def test_statuses_name_models_before_they_are_loaded():
    """What the configuration says is known from the start, the rest once a model is loaded."""
    manager = fake_manager(server_config(*CONFIGS))

    before = manager.statuses
    manager.load_all()

    assert [(status.id, status.aliases, status.max_context) for status in before] == [
        ("one", ("first", "uno"), 0),
        ("two", (), 0),
    ]
    assert [status.max_context for status in manager.statuses] == [4096, 4096]


def test_a_model_that_cannot_be_loaded_ends_the_loading():
    """The error of `load` is passed on."""

    def load(_):
        raise WeightsError("model.safetensors", "is missing")

    with pytest.raises(WeightsError):
        ModelManager(CONFIGS, load).load_all()


def test_two_models_may_not_share_a_name():
    """A name that leads to two models is a mistake in the configuration."""
    with pytest.raises(ConfigError, match="`one` and `two` share the name `both`"):
        ModelManager((model_config("one", aliases=("both",)), model_config("two", aliases=("both",))), lambda _: None)
