"""Names of files in the folder of a run, and of the format of its checkpoint.

The lock has its name in :mod:`snnet.training.run_folder`, the memories of several processes in
:mod:`snnet.training.pieces`.
"""

CONFIG_FILE = "config.yaml"  # the resolved configuration
ENVIRONMENT_FILE = "environment.json"  # what each start of the run ran on
METRICS_FILE = "metrics.jsonl"  # a line for each epoch
CHECKPOINT_FILE = "checkpoint.pt"
CHECKPOINT_FORMAT = "snnet-checkpoint"  # the entry "format" of a checkpoint
RESULTS_FILE = "results.json"  # written at the end
