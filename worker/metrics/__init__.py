"""What does an operator see in Prometheus? `catalogue` says what there is; workers and `vdsr metrics` serve it.

The process that works counts (`meter`), Celery's parent process serves what all of its children counted (`page`), and
`vdsr metrics` what belongs to the whole fleet (`fleet`). Nothing here is loaded while VDSR_METRICS_PORT is unset.
"""
