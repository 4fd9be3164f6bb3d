"""Nobody who talks to ComfyUI has to learn anything: a good job brings its picture, any other an end without one."""

import io

import pytest
from clients.conftest import Told, cases
from PIL import Image

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


def _answer(told, driver: str, path: str, graph: str) -> Told:
    answer = told.get((driver, path, graph))
    if answer is None:
        pytest.skip("node is not here, or npm has installed nothing")
    assert isinstance(answer, Told), answer
    return answer


@pytest.mark.parametrize(("driver", "path"), cases())
def test_a_good_job_brings_its_picture(told, driver, path):
    answer = _answer(told, driver, path, "good")
    assert answer.error is None
    assert answer.picture is not None
    with Image.open(io.BytesIO(answer.picture)) as image:
        image.load()
        assert image.size == (128, 128)
        assert image.convert("L").getextrema()[1] > 100


@pytest.mark.parametrize(("driver", "path"), cases())
def test_a_job_that_takes_too_long_ends_without_a_picture(told, driver, path):
    assert _answer(told, driver, path, "slow").picture is None


@pytest.mark.parametrize(("driver", "path"), cases())
def test_a_picture_that_fails_the_checks_is_not_handed_over(told, driver, path):
    assert _answer(told, driver, path, "black").picture is None
