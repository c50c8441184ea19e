"""Attack the exported graphs of a run: who tries what, what came of it per image, and the figures of that.

`trials` plans, `outcomes` tries and keeps, `figures` counts; attacks themselves are in `qrobust.attacks`.
"""
