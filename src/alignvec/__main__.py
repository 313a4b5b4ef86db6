"""Run as `python -m alignvec`."""

from alignvec.cli import main

main()
