"""What is counted, that it is counted once, and that Prometheus can read it."""

import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from unit.fakes import LONG_S, FakeHost, FakeProcess, new_job, settings
from unit.janitor import Box
from unit.test_gpu import A5000, GIB, fake_nvml

from comfyui_guarded.guard.errors import FAMILY, ServerUnavailableError
from comfyui_guarded.guard.job import SUCCESS, Verdict
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.life.watchdog import Watchdog
from comfyui_guarded.guard.operators import metrics as module
from comfyui_guarded.guard.operators import metrics_page
from comfyui_guarded.guard.operators.families import ADMITTED, COUNTED, READ, TEMPLATES
from comfyui_guarded.guard.operators.gpu import Gpus
from comfyui_guarded.guard.operators.metrics import OTHER, OWN_GRAPH, Exposition, Metrics
from comfyui_guarded.guard.spent import Spent
from comfyui_guarded.guard.store import SqliteStore

REPO = Path(__file__).parents[2]
FAMILIES = (*COUNTED, *READ)
#: Where `make` puts it, or the system's.
PROMTOOL = shutil.which("promtool", path=f"{sys.prefix}/tools/usr/bin") or shutil.which("promtool")


class Watched:
    """A store whose changes are counted, and the machine's other parts as they are after a start."""

    def __init__(self, store, clock, tmp_path):
        self.store, self.clock = store, clock
        self.host = FakeHost()
        self.settings = settings()
        self.metrics = Metrics()
        self.health = Health(self.host, store)
        self.health.mark_serving()
        self.watchdog = Watchdog(self.settings, store, self.host, self.health, None, FakeProcess(), clock)
        self.box = Box(tmp_path / "box")
        self.janitor = self.box.janitor(store)
        self.gpus = Gpus({})
        #: Where it is a box of one.
        self.fleet = None
        store.changed.subscribe(self.metrics.follow)

    def job(self, code=None, *, requeued=False, **facts):
        facts.setdefault("created_at_ms", self.clock.now_ms())
        job_id = self.store.submit(new_job(**facts), 10**9).result(LONG_S).job.job_id
        self.store.claim("local", 10**9).result(LONG_S)
        if requeued:
            self.store.hand_over(job_id).result(LONG_S)
            self.store.recover("local", 2).result(LONG_S)
            self.store.claim("local", 10**9).result(LONG_S)
        self.store.start(job_id).result(LONG_S)
        verdict = SUCCESS if code is None else Verdict.of(FAMILY[code]("on purpose"))
        for _ in range(2):  # a late verdict changes nothing
            self.store.settle(job_id, verdict).result(LONG_S)
        self.store.release(job_id).result(LONG_S)
        self.store.flush()

    def text(self):
        parts = (self.settings.queue, self.store, self.host, self.health, self.watchdog, self.janitor, self.gpus)
        return Exposition(self.metrics, *parts, fleet=self.fleet).text().decode()

    def samples(self):
        """`name{label="value"}` → value."""
        found = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return found


@pytest.fixture
def watched(store, clock, tmp_path):
    return Watched(store, clock, tmp_path)


def settled(outcome, code=""):
    return f'guarded_jobs_settled_total{{code="{code}",outcome="{outcome}"}}'


