import multiprocessing

import pytest

from tests.models import llama


@pytest.fixture
def model():
    return llama()


@pytest.fixture(scope="module")
def start(request):
    """Starts a function of the test's file in a process of its own, which has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([request.module.__name__])

    def call(function, *args):
        process = context.Process(target=function, args=args)
        process.start()
        return process

    return call
