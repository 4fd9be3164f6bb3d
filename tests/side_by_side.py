"""How pytest-xdist deals out tests: what shares a server runs on one worker, so that each server is started once."""

import re

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

#: Folders in which one server per kind of host, a fixture of the session's or folder's, is enough for all modules ...
SHARED_HOSTS = ("bounds", "contract", "gpu", "results")
#: ... except for these, which start servers with settings of their own.
OWN_HOSTS = ("checks_beside", "connections", "ladder", "native_guarded", "sampler", "webhooks")
#: Folders whose tests start a server each, for themselves alone, so that each can run on any worker ...
SINGLE = ("chaos",)
#: ... except for these modules, whose tests share servers or loop devices.
TOGETHER = ("channels", "power_cut")
#: Folders whose tests take long, each of them.
SLOW = ("browser", "chaos", "clients", "contract", "examples", "gpu")
_KIND = re.compile(r"[\[-](sandbox|ComfyUI-[\w.]+)[]-]")


class ByServer(LoadScopeScheduling):  # type: ignore[misc]
    """Deals out whole groups, in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """A worker is gone: the others take what it had, except for the test that it ended in, which pytest-xdist would
        run again, on one worker after another."""
        ended_in = next(
            (
                (unit, test)
                for unit in self.assigned_work[node].values()
                for test, is_done in unit.items()
                if not is_done
            ),
            None,
        )
        if ended_in is None:
            return super().remove_node(node)
        unit, test = ended_in
        unit[test] = True
        super().remove_node(node)
        return test


def group(nodeid: str) -> str:
    """`contract on ComfyUI-0.33.0` for what shares a folder's server; a test's own id where it shares nothing; else the
    module, for each kind of host."""
    module = nodeid.partition("::")[0]
    folder, _, file = module.partition("/")
    if folder in SINGLE and not file.removeprefix("test_").startswith(TOGETHER):
        return nodeid
    kind = _KIND.search(nodeid)
    shared = kind and folder in SHARED_HOSTS and not file.removeprefix("test_").startswith(OWN_HOSTS)
    return f"{folder if shared else module} on {kind[1] if kind else 'no host'}"


def rank(item: pytest.Item) -> int:
    """What takes long begins first, so that no worker is left alone with it in the end."""
    folder, kind = item.path.parent.name, _KIND.search(item.nodeid)
    if kind and kind[1] != "sandbox":
        return 0 if folder in SHARED_HOSTS else 1
    return 2 if folder in SLOW else 3