class TestWhatIsCounted:
    def test_each_job_once_by_how_it_ended(self, watched):
        watched.job()
        watched.job(requeued=True)
        watched.job("generation_timeout")
        watched.job("cancelled")
        seen = watched.samples()
        assert seen["guarded_jobs_admitted_total"] == 4
        assert seen[settled("succeeded")] == 2
        assert seen[settled("failed", "generation_timeout")] == 1
        assert seen[settled("cancelled", "cancelled")] == 1
        assert sum(value for name, value in seen.items() if name.startswith("guarded_jobs_settled_total")) == 4
        assert seen["guarded_job_wait_seconds_count"] == 4

    def test_outcomes_that_have_not_happened_are_zero_so_that_a_rate_sees_the_first(self, watched):
        seen = watched.samples()
        for name in (settled("succeeded"), settled("failed", "worker_died"), settled("cancelled", "cancelled")):
            assert seen[name] == 0
        assert seen["guarded_jobs_admitted_total"] == 0

    def test_jobs_of_an_earlier_process_are_not_admitted_again(self, watched, tmp_path, clock):
        store = SqliteStore(tmp_path / "other.db", clock)
        store.submit(new_job(), 10).result(LONG_S)
        metrics = Metrics()
        store.changed.subscribe(metrics.follow)
        store.claim("local", 1).result(LONG_S)
        store.recover("local", 2).result(LONG_S)
        store.close()
        assert {labels: value for family, labels, value in metrics.samples() if family is ADMITTED} == {(): 0}

    def test_run_times_of_successes_by_template(self, watched):
        watched.job(template="portrait")
        watched.job(template="portrait")
        watched.job()
        watched.job("generation_failed", template="portrait")
        seen = watched.samples()
        assert seen['guarded_job_run_seconds_count{template="portrait"}'] == 2
        assert seen[f'guarded_job_run_seconds_count{{template="{OWN_GRAPH}"}}'] == 1
        assert seen['guarded_job_run_seconds_bucket{le="+Inf",template="portrait"}'] == 2

    def test_templates_without_end_share_one_line(self, watched):
        names = {watched.metrics._label_of(f"t{number}") for number in range(TEMPLATES * 3)}
        assert len(names) == TEMPLATES + 1
        assert OTHER in names
        assert watched.metrics._label_of("t0") == "t0"

    def test_a_histogram_counts_each_value_up_from_its_bucket(self):
        histogram = module._Histogram((1, 5))
        for value in (0.5, 1, 3, 100):
            histogram.observe(value)
        assert module._buckets(histogram) == [("1.0", 2), ("5.0", 3), ("+Inf", 4)]
        assert histogram.sum == 104.5

    def test_face_checks_refusals_and_webhooks(self, watched):
        watched.metrics.count_refusal("queue_full", "bot")
        watched.metrics.count_face_check("passed", 0.03)
        watched.metrics.count_face_check("no_face", 0.2)
        watched.metrics.count_delivery("delivered", 0.1)
        seen = watched.samples()
        assert seen['guarded_admission_refusals_total{code="queue_full"}'] == 1
        assert seen['guarded_face_checks_total{outcome="no_face"}'] == 1
        assert seen["guarded_face_check_seconds_count"] == 2
        assert seen['guarded_face_check_seconds_bucket{le="0.05"}'] == 1
        assert seen['guarded_webhook_deliveries_total{outcome="delivered"}'] == 1


class TestWhatIsRead:
    def test_queue_slots_and_worker(self, watched):
        for _ in range(3):
            watched.store.submit(new_job(), 10).result(LONG_S)
        watched.store.claim("local", 1).result(LONG_S)
        watched.host.hung = 2
        watched.health.draining = True
        watched.store.flush()
        seen = watched.samples()
        assert (seen["guarded_queue_jobs"], seen["guarded_slots"], seen["guarded_slots_used"]) == (2, 1, 1)
        assert (seen["guarded_worker_up"], seen["guarded_workers_disowned"], seen["guarded_ready"]) == (1, 2, 0)

    def test_gpus(self, watched):
        assert "guarded_gpu_info{" not in watched.text()
        watched.gpus.look(fake_nvml(A5000))
        seen = watched.samples()
        assert seen['guarded_gpu_info{gpu="0",name="NVIDIA RTX A5000",uuid="GPU-11aa"}'] == 1
        assert seen['guarded_gpu_utilization_ratio{gpu="0"}'] == 0.97
        assert seen['guarded_gpu_memory_used_bytes{gpu="0"}'] == 20 * GIB
        assert seen['guarded_gpu_memory_size_bytes{gpu="0"}'] == 24 * GIB

    def test_disks_and_sweeps(self, watched):
        (watched.box.output / "old.png").write_bytes(b"x" * 10)
        watched.janitor.turn(1_000.0)
        assert watched.samples()['guarded_disk_free_bytes{root="output"}'] > 0
        watched.janitor.turn(1_002.0)
        watched.janitor.sweep(1e12)
        seen = watched.samples()
        assert (seen['guarded_root_files{root="output"}'], seen['guarded_root_bytes{root="output"}']) == (1, 10)
        assert (seen["guarded_sweeps_total"], seen["guarded_sweep_deleted_files_total"]) == (1, 1)
        assert seen["guarded_sweep_freed_bytes_total"] == 10

    def test_a_scrape_asks_the_store_nothing(self, watched, monkeypatch):
        watched.text()

        def asked(_operation):
            raise AssertionError("a scrape waits for nobody")

        for thread in (watched.store._engine._reader, watched.store._engine._writer):
            monkeypatch.setattr(thread, "run", asked)
        assert "guarded_queue_jobs" in watched.text()

    def test_without_the_package_the_answer_names_it(self, watched, monkeypatch):
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        with pytest.raises(ServerUnavailableError, match="prometheus-client"):
            watched.text()


