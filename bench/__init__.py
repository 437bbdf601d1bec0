"""What Darkroom costs and how fast it is, measured side by side with others in one run.

`python -m bench` runs all of it, `python -m bench NAME…` some. Each part writes its figures to
`bench/results/NAME.json` with the command, the machine and the versions, and its table into
`docs/performance.md`.
"""
