"""Pictures of features and of results, and the report of a run."""
