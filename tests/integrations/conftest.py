import pytest

from tests.models import llama


@pytest.fixture
def model():
    return llama()
