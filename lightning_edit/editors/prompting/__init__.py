"""Text editors: the new facts stand in the prompt, and no weight is changed."""
