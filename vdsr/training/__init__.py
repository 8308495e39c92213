"""How are weights made? A recipe, a trainer, a run that can be killed at any step, and a report of what it did."""
