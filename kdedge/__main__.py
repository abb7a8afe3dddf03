"""``python -m kdedge`` is ``kdedge``."""

from kdedge.cli import main

main()