async def test_what_the_watchdog_does_is_counted(machine):
    job_id = await machine.run(timeout_s=1.0)
    machine.turn(2.0)
    machine.turn(2.0)
    counts = machine.watchdog.counts
    assert (counts["timeout job"], counts["stop"]) == (1, 1)
    machine.turn(100.0)
    assert counts["replace hung"] == machine.watchdog.replacements == 1
    other = await machine.run()
    machine.settler.end(machine.job(other), FAMILY["cancelled"]("enough")).result(LONG_S)
    assert counts["stop"] == 2
    machine.host.alive = False
    machine.turn(100.0)
    assert counts["replace dead"] == 1
    assert machine.ended(job_id) == ("failed", "generation_timeout")


class TestTheTable:
    def test_docs_metrics_md_is_what_the_table_says(self):
        assert (REPO / "docs" / "metrics.md").read_text(encoding="utf-8") == metrics_page.markdown()

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_names_keep_to_the_convention(self, family):
        """https://prometheus.io/docs/practices/naming, as promtool checks it."""
        name = family.name
        assert re.fullmatch(r"guarded_[a-z]+(_[a-z]+)*", name)
        assert name.endswith("_total") == (family.kind == "counter")
        assert not re.search(r"_(count|sum|bucket|gauge|counter|histogram|ms|milliseconds|kb|mb|gb|percent)$", name)
        assert family.kind != "histogram" or name.endswith("_seconds")
        assert not {"le", "quantile", "job", "instance"} & set(family.labels)
        assert not any(label in name.split("_") for label in family.labels if label not in ("gpu", "root"))
        assert family.help.endswith(".")
        assert list(family.buckets) == sorted(set(family.buckets))

    def test_each_family_is_described_once_in_a_scrape_and_nothing_else_is_of_ours(self, watched):
        text = watched.text()
        described = re.findall(r"^# TYPE (guarded_\w+) (\w+)$", text, re.M)
        assert described == [(family.name, family.kind) for family in FAMILIES]
        assert all(math.isfinite(value) for name, value in watched.samples().items() if name.startswith("guarded_"))


def everything(watched):
    """A scrape in which every family has a sample."""
    for code in (None, "out_of_memory", "cancelled"):
        watched.job(code, template='a "name"\\n')
    watched.gpus.look(fake_nvml(A5000))
    watched.metrics.count_refusal("rate_limited", "bot")
    watched.metrics.count_over_quota("streams")
    (job, *_others) = watched.store.list_jobs(None, None, 1).result(LONG_S)
    watched.metrics.count_spent(job, Spent(run_ms=1500, load_ms=0, ended_at_ms=0))
    watched.metrics.count_face_check("no_face", 0.2)
    watched.metrics.count_delivery("failed", 3.0)
    watched.metrics.count_put("failed", 3.0)
    watched.metrics.count_depot("put", "ok", 5)
    watched.janitor.turn(1_000.0)
    watched.janitor.roots()
    watched.janitor.turn(1_002.0)
    watched.fleet = SimpleNamespace(
        is_keeper=True,
        box="box-1",
        version=lambda: 'a "name"\\n',
        count_states=Counter,
        count_versions=lambda: 1,
        count_slots=lambda: 1,
        count_running=lambda: 1,
    )
    text = watched.text()
    for family in FAMILIES:
        assert re.search(rf"^{family.name}(_count)?[ {{]", text, re.M), family.name
    return text


def test_prometheus_own_parser_reads_everything(watched):
    everything(watched)
    assert len(watched.samples()) > 100


def test_promtool_accepts_everything(watched):
    if PROMTOOL is None:
        pytest.skip("no promtool here: `make` gets it from Debian's package prometheus where apt-get is; or install it")
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=everything(watched), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
