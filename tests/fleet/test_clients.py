"""Published clients, unchanged, against two boxes behind nginx: each request goes to either. By hand, two minutes:

GUARDED_FLEET_CLIENTS=1 pytest tests/fleet/test_clients.py
"""

import os

import pytest
from clients.conftest import INSTALLED, JOB_TIMEOUT_S, ask_all
from clients.test_published_clients import (
    test_a_good_job_brings_its_picture,
    test_a_job_that_takes_too_long_ends_without_a_picture,
    test_a_picture_that_fails_the_checks_is_not_handed_over,
)
from contract.test_access import make_key
from contract.test_proxies import find_program, nginx, running
from fleet.conftest import make_fleet

from comfyui_guarded.tests.hosts.launch import free_port

__all__ = [
    "test_a_good_job_brings_its_picture",
    "test_a_job_that_takes_too_long_ends_without_a_picture",
    "test_a_picture_that_fails_the_checks_is_not_handed_over",
]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif("GUARDED_FLEET_CLIENTS" not in os.environ, reason="by hand: GUARDED_FLEET_CLIENTS=1"),
]

#: By turns, whoever asks; who cannot be asked is left out.
BALANCER = """
map $http_upgrade $connection_word {{ default upgrade; '' ''; }}
upstream boxes {{ {servers} }}
server {{
    listen 127.0.0.1:{port};
    client_max_body_size 64m;
    location / {{
        proxy_pass http://boxes;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        {names_caller}
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_word;
        proxy_buffering off;
        proxy_read_timeout 600s;
        proxy_next_upstream error timeout http_503;
    }}
}}
"""


#: With it nobody without a key is this machine's own.
NAMES_CALLER = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"


@pytest.fixture(scope="module")
def told(tmp_path_factory, engine):
    if not (INSTALLED / "bin").is_dir():
        pytest.skip("the published clients are not installed: make clients")
    if find_program("nginx") is None:
        pytest.skip("no nginx here")
    folder, port = tmp_path_factory.mktemp("fleet"), free_port()
    (folder / "depot").mkdir()
    settings = {
        "GUARDED_FILES__URL": (folder / "depot").as_uri(),
        "GUARDED_NATIVE__MODE": "guarded",
        "GUARDED_WATCHDOG__JOB_TIMEOUT_S": str(JOB_TIMEOUT_S),
    }
    with make_fleet(folder, engine) as fleet:
        boxes = [fleet.make(tells=True, shares=False, **settings) for _ in range(2)]
        key = make_key(boxes[0].base, "published")
        for box in boxes:
            box.start()
        servers = " ".join(f"server 127.0.0.1:{box.port} max_fails=0;" for box in boxes)
        text = BALANCER.format(servers=servers, port=port, names_caller="")  # some of the clients have no key
        with running(nginx, folder / "nginx", text, port):
            yield ask_all(f"http://127.0.0.1:{port}", key, tmp_path_factory)
