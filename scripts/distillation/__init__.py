"""From molecules to a checkpoint: dataset, labels, training."""
