import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui_guarded.guard.graph import find_circle, is_link
from comfyui_guarded.tests.hosts.launch import real_kinds, sandbox_kind

HOSTS = [sandbox_kind(), *real_kinds()]

PARTS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([]), st.just({}), st.just("1")
)
VALUES = st.one_of(PARTS, st.lists(PARTS, max_size=3), st.tuples(PARTS, PARTS), st.tuples(st.text(), PARTS).map(list))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["1", 0], True),
        (["nobody", 0], True),
        (["1", 0.0], True),
        (["1", -1], True),
        (["1", True], True),
        (["", 0], True),
        ([1, 0], False),
        (["1", "0"], False),
        (["1", None], False),
        (["1", [0]], False),
        (["1"], False),
        (["1", 0, 0], False),
        ([], False),
        (("1", 0), False),
        ("10", False),
        ({"0": "1", "1": 0}, False),
        (None, False),
    ],
    ids=str,
)
def test_a_link_is_a_list_of_a_node_id_and_a_number(value, expected):
    assert is_link(value) is expected


@pytest.mark.parametrize("kind", HOSTS, ids=lambda kind: kind.name)
def test_a_link_is_what_the_host_takes_for_one(kind):
    path = kind.main.parent / "comfy_execution" / "graph_utils.py"
    spec = importlib.util.spec_from_file_location("graph_utils_of_the_host", path)
    host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host)

    @given(VALUES)
    def agrees(value):
        assert is_link(value) == host.is_link(value)

    agrees()


def test_a_circle_is_found_where_no_output_hangs_on_it():
    nodes = {"1": [], "2": ["3"], "3": ["4", "1"], "4": ["2"]}
    graph = {node_id: {"inputs": {source: [source, 0] for source in sources}} for node_id, sources in nodes.items()}
    assert sorted(find_circle(graph)[1:]) == ["2", "3", "4"]
    graph["4"]["inputs"] = {"text": "2"}
    assert find_circle(graph) is None
