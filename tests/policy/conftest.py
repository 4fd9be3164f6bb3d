from collections.abc import Iterator

import pytest
from policy.measured import Comfy, write_files

from comfyui_guarded.tests.hosts.launch import real_kinds


@pytest.fixture(scope="package")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    if not real_kinds():
        pytest.skip("no ComfyUI is found; COMFYUI_PATH names one")
    base = tmp_path_factory.mktemp("cost")
    write_files(base / "input")
    host = Comfy(base)
    yield host
    host.close()
