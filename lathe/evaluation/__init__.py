"""A model, in this process or behind a URL, becomes figures: tasks from files, or of lm-evaluation-harness."""
