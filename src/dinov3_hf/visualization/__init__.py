"""Pictures of features and results, and the HTML report of a run."""
