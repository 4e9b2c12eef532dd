"""Training in stages, as World Models does: collect with a random policy, fit V, encode, fit M, evolve C."""
