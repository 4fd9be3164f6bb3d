"""The text of `docs/metrics.md`."""

from __future__ import annotations

from .families import COUNTED, OF_FLEET, READ


def markdown() -> str:
    """The text of `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Generated from `guard/operators/families.py` by `python <folder> metrics`; do not edit.",
        "",
        "`GET /guarded/metrics` answers operators in Prometheus' text format. From another machine it wants a key with",
        "the scope `operate`:",
        "",
        "```yaml",
        "scrape_configs:",
        "  - job_name: guarded",
        "    metrics_path: /guarded/metrics",
        "    authorization: {credentials_file: /etc/prometheus/guarded.key}",
        '    static_configs: [{targets: ["gpu-box:8188"]}]',
        "```",
        "",
        "A scrape waits for no disk, driver or queue. Counters begin at zero with each start of the server. On Linux",
        "there are also `process_resident_memory_bytes`, `process_cpu_seconds_total` and the other `process_…` metrics",
        "of prometheus-client.",
        "",
        "| metric | type | labels | what it says |",
        "| --- | --- | --- | --- |",
        *(
            f"| `{family.name}` | {family.kind} | {', '.join(family.labels)} | {family.help} |"
            for family in (*COUNTED, *READ)
        ),
        "",
        "## A fleet",
        "",
        "Each box of [a fleet](fleet.md) is scraped by itself; `guarded_fleet_info` has its name and version. Jobs,",
        "runs and refusals are counted by the box that did it, so `sum` over all boxes is right. What is the same on",
        f"all of them ({', '.join(f'`{family.name}`' for family in READ if family in OF_FLEET)})",
        "only one box tells, the one that also sends the webhooks; when it dies, another does. So sums are right.",
        "",
        "## Questions",
        "",
        "| what | PromQL |",
        "| --- | --- |",
        *(f"| {what} | `{query}` |" for what, query in _QUESTIONS),
        "",
        "## Dashboard and alerts",
        "",
        "[`observability/grafana.json`](../observability/grafana.json) is a dashboard of all that: Dashboards →",
        "New → Import in Grafana, then choose the Prometheus.",
        "[`observability/alerts.yml`](../observability/alerts.yml) are alert rules (`rule_files` in",
        "`prometheus.yml`): a box that is down, takes no jobs, whose worker is dead or whose queue stands is",
        "`critical`; failing jobs, long waits, workers that hang or were replaced, restarts, full disks and",
        "webhooks that do not arrive, and boxes of a fleet that are gone or differ, are a `warning`.",
        "`promtool test rules observability/alerts_test.yml` shows when each fires.",
        "",
    ]
    return "\n".join(lines)


_QUESTIONS = (
    (
        "success rate over an hour, without cancelled jobs",
        'sum(rate(guarded_jobs_settled_total{outcome="succeeded"}[1h])) / '
        'sum(rate(guarded_jobs_settled_total{outcome!="cancelled"}[1h]))',
    ),
    (
        "average generation time",
        "sum(rate(guarded_job_run_seconds_sum[1h])) / sum(rate(guarded_job_run_seconds_count[1h]))",
    ),
    (
        "95 % of a template's runs are shorter than",
        "histogram_quantile(0.95, sum by (template, le) (rate(guarded_job_run_seconds_bucket[1h])))",
    ),
    (
        "how busy each box is, by its name",
        "guarded_slots_used * on (instance) group_left (box) guarded_fleet_info / guarded_slots",
    ),
    ("why jobs fail", 'sum by (code) (increase(guarded_jobs_settled_total{outcome="failed"}[24h]))'),
)
