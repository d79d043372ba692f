"""Key statistics: second moments E[k kᵀ] of layer inputs on ordinary text, collected and cached.

Least-squares editors weigh an edit against these moments of the edited layers. ``texts`` reads
documents, ``windows`` batches them, ``collect`` runs the forward passes, ``partial`` saves
unfinished sums, ``moments`` is the result, ``cache`` stores and finds it.

Importing this package loads no torch.
"""
