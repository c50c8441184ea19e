"""How pixels reach worker processes: pickled through a pipe, or in shared memory of torch.

    python benchmarks/workers.py --images imagefolder:DIR --size 224

Two processes render and classify images under four conditions; the same is done with each transport in turn, and
without a classifier, where the transport weighs most. `--before DIR` adds a checkout of commit ee42081, whose
`qrobust.processes` wrote pixels into slots of shared memory that it managed by hand. Results go to
`results/workers.json`.
"""
