"""`ddbench check`: whether a run is as accurate, as fast and as small as a baseline says it was.

`measured` reads a run, `baseline` keeps one or several runs as one JSON file, `compare` tells change from noise, `show`
writes the verdicts for a terminal, as Markdown and as JUnit XML.
"""
