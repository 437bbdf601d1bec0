"""Faults, each done to an installation under load, and what came of it.

Each function takes an installation and the size of the trial, small in the tests and large in
`make faults`, and returns an `Outcome`. What must never happen is a violation. Times are figures:
they are held against goals in the long form and only noted in the short one.
"""
