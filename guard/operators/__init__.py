"""Answer the operator: figures for people and for Prometheus, and about the GPU.

`stats` has the figures of the page, `metrics` those for Prometheus after the table in `families`
(`metrics_page` describes them), `gpu` asks NVIDIA's
driver, `machine` samples how busy all is,
`refusals` counts what is refused at the door, `alarms` keeps what operators should look at.
"""
