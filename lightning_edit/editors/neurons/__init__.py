"""Knowledge-neuron editors: attribute a fact to single MLP neurons and change their weights."""
